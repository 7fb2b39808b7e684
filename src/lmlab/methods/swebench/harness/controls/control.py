"""Controls: the same tests with bodies that must fail. A patch under which they pass has rewritten the runner, not
repaired the code.

Code under test runs in the runner's own process, so that it can make exit status, results and log agree on anything: by
a hook, by making tests do nothing, by swallowing assertions, by an object that equals everything. So a run that would
count as a pass is repeated, in a fresh workspace, with other bodies:

- every test raises AssertionError;
- beside each, a copy under a name that nobody can know raises another exception, chosen at random;
- beside each test that the patch is to repair, copies in which one expectation at a time cannot hold: a comparison with
  what equals nothing, an exception of a kind that nobody raises.

All of these must fail. Those that do not fail with the reference solution either (a test that expects any exception,
for instance) are known from its own control and left out.
"""

from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lmlab.methods.swebench.grading.parsers.status import ERROR, FAILED, SKIPPED, StatusMap

_TYPES = ("ValueError", "KeyError", "RuntimeError", "TypeError", "LookupError", "ArithmeticError", "OSError")
_MOST_SHIFTS = 12  # copies of one test
_MOST_COPIES = 60  # of one file
_EQUALITIES = {"assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual"}
_EQUALITIES |= {"assertSetEqual", "assertSequenceEqual", "assertMultiLineEqual"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Control:
    """The control of one test file.

    Attributes:
        source: the file with other bodies.
        copies: name of each added test to what it is, such as `test_add=raise` or `test_add=2`, which is the same for
            every control of the file.
    """

    source: str
    copies: Mapping[str, str] = field(default_factory=dict)


def control_source(source: str, repaired: Collection[str], seed: str) -> Control | None:
    """The control of a test file.

    Arguments:
        repaired: names of functions that the patch is to repair.
        seed: of names and exceptions; nobody may know it before.

    Returns:
        None where the file cannot be parsed, or has no tests.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    generator = random.Random(seed)
    copies: dict[str, str] = {}
    _in_body(module.body, set(repaired), generator, copies)
    if not copies:
        return None
    nothing = f"_{generator.getrandbits(64):x}"
    _rename(module, nothing)
    helper = ast.parse(f"class {nothing}:\n    __hash__ = object.__hash__\n    def __eq__(self, other): return False\n")
    place = sum(_is_prologue(each) for each in module.body)
    module.body[place:place] = helper.body
    return Control(ast.unparse(ast.fix_missing_locations(module)), copies)


_PLACEHOLDER = "__lmlab_equals_nothing__"


def _rename(module: ast.Module, name: str) -> None:
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id == _PLACEHOLDER:
            node.id = name


def _is_prologue(node: ast.stmt) -> bool:
    """What must stay first: the docstring, and imports from the future."""
    is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    return is_future or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _in_body(
    body: list[ast.stmt], repaired: set[str], generator: random.Random, copies: dict[str, str], prefix: str = ""
) -> None:
    """Give the tests of a module or class other bodies, and put the copies behind them."""
    found: list[ast.stmt] = []
    for node in body:
        if _calls_test(node):
            continue  # a module that runs its own tests while it is imported could not be imported
        found.append(node)
        if isinstance(node, ast.ClassDef):
            _in_body(node.body, repaired, generator, copies, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            _in_body(node.body, repaired, generator, copies, prefix)
        elif isinstance(node, _Function) and node.name.startswith("test") and not _is_fixture(node):
            told = (ast.get_docstring(node) or "").strip().partition("\n")[0]
            shifted = [_undocumented(each) for each in (_shifted(node) if {node.name, told} & repaired else [])]
            kind = generator.choice(_TYPES)
            variants = [("raise", _raising(node, kind, generator))]
            variants += [(str(number), each) for number, each in enumerate(shifted[:_MOST_SHIFTS])]
            for label, variant in variants[: max(1, _MOST_COPIES - len(copies))]:
                variant.name = f"{node.name}_{generator.getrandbits(48):x}"
                copies[variant.name] = f"{prefix}{node.name}={label}"
                found.append(variant)
            named = [each for each in node.body[:1] if told]  # unittest's runner calls a test by its docstring
            node.body = [*named, *_raising(node, "AssertionError", generator).body]
    body[:] = found or [ast.Pass()]


def _undocumented(node: _Function) -> _Function:
    """Without a docstring, by which unittest's runner would call a copy as it calls the test."""
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return node


def _is_fixture(node: _Function) -> bool:
    """A fixture by the name of a test: what it makes must be there, as tests fail by their own bodies."""
    named = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return any(ast.unparse(each).rpartition(".")[2] in ("fixture", "yield_fixture") for each in named)


def _calls_test(node: ast.stmt) -> bool:
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id.startswith("test")


def _raising(node: _Function, kind: str, generator: random.Random) -> _Function:
    """A copy that raises at once. It keeps its arguments and decorators, and stays a generator or coroutine if it was
    one only by its `async`.
    """
    found = copy.deepcopy(node)
    text = f"raise {kind}('{generator.getrandbits(64):x}')"
    found.body = ast.parse(text).body
    return found


def _shifted(node: _Function) -> list[_Function]:
    """Copies in which one expectation at a time cannot hold."""
    found = []
    for place in range(sum(_expects(each) for each in ast.walk(node))):
        for side in (0, 1):
            variant = copy.deepcopy(node)
            if _break([each for each in ast.walk(variant) if _expects(each)][place], side):
                found.append(variant)
    return found[:_MOST_SHIFTS]


def _expects(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert) or _method(node) in _EQUALITIES | _RAISES


def _method(node: ast.AST) -> str:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and bool(node.args)
    return node.func.attr if is_call else ""  # type: ignore[attr-defined]


def _break(node: ast.AST, side: int) -> bool:
    """Change an expectation so that it cannot hold; False where there is nothing to change on that side.

    Which side of an equation is under test is not known, so that each is asked in its turn.
    """
    nothing = ast.Call(ast.Name(_PLACEHOLDER, ast.Load()), [], [])
    if isinstance(node, ast.Assert):
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            node.test = ast.Compare((test.left, test.comparators[0])[side], [ast.Eq()], [nothing])
        elif side == 0:  # of anything else, that it is nothing: told by a runner that takes assertions out
            node.test = ast.Compare(test, [ast.Is()], [nothing])
        else:
            return False
        node.msg = None
        return True
    assert isinstance(node, ast.Call)
    if _method(node) in _EQUALITIES and len(node.args) >= 2:
        node.args[:2] = [node.args[side], nothing]
        return True
    if _method(node) in _RAISES and side == 0:
        kind = ast.Call(ast.Name("type", ast.Load()), [ast.Constant("Never"), _BASES, ast.Dict([], [])], [])
        node.args[0] = kind
        return True
    return False


_RAISES = {"raises", "assertRaises", "assertRaisesRegex", "warns", "assertWarns"}
_BASES = ast.Tuple([ast.Name("Warning", ast.Load())], ast.Load())  # a kind of exception, and of warning


ANYWHERE = ""
"""The file of tests whose ids name none."""


def functions_of(tests: Collection[str]) -> dict[str, set[str]]:
    """File to names of functions, from ids. Those of pytest name both; of others (unittest, Django, SymPy) every word
    that may be a function's name counts, and the whole id, which may be the first line of a docstring.
    """
    found: dict[str, set[str]] = {}
    for test in tests:
        file, _, rest = test.partition("::")
        if rest:
            found.setdefault(file, set()).add(rest.partition("[")[0].rpartition("::")[2])
        else:
            found.setdefault(ANYWHERE, set()).update({test, *re.findall(r"\btest\w*", test)})
    return found


@dataclass(frozen=True)
class Survivors:
    """What did not fail in a control.

    Attributes:
        tests: expected ids.
        copies: labels of added tests.
        missing: expected ids that the control does not name at all.
    """

    tests: frozenset[str]
    copies: frozenset[str]
    missing: frozenset[str]


def survivors(statuses: StatusMap, expected: Mapping[str, str], controls: Mapping[str, Control]) -> Survivors:
    """What did not fail.

    Arguments:
        expected: tests that must fail now, with their status in the run that is controlled; those that were skipped
            there tell nothing.
    """
    asked = {test for test, status in expected.items() if status != SKIPPED}
    missing = frozenset(test for test in asked if test not in statuses)
    tests = frozenset(test for test in asked - missing if statuses[test] not in (FAILED, ERROR))
    labels: dict[str, str] = {}
    for file, control in controls.items():
        labels |= {name: f"{file}::{label}" for name, label in control.copies.items()}
    copies = set()
    for test, status in statuses.items():
        if status not in (FAILED, ERROR, SKIPPED):  # names are random, and each runner writes them in its own way
            copies |= {labels[word] for word in re.findall(r"\w+", test) if word in labels}
    return Survivors(tests, frozenset(copies), missing)
