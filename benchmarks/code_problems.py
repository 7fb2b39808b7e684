"""Code tasks as a whole: functions of Python's standard library as problems in HumanEval's and both of MBPP's layouts.

python benchmarks/code_problems.py [--mutants 3] [--workers 2]

Each function's own source is the solution, and what it returns here, for arguments that are listed below, is the test.
Prints: how many solutions pass (all must); how many solutions with one small change are found out; what answers come to
that are empty, raise, end the process, wait for ever, equal everything, or print that they passed; seconds a problem.
"""

from __future__ import annotations

import argparse
import ast
import calendar
import colorsys
import fnmatch
import html
import inspect
import json
import os
import posixpath
import random
import shlex
import statistics
import string
import sys
import tempfile
import textwrap
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmlab.evals.code.checking import check_answers
from lmlab.evals.code.problems import Problem, read_problems
from lmlab.methods.swebench.building.mutations import mutants
from lmlab.sandbox import Limits, choose_executor

CASES: list[tuple[Callable[..., Any], list[tuple[Any, ...]]]] = [
    (textwrap.dedent, [("  a\n    b\n",), ("a\n b",), ("\t x\n\t y\n",)]),
    (textwrap.indent, [("a\n\nb\n", "> "), ("x", "  ")]),
    (calendar.isleap, [(2000,), (1900,), (2024,), (2023,)]),
    (calendar.leapdays, [(1900, 2001), (2000, 2000), (1, 400)]),
    (calendar.monthrange, [(2024, 2), (2023, 2), (1999, 12)]),
    (colorsys.rgb_to_hls, [(0.2, 0.4, 0.4), (0.0, 0.0, 0.0), (1.0, 0.5, 0.25)]),
    (colorsys.rgb_to_hsv, [(0.2, 0.4, 0.4), (0.0, 0.0, 0.0), (1.0, 0.5, 0.25)]),
    (colorsys.hsv_to_rgb, [(0.5, 0.5, 0.4), (0.1, 0.0, 0.7), (0.9, 1.0, 1.0)]),
    (fnmatch.translate, [("*.py",), ("a?[!b-d]",), ("[",)]),
    (html.escape, [("<a href='x'>&\"",), ("<", False)]),
    (posixpath.relpath, [("/a/b/c", "/a/d"), ("/x", "/")]),
    (posixpath.commonpath, [(["/a/b/c", "/a/b/d"],), (["a/x", "a"],)]),
    (posixpath.splitdrive, [("/a/b",), ("",)]),
    (posixpath.dirname, [("/a/b/c",), ("a",), ("//",)]),
    (posixpath.join, [("a", "b", "/c"), ("a/", "b"), ("", "x")]),
    (shlex.quote, [("it's",), ("plain",), ("",), ("a b",)]),
    (shlex.join, [(["a", "b c", ""],), ([],)]),
    (statistics.median_low, [([1, 3, 5, 7],), ([4],)]),
    (statistics.median_high, [([1, 3, 5, 7],), ([4],)]),
    (statistics.multimode, [("aabbbbccddddeeffffgg",), ([],)]),
    (string.capwords, [("a  b c",), ("x-y-z", "-")]),
    (urllib.parse.unquote, [("a%20b%C3%A9",), ("%zz",), ("x",)]),
    (urllib.parse.urldefrag, [("http://a/b#c",), ("x",)]),
    (urllib.parse.parse_qs, [("a=1&a=2&b=",), ("x=%20",)]),
]

ATTACKS = {
    "empty": "",
    "raises": "raise SystemExit(1)\n",
    "ends the process": "import os\nos._exit(0)\n",
    "waits for ever": "while True:\n    pass\n",
    "equals everything": "class E:\n    __eq__ = lambda a, b: True\n    __hash__ = lambda a: 1\ndef NAME(*a, **k):\n"
    "    return E()\n",
    "prints that it passed": "print('passed')\ndef NAME(*a, **k):\n    print('ok')\n",
}


