"""The rule of grading: an issue is resolved when all its failing tests pass, and no passing test fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lmlab.methods.swebench.grading.infrastructure import sign_in
from lmlab.methods.swebench.grading.logs import Format, read_log
from lmlab.methods.swebench.grading.parsers.status import FAILED, PASSED, SKIPPED, XFAIL, LogContext, StatusMap
from lmlab.methods.swebench.instances.instance import Instance

Resolution = Literal["FULL", "PARTIAL", "NO"]
_PASSING = (PASSED, XFAIL)


@dataclass(frozen=True)
class Outcome:
    """Expected tests, by whether they came out as expected."""

    success: list[str] = field(default_factory=list)
    failure: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Successes of all, 1 of none."""
        total = len(self.success) + len(self.failure)
        return len(self.success) / total if total else 1.0


@dataclass(frozen=True)
class Verdict:
    """What a test run says of a patch.

    Attributes:
        applied: the log describes a run on the patched repository.
        resolution: FULL when every test is as expected; PARTIAL when some failing tests pass and none that passed
            fails.
        reason: why the log is not valid, or is missing.
        infra_reason: a sign of failed surroundings in a log that is not valid; `infra_failure` if it is a sure one.
    """

    instance_id: str
    applied: bool
    resolution: Resolution
    fail_to_pass: Outcome
    pass_to_pass: Outcome
    statuses: StatusMap
    reason: str = ""
    infra_failure: bool = False
    infra_reason: str | None = None

    @property
    def resolved(self) -> bool:
        """All tests are as expected."""
        return self.resolution == "FULL"

    def report(self, patch_is_none: bool = False) -> dict[str, Any]:
        """The content of `report.json`, as `swebench` 5 writes it."""
        found: dict[str, Any] = {
            "patch_is_None": patch_is_none,
            "patch_exists": not patch_is_none,
            "patch_successfully_applied": self.applied,
            "resolved": self.resolved,
            "infra_failure": self.infra_failure,
        }
        if self.infra_reason is not None:
            found["infra_failure_reason"] = self.infra_reason
        if self.applied:
            found["tests_status"] = {
                "FAIL_TO_PASS": _lists(self.fail_to_pass),
                "PASS_TO_PASS": _lists(self.pass_to_pass),
                "FAIL_TO_FAIL": _lists(Outcome()),
                "PASS_TO_FAIL": _lists(Outcome()),
            }
        return {self.instance_id: found}


def _lists(outcome: Outcome) -> dict[str, list[str]]:
    return {"success": outcome.success, "failure": outcome.failure}


def grade_log(instance: Instance, text: str, fmt: Format = "auto", network: bool = True) -> Verdict:
    """Grade the log of a test run as `swebench` 5.0.2 does.

    A log can be forged by the code under test; `lmlab.methods.swebench.harness` rests its verdicts on more than a log.

    Raises:
        UserError: the instance names an unknown parser.
    """
    reading = read_log(text, instance.log_parser, LogContext(instance.instance_id, instance.version), fmt)
    if reading.valid:
        return grade(instance, reading.statuses)
    sign = sign_in(text, network)
    return Verdict(
        instance.instance_id,
        False,
        "NO",
        Outcome(),
        Outcome(),
        {},
        reading.reason,
        infra_failure=sign is not None and sign.tier == "environment",
        infra_reason=sign.reason if sign else None,
    )


def grade(instance: Instance, statuses: StatusMap) -> Verdict:
    """Grade the outcomes of tests."""
    if instance.eval_type == "fail_only":
        fixed, kept = (_sort(tests, lambda test: statuses.get(test) != FAILED) for tests in _expected(instance))
    else:
        fail_to_pass, pass_to_pass = _expected(instance)
        fixed = _sort(fail_to_pass, lambda test: status_of(test, statuses) in _PASSING)
        # A test that is skipped now is no regression, and no repair either
        kept = _sort(pass_to_pass, lambda test: status_of(test, statuses) in (*_PASSING, SKIPPED))
    resolution: Resolution = "NO"
    if kept.share == 1 and fixed.share > 0:
        resolution = "FULL" if fixed.share == 1 else "PARTIAL"
    return Verdict(instance.instance_id, True, resolution, fixed, kept, statuses)


def _expected(instance: Instance) -> tuple[Sequence[str], Sequence[str]]:
    return instance.fail_to_pass, instance.pass_to_pass


def _sort(tests: Sequence[str], as_expected: Callable[[str], bool]) -> Outcome:
    outcome = Outcome()
    for test in tests:
        (outcome.success if as_expected(test) else outcome.failure).append(test)
    return outcome


def status_of(test: str, statuses: StatusMap) -> str | None:
    """The outcome of an expected test; None where it has none.

    Published lists hold ids with a blank at an end, and ids that are cut off within their parameters: for those, the
    tests that begin so are asked, if they agree on passing.
    """
    if test in statuses:
        return statuses[test]
    if (bare := test.strip()) in statuses:
        return statuses[bare]
    if test.count("[") > test.count("]"):
        found = [status for name, status in statuses.items() if name.startswith(test)]
        if found and len({status in _PASSING for status in found}) == 1:
            return found[0]
    return None
