"""What comes of a patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lmlab.methods.swebench.grading.parsers.status import StatusMap

HARNESS_VERSION = 4
"""Raised when the same patch may get another verdict; results of other versions are not taken up."""

Status = Literal[
    "resolved",
    "unresolved",
    "empty_patch",
    "refused",
    "apply_failed",
    "timed_out",
    "out_of_memory",
    "disk_full",
    "invalid",
    "forged",
    "infra",
]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Result:
    """The verdict on a patch, or why there is none.

    Attributes:
        status: `unresolved`: the tests ran, and not all are as expected; `refused`: it reaches out of the tree;
            `apply_failed`: git and patch take it for no change of this tree; `timed_out`, `out_of_memory`, `disk_full`:
            the code used up its limits, while the tree without the patch does not; `invalid`: no run of the tests can
            be told from what was seen, and without the patch one can, or its control alone never ends; `forged`: tests
            pass that cannot pass; `infra`: the surroundings have failed, and nothing is said of the patch.
        reason: in a sentence.
        statuses: outcomes of tests.
        failures: expected tests that are not as expected.
        touches_test_infra: paths that change how tests are found or judged, and not as the reference solution changes
            them; the verdict is of the tree without them.
        restored: paths of tests that the patch has changed and that were put back.
        applied_by: the command that took the patch.
        runs: test runs that were made; `wall_s` and `test_s` are seconds of all, and of the first run of tests.
    """

    instance_id: str
    status: Status
    reason: str = ""
    statuses: StatusMap = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    touches_test_infra: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    applied_by: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 0
    wall_s: float = 0.0
    test_s: float = 0.0
    control_s: float = 0.0

    @property
    def resolved(self) -> bool:
        """The issue is resolved."""
        return self.status == "resolved"

    @property
    def is_verdict(self) -> bool:
        """Something is said of the patch."""
        return self.status != "infra"

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Result:
        """From JSON; unknown keys are an error of the caller."""
        lists = ("failures", "touches_test_infra", "restored")
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in row.items()}
        return cls(**values)
