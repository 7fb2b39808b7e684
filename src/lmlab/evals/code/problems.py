"""Problems with tests: HumanEval's layout (Chen et al. 2021), both of MBPP's (Austin et al. 2021), and a plain one.

| layout | fields of a JSON line |
|---|---|
| HumanEval | `task_id`, `prompt`, `entry_point`, `test` (defines `check(candidate)`), `canonical_solution` |
| MBPP | `task_id`, `text`, `test_list`, `test_setup_code`, `code` |
| MBPP, sanitized | `task_id`, `prompt`, `test_list`, `test_imports`, `code` |
| plain | `id`, `prompt`, `test` (statements), optionally `entry_point`, `solution`, `domain` |
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import read_jsonl

_CALLED = re.compile(
    r"assert\s*\(*\s*(?:not\s+)?(?:set|list|sorted|tuple|len|math\.isclose|round)?\(*\s*([A-Za-z_]\w*)\("
)
_COMPLETION = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert", "\n```", '\n"""')


@dataclass(frozen=True)
class Problem:
    """One function to be written.

    Attributes:
        prompt: what the model is shown.
        begins: the prompt is the beginning of the program, so that the answer goes on with it; else the answer is the
            whole program.
        setup: statements before the program.
        test: statements after it; they call `check(candidate)` themselves where that is the layout.
        entry_point: the function that is tested; empty where it is not known.
        solution: of the benchmark itself, in the form of an answer; None where there is none.
        stop: what ends a completion.
    """

    id: str
    prompt: str
    begins: bool
    setup: str
    test: str
    entry_point: str
    solution: str | None
    domain: str = "code"
    stop: tuple[str, ...] = _COMPLETION

    def program(self, answer: str) -> str:
        """The program that an answer makes, without tests."""
        return f"{self.prompt}{answer}" if self.begins else answer

    def given(self) -> str:
        """Statements of the benchmark's own whose names tests may use: the setup, and what stands in the prompt before
        the definition that is to be written.
        """
        if not self.begins:
            return self.setup
        try:
            # The prompt ends within a definition, mostly after its documentation, which is a body, or right before it
            found = ast.parse(f"{self.prompt.rstrip()}\n    pass\n")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return self.setup
        before = ast.unparse(ast.Module(found.body[:-1], []))
        return f"{self.setup}\n{before}\n"

    @property
    def asks_for_class(self) -> bool:
        """What is tested is a class, whose rules (of equality, of what it contains) are the answer's to write."""
        known = self.prompt if self.begins else self.solution or ""
        return bool(self.entry_point and re.search(rf"^class {re.escape(self.entry_point)}\b", known, re.MULTILINE))


def read_problems(path: Path) -> list[Problem]:
    """Read a file of problems.

    Raises:
        UserError: a row is not one, or an id is there twice; with its line.
    """
    found: dict[str, Problem] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"'{path}', line {number}"
        problem = _problem(row, where)
        if problem.id in found:
            raise UserError(f"{where}: the problem '{problem.id}' is there twice.")
        found[problem.id] = problem
    if not found:
        raise UserError(f"The task file '{path}' is empty.")
    return list(found.values())


def _problem(row: Mapping[str, Any], where: str) -> Problem:
    if "test_list" in row:
        return _mbpp(row, where)
    text = {key: _text(row, key, where) for key in ("prompt", "test")}
    name = row.get("task_id", row.get("id"))
    entry = _text(row, "entry_point", where, "")
    solution = row.get("canonical_solution", row.get("solution"))
    _parses(text["test"], where, "test")
    test = text["test"]
    if entry and not entry.isidentifier():
        raise UserError(f"{where}: entry_point: '{entry}' is no name of a function.")
    if re.search(r"^def check\(", test, re.MULTILINE):
        if not entry:
            raise UserError(
                f"{where}: test defines check(), which is called with the function that 'entry_point' names, and there"
                " is none."
            )
        test = f"{test}\ncheck({entry})\n"
    return Problem(
        _id(name, where),
        text["prompt"],
        True,
        "",
        test,
        entry,
        _optional_text(solution, "canonical_solution" if "canonical_solution" in row else "solution", where),
        _text(row, "domain", where, "code"),
    )


def _mbpp(row: Mapping[str, Any], where: str) -> Problem:
    tests = row["test_list"]
    if not (isinstance(tests, list) and tests and all(isinstance(each, str) for each in tests)):
        raise UserError(f"{where}: test_list: a list of statements is needed.")
    key = "test_imports" if "test_imports" in row else "test_setup_code"
    lines = row.get(key) or ""
    setup = _optional_text("\n".join(map(str, lines)) if isinstance(lines, list) else lines, key, where) or ""
    test = "\n".join(tests)
    _parses(test, where, "test_list")
    _parses(f"{setup}\npass", where, key)
    named = _CALLED.search(tests[0])
    words = _text(row, "text", where, "") or _text(row, "prompt", where)
    # The form of the models that were first measured on it: the words and the tests as a documentation string
    prompt = f'"""\n{words.strip()}\n{test}\n"""\n'
    code = row.get("code")
    return Problem(
        _id(row.get("task_id"), where),
        prompt,
        False,
        setup,
        test,
        named[1] if named else "",
        _optional_text(code, "code", where),
        stop=tuple(each for each in _COMPLETION if each not in ("\ndef", "\n#", "\n@", "\nclass")),
    )


def _id(value: Any, where: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise UserError(f"{where}: the field 'task_id' (or 'id') is missing.")
    return str(value)


def _text(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None:
        raise UserError(f"{where}: the field '{key}' is missing.")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key}: a text is needed.")
    return value


def _optional_text(value: Any, key: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"{where}: {key}: a text is needed.")


def _parses(source: str, where: str, key: str) -> None:
    try:
        if not ast.parse(source).body:
            raise UserError(f"{where}: {key} holds no statement, so that every answer would pass.")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: {key} is no Python: {error}.") from None


def fenced(text: str, entry_point: str = "") -> str:
    """The program in a chat answer: of its fenced blocks the last that defines the function, else the last that parses,
    else the whole text.
    """
    blocks = re.findall(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", text, re.MULTILINE | re.DOTALL)
    defining = [
        each for each in blocks if entry_point and re.search(rf"^\s*def {re.escape(entry_point)}\b", each, re.M)
    ]
    parsing = [each for each in blocks if _is_python(each)]
    chosen = defining or parsing or blocks
    return chosen[-1] if chosen else text


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