def _source(function: Callable[..., Any]) -> str:
    """The text of a function, also of a module that is frozen into the interpreter."""
    try:
        return inspect.getsource(function)
    except OSError:
        text = Path(os.__file__).with_name(f"{function.__module__}.py").read_text("utf-8")
        found = (each for each in ast.parse(text).body if getattr(each, "name", "") == function.__name__)
        return f"{ast.get_source_segment(text, next(found))}\n"


def _rows(folder: Path) -> list[Path]:
    """Write each function in three layouts; the files."""
    found: dict[str, list[dict[str, Any]]] = {"humaneval": [], "mbpp": [], "mbpp-sanitized": []}
    for function, cases in CASES:
        source = _source(function)
        name, module = function.__name__, function.__module__
        names = "from builtins import *\nimport sys, os, re\n"
        # What a function takes of its module, apart from itself
        own = f"{{k: v for k, v in vars({module}).items() if k != {name!r} and k[:2] != '__'}}"
        names += f"import {module}\nglobals().update({own})\n"
        told = [(arguments, function(*arguments)) for arguments in cases]
        tests = [f"assert {name}(*{arguments!r}) == {value!r}" for arguments, value in told]
        node = ast.parse(source).body[0]
        assert isinstance(node, ast.FunctionDef)
        first = node.body[0]
        lines = source.splitlines(keepends=True)
        head = f"{names}\n\n{''.join(lines[: first.lineno - 1])}"
        check = "def check(candidate):\n" + "".join(
            f"    {test.replace(f'{name}(', 'candidate(', 1)}\n" for test in tests
        )
        task = {"task_id": f"std/{module}.{name}", "prompt": head, "entry_point": name, "test": check}
        found["humaneval"].append(task | {"canonical_solution": "".join(lines[first.lineno - 1 :])})
        row = {"task_id": f"{module}.{name}", "code": source, "test_list": tests}
        found["mbpp"].append(row | {"text": f"Write {name}.", "test_setup_code": names})
        found["mbpp-sanitized"].append(row | {"prompt": f"Write {name}.", "test_imports": names.splitlines()})
    places = []
    for label, rows in found.items():
        places.append(folder / f"{label}.jsonl")
        places[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return places


def _changed(problem: Problem, count: int) -> list[str]:
    """The solution with one change each, as answers."""
    whole = problem.program(problem.solution or "")
    start = len(problem.prompt) if problem.begins else 0
    first = whole[:start].count("\n") + 1
    lines = set(range(first, whole.count("\n") + 2))
    made = [each.source for each in mutants(whole, random.Random(problem.id), lines)][:count]
    return [f"pass\n{text}" if problem.begins else text for text in made]


def main() -> None:
    """All layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    executor, limits = choose_executor("auto"), Limits(timeout_s=20, memory_mib=512)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory(prefix="lmlab-code-") as folder:
        for place in _rows(Path(folder)):
            problems = read_problems(place)
            answers = [(each, each.solution or "") for each in problems]
            begin = time.monotonic()
            outcomes = list(check_answers(executor, answers, limits, options.workers))
            seconds = (time.monotonic() - begin) / len(answers)
            failed = [
                f"{p.id} ({o.reason})" for (p, _), o in zip(answers, outcomes, strict=True) if o.status != "passed"
            ]
            print(
                f"{place.stem}: {len(problems) - len(failed)} of {len(problems)} solutions pass, {seconds:.2f} s each"
            )
            print(f"  not: {'; '.join(failed)}" if failed else "", end="\n" if failed else "")
            if place.stem == "mbpp":
                changed = [(each, text) for each in problems for text in _changed(each, options.mutants)]
                told = Counter(each.status for each in check_answers(executor, changed, limits, options.workers))
                print(f"  {len(changed)} solutions with one change: {dict(told)}")
                quick = limits.model_copy(update={"timeout_s": 3.0})
                for label, text in ATTACKS.items():
                    asked = [(each, text.replace("NAME", each.entry_point)) for each in problems[:6]]
                    told = Counter(each.status for each in check_answers(executor, asked, quick, options.workers))
                    print(f"  answers that are or do: {label}: {dict(told)}")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
