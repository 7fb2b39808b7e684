"""Verdicts on real logs are those of the public package, and on logs that are damaged at random too."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from swe_parts import PublishedLog

from lmlab.methods.swebench.grading.find_logs import REPORT
from lmlab.methods.swebench.grading.logs import EXIT_CODE, decode
from lmlab.methods.swebench.grading.parsers import PARSERS, LogContext, parse
from lmlab.methods.swebench.grading.run_report import log_folder, make_run_report, read_report
from lmlab.methods.swebench.grading.verdict import grade_log
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction


def test_all_published_logs_get_the_published_verdict_counts_and_status_map(published: list[PublishedLog]) -> None:
    wrong = []
    for log in published:
        verdict = grade_log(log.instance, decode(log.data))
        counts = {
            "FAIL_TO_PASS": [len(verdict.fail_to_pass.success), len(verdict.fail_to_pass.failure)],
            "PASS_TO_PASS": [len(verdict.pass_to_pass.success), len(verdict.pass_to_pass.failure)],
        }
        text = json.dumps(verdict.statuses, sort_keys=True, separators=(",", ":"))
        found = {
            "applied": verdict.applied,
            "resolved": verdict.resolved,
            "status_counts": dict(Counter(verdict.statuses.values())),
            "status_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        expected = {key: log.expected[key] for key in found}
        if found != expected or (verdict.applied and counts != log.expected["counts"]):
            wrong.append((log.name, {key: (found[key], expected[key]) for key in found if found[key] != expected[key]}))
    assert len(published) == 518
    assert wrong == []


def _spec(log: PublishedLog) -> object:
    from swebench.types import TestSpec

    instance = log.instance
    return TestSpec(
        instance.instance_id,
        instance.image,
        [],
        instance.repo,
        instance.version,
        list(instance.fail_to_pass),
        list(instance.pass_to_pass),
        instance.log_parser,
        instance.eval_type,
    )


def _damaged(text: str, generator: random.Random) -> str:
    """A log with lines shuffled, marks removed or doubled, colors, cut ids, forged lines, other line ends."""
    lines = text.split("\n")
    for _ in range(generator.randint(1, 4)):
        kind = generator.choice(
            ["shuffle", "drop", "double", "color", "crlf", "cut", "exit", "forge", "mark", "blank", "wrap"]
        )
        place = generator.randrange(len(lines))
        marks = [number for number, line in enumerate(lines) if ">>>>>" in line]
        if kind == "shuffle":
            part = lines[place : place + 60]
            generator.shuffle(part)
            lines[place : place + 60] = part
        elif kind == "drop":
            del lines[place : place + generator.randint(1, 40)]
        elif kind == "double":
            lines[place:place] = lines[max(0, place - 5) : place + 5]
        elif kind == "color":
            lines[place] = f"\x1b[32m{lines[place]}\x1b[0m"
        elif kind == "crlf":
            lines = [line + "\r" for line in lines]
        elif kind == "cut":
            lines[place] = lines[place][: generator.randint(0, max(1, len(lines[place])))]
        elif kind == "exit":
            lines.append(f"{EXIT_CODE}: {generator.choice([0, 1, 2, -9])}")
        elif kind == "forge":
            word = generator.choice(["PASSED", "FAILED", "SKIPPED [1]", "XFAIL", "ERROR", "ok", "test_x ok", "FAIL:"])
            lines.insert(place, f"{word} {generator.choice(['tests/test_a.py::test_b', '', 'a b - c', 'x[/tmp/y/z]'])}")
        elif kind == "mark" and marks:
            mark = generator.choice(marks)
            lines[mark : mark + 1] = [] if generator.random() < 0.5 else [lines[mark]] * 2
        elif kind == "blank":
            lines[place] = f"  {lines[place]}  "
    return "\n".join(lines) or " "


def test_logs_damaged_at_random_are_graded_as_the_public_package_grades_them(
    published: list[PublishedLog], tmp_path: Path
) -> None:
    grading = pytest.importorskip("swebench.harness.grading", reason="swebench is not installed")
    generator = random.Random(5)
    file, graded = tmp_path / "test_output.txt", Counter()
    marked = [log for log in published if log.expected["format"] == "docker"]
    for log in generator.choices(marked, k=400):
        text = _damaged(log.data.decode("utf-8", "replace"), generator)
        file.write_text(text, encoding="utf-8", newline="")
        prediction = {"instance_id": log.instance.instance_id, "model_name_or_path": "m", "model_patch": "x"}
        ours = grade_log(log.instance, decode(file.read_bytes())).report()
        try:
            theirs = grading.get_eval_report(_spec(log), prediction, str(file), True)
        except IndexError:  # theirs ends at a line "FAIL:" that names no test
            continue
        assert ours == theirs, log.name
        graded[ours[log.instance.instance_id]["resolved"]] += 1
    assert min(graded.values()) > 20 and len(graded) == 2  # both verdicts were met


_PRINTED = {
    "jest": ["✓ adds (3 ms)", "✕ divides by zero", "○ waits", "  ✓ nested (12 s)"],
    "vitest": ["✓ a/b.test.ts > name 12ms", "× c", "↓ d [skipped]"],
    "tap": ["ok 1 adds", "not ok 2 divides", "# tests 2"],
    "gotest": ["--- PASS: TestA (0.00s)", "    --- FAIL: TestA/sub_1 (0.10s)", "--- SKIP: TestB (0.00s)"],
    "cargo": ["test a::b ... ok", "test c ... FAILED", "test d ... ignored"],
    "redis": ["[ok]: SET works (3 ms)", "[err]: GET fails in tests/unit/a.tcl", "[skip]: X", "[ignore]: y"],
    "jq": ["PASS: tests/jqtest", "FAIL:  tests/other"],
    "micropython_test": ["pass  basics/a.py", "FAIL  basics/b.py", "skip  c.py"],
    "googletest": ["[       OK ] A.b (0 ms)", "12: [  FAILED  ] A.c (1 ms)", "[  FAILED  ] 1 test, listed below"],
    "ant": ["   [junit] [PASS] a.B", "   [junit] [ERR] a.C", "[junit] [FAIL] d"],
    "maven": ["+ mvn test -Dtest=A#b", "[INFO] BUILD SUCCESS", "+ mvn -Dtest=C", "+ mvn -Dtest=D", "[x] BUILD FAILURE"],
    "gradle_custom": ["a.B > c PASSED", "a.B > d", "warning: x", "FAILED", "> Task FAILED"],
    "phpunit": ["Suite (Tests\\Suite)", " ✔ Adds", " ✘ Divides", " ↩ Waits"],
    "minitest": ["Test#test_a. = 0.01 s = .", "Test#test_b. = 0.00 s = F"],
    "cucumber": ["features/a.feature ....F", "features/b.feature ....."],
    "ruby_unit": ["  test: adds:   .: (0.01)", "  divides:  F", "x:   O"],
    "rspec_transformed_json": ["adds two - passed", "divides - failed", "waits - pending"],
    "jest_json": ["[PASSED] a b", "[FAILED] c", "  [PASSED] d  "],
    "react_pdf": ["PASS a.js (5.2 s)", "FAIL b.js", "PASS c.js (3s)"],
    "carbon": ["PASS packages/a.js (5.2 s)", "FAIL packages/b.js (12ms)", "PASS c.js"],
    "grommet": ["PASS a.js (5.213 s)", "FAIL b.js (12 ms)", "PASS c.js"],
    "highlightjs": [
        "  suite",
        "    ✓ one (12ms)",
        "    1) two",
        "  other",
        "    ✔ three",
        "  3 passing (1s)",
        "  1) four",
    ],
    "marked": ["1) one fails ", "12) another", "3 specs, 2 failures"],
    "eslint": ["  1) rule", "       valid code:", "     AssertionError: x", "  2) b:", "   Error: y"],
    "karma": [
        "Starting browser Chrome",
        "  suite",
        "    ✔ one",
        "    ✖ two",
        "  other",
        "    ✔ three",
        "SUMMARY:",
        " ✔ x",
    ],
    "calypso": ["+ ./node_modules/.bin/jest a", "  suite", "    ✓ one (3ms)", "    ✕ two", "  ✓ out", "Test Suites: 1"],
    "chart_js": ["Chrome 98.0 (Linux x86_64) Scale draws FAILED", "\x1b[31mChrome 9 (Linux) a b FAILED\x1b[0m"],
    "bpmn_js": ["HeadlessChrome 98.0 (Linux 0.0.0) features FAILED", "Chrome Headless 9 (Linux x86_64) b c FAILED", ""],
    "openlayers": [
        "Chrome Headless 9.1 (Linux x86_64) ol draws FAILED",
        "  1) a",
        "  b",
        "  Error: x",
        "case c: mismatch",
    ],
    "p5js": ["  1) core", "       draws", "         a line:", "  <p>x</p>", "{", "}", "  2) no:", '{"a": 1}'],
    "quarto_cli": [
        "[smoke] > render /tmp/ab12.qmd ... \x1b[0m\x1b[32mok\x1b[0m",
        "[unit] > x ... \x1b[31mFAILED",
        "[unit] y",
    ],
    "doctest": [
        '<doctest><TestCase name="a"><SubCase name="b"><Expression success="true"/></SubCase></TestCase></doctest>'
    ],
    "prismjs": [
        "./node_modules/.bin/mocha tests/run.js --reporter json",
        '{"failures":[{"fullTitle":"a"}],"passes":[]}',
    ],
}


@pytest.mark.parametrize("name", sorted(PARSERS.keys() - {"ctest", "junit", "pytest_json", "jekyll", "immutable_js"}))
def test_every_parser_reads_shuffled_lines_as_the_public_package_does(name: str) -> None:
    package = pytest.importorskip("swebench.harness.log_parsers", reason="swebench is not installed")
    reference = package.PARSER_REGISTRY[f"parse_log_{name}"]
    generator = random.Random(name)
    python = ["PASSED a.py::b", "FAILED a.py::c[x y] - why", "a.py::d PASSED [ 50%]", "PASSED", "SKIPPED [1] a.py:3: x"]
    python += [
        "test_a (m.T) ... ok",
        "test_b (m.T) ... FAIL",
        "ERROR: test_c (m.T)",
        "test_d ... output",
        "ok",
        "test_e E",
    ]
    python += ["____ sympy/a.py:test_x ____", "test_y ok", "\x1b[32mPASSED\x1b[0m a::e", "ERROR a.py - x", "FAIL:  x y"]
    own = _PRINTED.get(name, python)
    context = LogContext("owner__repo-1", "3.0")
    assert parse(name, "\n".join(own), context) or name in ("lighthouse", "next")
    for _ in range(60):
        lines = [generator.choice([*own, *own, *own, *python]) for _ in range(generator.randint(1, 30))]
        if name in ("doctest", "prismjs"):
            lines = [each for each in lines if each not in own][:5] + own
        log = "\n".join(lines) + "\n"
        ours = parse(name, log, context)
        try:
            assert ours == reference(log, context), log
        except IndexError:  # theirs ends at lines that name no test
            continue


def test_the_public_package_takes_our_logs_and_we_take_its_reports(
    published: list[PublishedLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("swebench.harness.run_evaluation", reason="swebench is not installed")
    from swebench.harness.reporting import make_run_report as their_run_report
    from swebench.harness.run_evaluation import run_instance
    from swebench.harness.utils import make_test_spec

    monkeypatch.chdir(tmp_path)
    logs = [log for log in published if log.expected["run"] == "deepseek_bench1_eval" and "/test_output" in log.name]
    instances = [log.instance for log in logs][:71]
    predictions = {each.instance_id: Prediction(each.instance_id, "a/model", "x") for each in instances}
    folder = log_folder(tmp_path, "run", "a/model")
    for log in logs[:71]:
        place = folder / log.instance.instance_id
        place.mkdir(parents=True)
        (place / "test_output.txt").write_bytes(log.data)
        row = {**log.instance.to_row("json"), "image": "x"}
        prediction = predictions[log.instance.instance_id].to_row()
        _, theirs = run_instance(make_test_spec(row), prediction, None, "run", rewrite_reports=True)
        assert theirs == grade_log(log.instance, decode(log.data)).report()
        assert read_report(place / REPORT, log.instance.instance_id) == theirs[log.instance.instance_id]
    rows = [each.to_row() for each in instances]
    path = their_run_report({name: each.to_row() for name, each in predictions.items()}, rows, "run", None, ".")
    theirs = json.loads(Path(path).read_text())
    assert make_run_report(instances, predictions, folder) == theirs
    assert len(theirs["resolved_ids"]) == 41


def test_grading_is_not_slower_than_three_times_the_public_package(
    published: list[PublishedLog], tmp_path: Path
) -> None:
    grading = pytest.importorskip("swebench.harness.grading", reason="swebench is not installed")
    logs = [log for log in published if log.expected["format"] == "docker"][:71]
    file = tmp_path / "log"
    ours = theirs = 0.0
    for log in logs:
        file.write_bytes(log.data)
        begin = time.perf_counter()
        grading.get_logs_eval(_spec(log), str(file))
        middle = time.perf_counter()
        grade_log(log.instance, decode(file.read_bytes()))
        ours, theirs = ours + time.perf_counter() - middle, theirs + middle - begin
    assert ours < 3 * theirs


def test_281_published_ids_are_cut_off(lite: dict[str, Instance]) -> None:
    instances = [each for each in lite.values() if each.extra["split"] == "test"]
    tests = [test for each in instances for test in (*each.fail_to_pass, *each.pass_to_pass)]
    assert sum(test.count("[") > test.count("]") for test in tests) == 281
