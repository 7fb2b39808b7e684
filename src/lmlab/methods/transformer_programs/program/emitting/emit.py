"""Writes a program as Python that needs nothing but the standard library and its tables beside it.

Values from outside are written by `repr` and names are validated identifiers, so that no token becomes code. Sets are
sorted: equal programs give equal text.
"""

from __future__ import annotations

from typing import Literal

from lmlab.methods.transformer_programs.program.domains import PADDING, domains, partners, with_counts
from lmlab.methods.transformer_programs.program.emitting import helpers
from lmlab.methods.transformer_programs.program.emitting.bodies import predicate_lines, table_lines
from lmlab.methods.transformer_programs.program.emitting.enums import Enumerations
from lmlab.methods.transformer_programs.program.emitting.layout import call, collection, literal, wrapped_head
from lmlab.methods.transformer_programs.program.emitting.names import argument_names, function_names, local_names
from lmlab.methods.transformer_programs.program.files import EMBEDDINGS, WEIGHTS
from lmlab.methods.transformer_programs.program.ir import SELECT_SUM, Lookup, Node, Program, Select, Value

Tables = Literal["csv", "enum"]


def to_python(program: Program, tables: Tables = "csv") -> str:
    """The text of `program.py`; its tables are those that `save_program` writes.

    Arguments:
        tables: where the categories of words stand: in a CSV file beside the text, or in it, as enumerations.

    Raises:
        UserError: enumerations are asked for, but the categories have no names that they could have.
    """
    emitter = _Emitter(program, Enumerations(program) if tables == "enum" and program.embeddings is not None else None)
    return emitter.text()


