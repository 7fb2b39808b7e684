"""The rule of grading on small logs, among them those that other graders were known to get wrong."""

from __future__ import annotations

import pytest

from lmlab.errors import UserError
from lmlab.methods.swebench.grading.infrastructure import sign_in
from lmlab.methods.swebench.grading.logs import END, MOST_BYTES, START, decode, read_log
from lmlab.methods.swebench.grading.parsers import LogContext, parse
from lmlab.methods.swebench.grading.verdict import grade, grade_log, status_of
from lmlab.methods.swebench.instances.instance import Instance


def _instance(**columns: object) -> Instance:
    row = {"instance_id": "o__r-1", "FAIL_TO_PASS": ["t.py::new"], "PASS_TO_PASS": ["t.py::old"], **columns}
    return Instance.from_row(row)


def _log(*lines: str) -> str:
    return "\n".join(["+ pytest", START, *lines, END, ""])


@pytest.mark.parametrize(
    ("new", "old", "resolution"),
    [
        ("PASSED", "PASSED", "FULL"),
        ("XFAIL", "PASSED", "FULL"),
        ("PASSED", "SKIPPED", "FULL"),
        ("SKIPPED", "PASSED", "NO"),
        ("FAILED", "PASSED", "NO"),
        ("PASSED", "FAILED", "NO"),
        ("PASSED", None, "NO"),
        ("ERROR", "ERROR", "NO"),
    ],
)
def test_an_issue_is_resolved_when_failing_tests_pass_and_passing_ones_do_not_fail(
    new: str, old: str | None, resolution: str
) -> None:
    statuses = {"t.py::new": new} | ({"t.py::old": old} if old else {})
    assert grade(_instance(), statuses).resolution == resolution


def test_some_repaired_tests_are_partial_and_empty_lists_count_as_reached() -> None:
    both = _instance(FAIL_TO_PASS=["a", "b"])
    assert grade(both, {"a": "PASSED", "b": "FAILED", "t.py::old": "PASSED"}).resolution == "PARTIAL"
    assert grade(both, {"a": "PASSED", "b": "FAILED"}).resolution == "NO"
    assert grade(_instance(PASS_TO_PASS=[]), {"t.py::new": "PASSED"}).resolution == "FULL"


def test_jest_names_are_the_same_with_and_without_a_time() -> None:
    printed = ["✓ adds (3 ms)", "✓ adds", "✓ adds (1.234 s)", "✓ adds (12 s)"]
    assert all(parse("jest", line) == {"adds": "PASSED"} for line in printed)


def test_a_status_word_alone_names_no_test() -> None:
    for parser in ("pytest", "pytest_options", "pytest_v2", "matplotlib", "seaborn", "django", "sympy"):
        assert parse(parser, "PASSED\nFAILED\nFAIL:\nERROR:\n ... \nok") in ({}, {"": "PASSED"}, {"...": "PASSED"})


@pytest.mark.parametrize(
    "body", [[], ["Executed 0 of 0 SUCCESS"], ["0 passing (3ms)"], ["# tests 0"], ["Tests: 0 total"]]
)
def test_where_only_failures_are_printed_a_suite_that_did_not_run_resolves_nothing(body: list[str]) -> None:
    instance = _instance(log_parser="parse_log_marked", eval_type="fail_only")
    verdict = grade_log(instance, _log(*body))
    assert (verdict.applied, verdict.resolved) == (False, False)
    assert "no test was run" in verdict.reason
    assert grade_log(instance, _log("12 specs, 0 failures")).resolved
    assert not grade_log(instance, _log("12 specs, 1 failure", "1) t.py::new")).resolved


def test_a_blank_at_the_end_of_an_expected_id_hides_no_test() -> None:
    assert status_of("t.py::new ", {"t.py::new": "PASSED"}) == "PASSED"


def test_a_status_word_that_a_terminal_has_broken_is_put_together() -> None:
    name = "tests/test_terminal.py::test_".ljust(80 - len(" PAS"), "x")
    log = f"{name} PAS\nSED\ntests/test_b.py::test_c PASSED"
    assert parse("pytest_v2", log) == {name: "PASSED", "tests/test_b.py::test_c": "PASSED"}


