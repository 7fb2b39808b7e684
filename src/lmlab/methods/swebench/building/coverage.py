"""Which lines of a reference solution the tests that it repairs run: a line that none runs may be anything."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from lmlab.distributed import scratch_folder
from lmlab.files import ParseError, json_value
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.testing import command_of, files_of, is_pytest
from lmlab.methods.swebench.harness.workspaces.workspace import HiddenTests
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.sandbox import Mount
from lmlab.sandbox.box import get_file

_PLACE, _PLUGIN, _ASKED, _FOUND = "/lines", "lmlab_lines", "asked.json", "found.json"
_MOST_BYTES = 64 << 20
# Runs in the environment of the instance, so that it needs nothing but Python and pytest. Lines that are run while
# modules are imported count, as lines of modules and classes are run only then.
_SOURCE = """
import json, os, sys, threading
import pytest

_here = os.path.dirname(__file__)
_asked = json.load(open(os.path.join(_here, "asked.json")))
_files = {os.path.realpath(path): set(lines) for path, lines in _asked["files"].items()}
_tests, _hits, _state = set(_asked["tests"]), {path: set() for path in _files}, {"on": True}

def _line(frame, event, _):
    if event == "line" and _state["on"]:
        _hits[_names[frame.f_code.co_filename]].add(frame.f_lineno)
    return _line

_names = {}

def _call(frame, event, _):
    name = frame.f_code.co_filename
    if name not in _names:
        place = os.path.realpath(name)
        _names[name] = place if place in _files else None
    return _line if _names[name] is not None else None

sys.settrace(_call)
threading.settrace(_call)

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    sys.settrace(_call)
    _state["on"] = item.nodeid in _tests or item.nodeid.split()[0] in _tests
    yield
    _state["on"] = True

def pytest_sessionfinish():
    sys.settrace(None)
    found = {path: sorted(_hits[os.path.realpath(path)] & set(lines)) for path, lines in _asked["files"].items()}
    json.dump(found, open(os.path.join(_here, "found.json"), "w"))
"""


@dataclass(frozen=True)
class Coverage:
    """Lines of a solution, by file: all that can be run, and those that are."""

    executable: Mapping[str, tuple[int, ...]]
    run: Mapping[str, tuple[int, ...]]

    @property
    def share(self) -> float | None:
        """The share that is run; None where the solution adds no line that can be."""
        total = sum(map(len, self.executable.values()))
        return sum(map(len, self.run.values())) / total if total else None

    def missed(self) -> list[tuple[str, int]]:
        """Lines that no test that the solution repairs runs."""
        return [(path, line) for path, lines in self.executable.items() for line in lines if line not in self.run[path]]


def executable_lines(source: str, lines: set[int]) -> tuple[int, ...]:
    """Those of a file's lines that a program can stop at: neither blank ones, comments nor docstrings, and of a
    statement of several lines those alone on which a part of it is computed.
    """
    try:
        code = compile(source, "file", "exec", dont_inherit=True)
        docstrings = _docstrings(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        return ()
    found: set[int] = set()
    pending = [code]
    while pending:
        each = pending.pop()
        found |= {line for _, _, line in each.co_lines() if line}
        pending += [const for const in each.co_consts if isinstance(const, CodeType)]
    return tuple(sorted((found - docstrings) & lines))


def _docstrings(module: ast.Module) -> set[int]:
    found = set[int]()
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def gold_coverage(
    instance: Instance, judge: Judge, solved: Path, hidden: HiddenTests, added: Mapping[str, set[int]]
) -> Coverage | None:
    """Which lines of the solution the tests that it repairs run; None where the runner is not pytest.

    Arguments:
        solved: a tree with the solution and the tests, where nothing has run yet.
        added: path to numbers of the lines that the solution adds, in Python files that are no tests.
    """
    command = command_of(instance)
    if not is_pytest(command):
        return None
    executable = {
        path: executable_lines((solved / path).read_text("utf-8", "replace"), lines)
        for path, lines in added.items()
        if path not in hidden.paths and (solved / path).is_file()
    }
    executable = {path: lines for path, lines in executable.items() if lines}
    if not executable:
        return Coverage({}, {})
    with scratch_folder("lines") as folder, judge.session(instance, solved) as session:
        mount = Mount(folder, _PLACE, writable=True)
        inside = session.place(mount)
        asked = {
            "files": {f"{session.root}/{path}": list(lines) for path, lines in executable.items()},
            "tests": list(instance.fail_to_pass),
        }
        (folder / f"{_PLUGIN}.py").write_text(_SOURCE)
        (folder / _ASKED).write_text(json.dumps(asked))
        variables = {"PYTHONPATH": f"{session.root}:{session.root}/src:{inside}"}
        session.run([*command, "-p", _PLUGIN, *files_of(instance)], env=variables, sink=io.BytesIO(), mounts=[mount])
        try:
            found = json_value(get_file(folder, _FOUND, _MOST_BYTES))
        except (OSError, ParseError):
            return None
        told = found if isinstance(found, dict) else {}  # code under test may have written it
        lists = {path: told.get(f"{session.root}/{path}") for path in executable}
        run = {
            path: tuple(line for line in lines if isinstance(said := lists[path], list) and line in said)
            for path, lines in executable.items()
        }
    return Coverage(executable, run)
