"""The categories of words as enumerations in the text itself, in place of a table beside it."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping
from dataclasses import replace

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.program.domains import PADDING
from lmlab.methods.transformer_programs.program.emitting.helpers import HELPERS
from lmlab.methods.transformer_programs.program.emitting.layout import WIDTH, Identifier, call, literal
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select, Value

_MEMBER = re.compile(r"([A-Za-z_]\w{0,40})\.([A-Za-z]\w{0,40})")


class Enumerations:
    """The enumerations of a program's embeddings: one a variable, whose members are its categories.

    Raises:
        UserError: the categories are numbers, or their names are no `Name.Member`.
    """

    def __init__(self, program: Program) -> None:
        embeddings = program.embeddings
        self.words: dict[str, dict[str, list[str]]] = {}  # variable -> category -> words
        for name in embeddings.columns if embeddings is not None else ():
            if name in program.numerical or name not in program.inputs:
                continue
            assert embeddings is not None
            found: dict[str, list[str]] = {}
            for word, category in zip(embeddings.words, embeddings.values(name), strict=True):
                if not isinstance(category, str) or not _MEMBER.fullmatch(category):
                    raise UserError(
                        f"The categories of '{name}' are called {category!r:.60}, which no enumeration has.",
                        "Keep them in a table (tables: csv), or name them by 'categories', as in 'Emb{i}.V{j:02d}'.",
                    )
                if word != PADDING:
                    found.setdefault(category, []).append(word)
            self.words[name] = dict(sorted(found.items()))
        self.members = {category for found in self.words.values() for category in found}
        titles = [{each.partition(".")[0] for each in found} for found in self.words.values()]
        self.names = {title for each in titles for title in each}
        wrong = next((title for title in sorted(self.names) if title in HELPERS or _is_taken(title)), None)
        if wrong is None and sum(map(len, titles)) > len(self.names):
            wrong = next(title for title in sorted(self.names) if sum(title in each for each in titles) > 1)
        if wrong is not None:
            raise UserError(f"No enumeration can be called '{wrong}', as the categories are.", "Keep tables: csv.")
        self.names |= {f"{prefix}_{_short(name)}" for prefix in ("WORDS", "CATEGORY") for name in self.words}

    def named(self, program: Program) -> Program:
        """The program whose values are written as members where they are categories."""
        nodes = [
            replace(node, predicate=tuple((self.value(q), self.value(k)) for q, k in node.predicate))
            if isinstance(node, Select)
            else self._table(node)
            for node in program.nodes
        ]
        return replace(program, nodes=tuple(nodes))

    def _table(self, node: Lookup) -> Lookup:
        table = {
            tuple(each if isinstance(each, float) else self.value(each) for each in key): self.value(result)
            for key, result in node.table.items()
        }
        return Lookup(node.name, node.inputs, table, None if node.default is None else self.value(node.default))

    def value(self, value: Value) -> Value:
        """A value, as a member where it is a category. Members are texts and equal to them, so that nothing changes
        where a word is spelled like a category.
        """
        return Identifier(value) if isinstance(value, str) and value in self.members else value

    def domains(self, known: Mapping[str, frozenset[Value] | None]) -> dict[str, frozenset[Value] | None]:
        """Domains with members."""
        return {name: None if values is None else frozenset(map(self.value, values)) for name, values in known.items()}

    def lines(self) -> list[str]:
        """The classes, and the category of each word."""
        found: list[str] = []
        for name, categories in self.words.items():
            members = [_MEMBER.fullmatch(each) for each in categories]
            names = [each.groups() for each in members if each is not None]
            title = names[0][0] if names else name
            found += [f"class {title}(StrEnum):", f'    """What a word is in {name}."""', ""]
            found += [f"    {member} = {literal(f'{title}.{member}')}" for _, member in names]
            found += ["", "", f"WORDS_{_short(name)}: dict[{title}, list[str]] = {{"]
            for category, words in categories.items():
                line = f"    {category}: [{', '.join(map(literal, words))}],"
                if len(line) <= WIDTH:
                    found.append(line)
                else:
                    found += [f"    {category}: [", *(f"        {literal(word)}," for word in words), "    ],"]
            each = f"word: each for each, words in WORDS_{_short(name)}.items() for word in words"
            found += ["}", *call(f"{self.table_name(name)} = ", [each], "{}"), "", ""]
        return found[:-1]

    def table_name(self, name: str) -> str:
        """The dictionary of the category of each word in a variable."""
        return f"CATEGORY_{_short(name)}"


def _short(name: str) -> str:
    return name.removesuffix("_embeddings").upper()


def _is_taken(name: str) -> bool:
    return keyword.iskeyword(name) or hasattr(builtins, name)