class _Emitter:
    def __init__(self, program: Program, enums: Enumerations | None) -> None:
        self.program, self.domains, self.enums = program, domains(program), enums
        if enums is not None:
            self.program, self.domains = enums.named(program), enums.domains(self.domains)
            program = self.program
        self.needed = program.live | (set(program.classifier.features) & program.numerical)
        for node in reversed(program.nodes):
            if node.name in self.needed:
                self.needed |= set(node.reads)
        self.nodes = [node for node in program.nodes if node.name in self.needed]
        self.reads_words = program.embeddings is not None and (
            enums is None or any(name in self.needed and name.startswith("num_var") for name in program.inputs)
        )
        self.names = local_names(program.variables, set() if enums is None else enums.names)
        self.functions = function_names(self.nodes, self.names, set() if enums is None else enums.names)
        self.known = self._known()

    def _known(self) -> str | None:
        """What the text calls the words that it knows; None where it knows any."""
        words, embeddings = self.program.vocabulary, self.program.embeddings
        if embeddings is not None and not self.reads_words:
            words = words or embeddings.words
        elif embeddings is not None and (words is None or set(words) | {PADDING} == {*embeddings.words, PADDING}):
            return "WORDS"
        return None if words is None else "VOCABULARY"

    def text(self) -> str:
        program, title = self.program, str(self.program.about.get("task", ""))
        title = f" ({title})" if title.isidentifier() else ""
        files = f"{WEIGHTS} and {EMBEDDINGS}" if self.reads_words else WEIGHTS
        heads = any(isinstance(node, Select) for node in self.nodes)
        parts = [helpers.HEAD.format(title=title, files=files, types="Callable, Sequence" if heads else "Sequence")]
        if program.replace_numbers:
            parts[0] = parts[0].replace("import csv\n", "import csv\nimport re\n", 1)
        if any(isinstance(node, Select) and node.op != SELECT_SUM for node in self.nodes):
            parts[0] = parts[0].replace(
                "from pathlib import Path\n", "from pathlib import Path\nfrom typing import TypeVar\n"
            )
            parts.append(helpers.SELECT_CLOSEST)
        if any(isinstance(node, Select) and node.op == SELECT_SUM for node in self.nodes):
            parts.append(helpers.SELECT_SUM)
        parts.append(helpers.READ_WEIGHTS.format(weights=WEIGHTS))
        if self.enums is not None:
            parts[0] = parts[0].replace("from pathlib", "from enum import StrEnum\nfrom pathlib", 1)
            parts.append("\n".join(self.enums.lines()))
        if self.reads_words:
            parts.append(helpers.READ_WORDS.format(embeddings=EMBEDDINGS))
        if self.known == "VOCABULARY":
            words = program.vocabulary or (program.embeddings.words if program.embeddings is not None else ())
            known = [word for word in words if word != PADDING]
            parts.append("\n".join(collection("VOCABULARY = ", known, 0, "")) + "\n")
        if program.lower or program.replace_numbers:
            how = "token.lower()" if program.lower else "token"
            parts.append(helpers.SPELL.format(how=f're.sub("[0-9]+", "@", {how})' if program.replace_numbers else how))
        features = program.classifier.features
        if any(feature not in program.numerical for feature in features):
            parts.append(helpers.ADD_CATEGORIES)
        if any(feature in program.numerical for feature in features):
            parts.append(helpers.ADD_NUMBERS)
        parts += ["\n".join(self._function(node)) + "\n" for node in self.nodes]
        parts += ["\n".join(self._run()) + "\n", helpers.MAIN]
        return "\n\n".join(parts)

    def _function(self, node: Node) -> list[str]:
        if isinstance(node, Select):
            queries, keys = self.domains.get(node.query), self.domains.get(node.key)
            head = f"def {self.functions[node.name]}(query: {type_of(queries)}, key: {type_of(keys)}) -> bool:"
            body = predicate_lines(partners(node.predicate, queries, keys), queries, keys)
            return [*wrapped_head(head), f'    """Which {node.key} each of {node.query} looks for."""', *body]
        names = list(argument_names(node))
        numbers = self.program.numerical
        kinds = ["float" if name in numbers else type_of(self.domains.get(name)) for name in node.inputs]
        arguments = ", ".join(f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True))
        result = type_of(self.domains.get(node.name))
        head = f"def {self.functions[node.name]}({arguments}) -> {result}:"
        return wrapped_head(head) + table_lines(node, names, with_counts(self.program, self.domains), self.domains)

    def _run(self) -> list[str]:
        program = self.program
        lines = [f"def run(tokens: Sequence[str]) -> {'str' if program.pool_outputs else 'list[str]'}:"]
        lines.append('    """The answer to a sequence of tokens, marks included."""')
        lines += ["    if not tokens:", '        raise ValueError("the sequence is empty")']
        lines += self._inputs()
        for node in self.nodes:
            lines += self._call(node)
        lines.append("    logits = [[0.0] * len(LABELS) for _ in tokens]")
        for feature in program.classifier.features:
            how = "add_numbers" if feature in program.numerical else "add_categories"
            values = self.names[feature]
            if feature not in program.numerical and not program.classifier.matters(feature):
                values = f"[{literal(next(iter(program.classifier.rows_of(feature))))}] * len(tokens)"  # equal rows
            lines += call(f"    {how}", ["logits", literal(feature), values])
        if program.pool_outputs:
            lines.append("    logits = [[sum(column) / len(tokens) for column in zip(*logits, strict=True)]]")
            lines.append("    return LABELS[max(range(len(LABELS)), key=lambda label: logits[0][label])]")
            return lines
        lines += [
            "    answers = []",
            "    for scores in logits:",
            "        answers.append(LABELS[scores.index(max(scores))])",
            f"    if tokens[0] == {literal(program.bos)}:",
            f"        answers[0] = {literal(program.bos)}",
            f"    if tokens[-1] == {literal(program.eos)}:",
            f"        answers[-1] = {literal(program.eos)}",
            "    return answers",
        ]
        return lines

    def _inputs(self) -> list[str]:
        program, lines = self.program, []
        if program.longest is not None:
            lines += [
                f"    if len(tokens) > {program.longest}:",
                f'        raise ValueError(f"{{len(tokens)}} places; the program knows {program.longest}")',
            ]
        given = "tokens"
        if program.lower or program.replace_numbers:
            given = "spelled"
            lines.append("    spelled = [spell(token) for token in tokens]")
        lines += [
            f"    if {literal(PADDING)} in {given}:",
            f'        raise ValueError("{PADDING!r} is a reserved mark")',
        ]
        known = self.known
        words = program.vocabulary or (program.embeddings.words if program.embeddings is not None else ())
        if known is not None and "<unk>" in words:
            lines += [f'    known = [token if token in {known} else "<unk>" for token in {given}]']
        elif known is not None:
            lines += [
                f"    for place, token in enumerate({given}):",
                f"        if token not in {known}:",
                '            raise ValueError(f"unknown token {token!r} at place {place}")',
                f"    known = list({given})",
            ]
        else:
            lines.append(f"    known = list({given})")
        used_known = False
        for name in program.inputs:
            if name not in self.needed:
                continue
            local = self.names[name]
            if name == "tokens":
                lines.append(f"    {local} = known")
                used_known = True
            elif name == "positions":
                lines.append(f"    {local} = list(range(len(tokens)))")
            elif name == "ones":
                lines.append(f"    {local} = [1.0] * len(tokens)")
            else:
                assert program.embeddings is not None
                lines.append(f"    {local} = [{self._category(name)} for token in known]")
                used_known = True
        if not used_known:
            lines = [line for line in lines if not line.startswith("    known = ")]
        return lines

    def _category(self, name: str) -> str:
        embeddings = self.program.embeddings
        assert embeddings is not None
        if self.enums is not None and name not in self.program.numerical:
            return f"{self.enums.table_name(name)}[token]"
        column = f"WORDS[token][{list(embeddings.columns).index(name)}]"
        if name in self.program.numerical:
            return f"float({column})"
        if embeddings.categories is None:
            return f"int({column})"
        first = embeddings.categories.replace("{i}", name[3:].split("_")[0])
        before, _, after = first.partition("{j")
        width, _, rest = after.partition("}")
        return f"{literal(before)} + {column}.zfill({int(width.strip(':d') or 0)}) + {literal(rest)}"

    def _call(self, node: Node) -> list[str]:
        target = self.names[node.name]
        if isinstance(node, Lookup):
            arguments = [self.names[name] for name in node.inputs]
            if len(arguments) == 1:
                return call(f"    {target} = ", [f"{self.functions[node.name]}(a) for a in {arguments[0]}"], "[]")
            return call(f"    {target} = list", [f"map({', '.join([self.functions[node.name], *arguments])})"])
        causal = repr(node.causal or self.program.autoregressive)
        key, query, value = (self.names[name] for name in node.reads)
        function = self.functions[node.name]
        if node.op == SELECT_SUM:
            return call(f"    {target} = select_sum", [key, query, value, function, causal])
        return call(f"    {target} = select_closest", [key, query, value, function, causal])


def type_of(domain: frozenset[Value] | None) -> str:
    if domain is None:
        return "str | int"
    kinds = {str if isinstance(each, str) else int for each in domain}
    return {frozenset({int}): "int", frozenset({str}): "str"}.get(frozenset(kinds), "str | int")