def test_cut_off_ids_ask_the_tests_that_begin_so_if_they_agree() -> None:
    statuses = {"a[log(x)]": "PASSED", "a[log(y)]": "XFAIL", "b[c]": "PASSED", "b[d]": "FAILED"}
    assert status_of("a[log(", statuses) == "PASSED"
    assert status_of("b[", statuses) is None
    assert status_of("a", statuses) is None


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("nothing", "lacks the marks"),
        (f"{START}\nPASSED a\n", "lacks the marks"),
        (">>>>> Patch Apply Failed\n" + _log("PASSED a"), "did not apply"),
        (">>>>> Tests Timed Out\n" + _log("PASSED a"), "out of time"),
        (_log("collected 0 items"), "no results"),
        (_log("PASSED a") + ">>>>> Test Exit Code: 1", "ended with 1"),
    ],
)
def test_a_log_that_tells_of_no_test_run_has_no_verdict_and_says_why(log: str, reason: str) -> None:
    verdict = grade_log(_instance(), log)
    assert not verdict.applied and not verdict.resolved
    assert reason in verdict.reason
    assert "tests_status" not in verdict.report()["o__r-1"]


def test_results_outside_the_marks_are_taken_when_there_are_none_between() -> None:
    assert read_log(f"PASSED t.py::new\n{START}\n{END}", "pytest").statuses == {"t.py::new": "PASSED"}


def test_logs_of_other_encodings_and_endless_ones_are_read() -> None:
    assert decode(b"a\xff\r\nb\rc\x00") == "a\ufffd\nb\nc\x00"
    long = decode(b"head" + b"x" * (MOST_BYTES + 1000) + b"tail")
    assert long.startswith("head") and long.endswith("tail") and "bytes left out" in long
    assert len(long) < MOST_BYTES + 100


def test_output_that_breaks_a_parser_is_an_invalid_log() -> None:
    instance = _instance(log_parser="parse_log_prismjs")
    verdict = grade_log(instance, _log("./node_modules/.bin/mocha tests/run.js --reporter json", "{broken"))
    assert "cannot be parsed" in verdict.reason


def test_signs_of_failed_surroundings_are_told_from_those_that_a_patch_may_cause() -> None:
    assert sign_in("x\nKilled\n").tier == "environment"  # type: ignore[union-attr]
    assert sign_in("ModuleNotFoundError: No module named 'x'").tier == "ambiguous"  # type: ignore[union-attr]
    lookup = "Temporary failure in name resolution"
    assert sign_in(lookup).tier == "environment"  # type: ignore[union-attr]
    assert sign_in(lookup, network=False).tier == "ambiguous"  # type: ignore[union-attr]
    assert sign_in("all is well") is None


def test_junit_ids_are_those_of_pytest() -> None:
    xml = """<testsuites><testsuite>
    <testcase classname="tests.test_a.TestX" name="test_m[a b]" file="tests/test_a.py"/>
    <testcase classname="tests.test_a" name="test_f" file="tests/test_a.py"><failure message="x">t</failure></testcase>
    <testcase classname="tests.test_a" name="test_s" file="tests/test_a.py"><skipped type="pytest.skip"/></testcase>
    <testcase classname="tests.test_a" name="test_x" file="tests/test_a.py"><skipped type="pytest.xfail"/></testcase>
    <testcase classname="" name="tests.test_b" file="tests/test_b.py"><error>collection</error></testcase>
    <testcase classname="tests.test_a" name="test_t" file="tests/test_a.py"/>
    <testcase classname="tests.test_a" name="test_t" file="tests/test_a.py"><error>teardown</error></testcase>
    </testsuite></testsuites>"""
    assert parse("junit", xml) == {
        "tests/test_a.py::TestX::test_m[a b]": "PASSED",
        "tests/test_a.py::test_f": "FAILED",
        "tests/test_a.py::test_s": "SKIPPED",
        "tests/test_a.py::test_x": "XFAIL",
        "tests/test_b.py": "ERROR",
        "tests/test_a.py::test_t": "ERROR",
    }


def test_xml_with_entities_is_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "b">]><testsuite/>'
    verdict = grade_log(_instance(log_parser="junit"), f"{START}{bomb}{END}")
    assert "cannot be parsed" in verdict.reason


def test_unknown_parsers_name_the_nearest() -> None:
    with pytest.raises(UserError, match="Unknown log parser 'parse_log_pytst'. Did you mean 'pytest'?"):
        parse("parse_log_pytst", "", LogContext())
