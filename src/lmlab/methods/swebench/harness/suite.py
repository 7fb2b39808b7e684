"""All tests of a repository, beside those that an instance lists: a patch may solve the issue and break something else.

Of patches that pass the listed tests several in a hundred fail others (PatchDiff, as the addendum of SWE-bench's
critics counts them). What is compared with is the reference solution: tests that pass with it, every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.errors import LmlabError, UserError
from lmlab.methods.swebench.harness.testing import command_of, passing, statuses_of
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.instances.instance import Instance

if TYPE_CHECKING:
    from lmlab.methods.swebench.harness.judge import Judge

_RUNS = 2  # of the reference solution, as tests that change their outcome tell nothing
_SHOWN = 50  # names that a result keeps


class SuiteFailure(LmlabError):
    """Of no patch of an instance it can be said what it breaks."""


@dataclass(frozen=True)
class Suite:
    """Tests that pass with the reference solution, in all runs."""

    passing: frozenset[str]

    def broken_by(self, judge: Judge, instance: Instance, workspace: Path) -> dict[str, Any]:
        """Which of them fail, or are gone, in a tree that nothing has run in."""
        run = judge.test(instance, workspace, whole=True)
        found = statuses_of(run)
        broken = sorted(test for test in self.passing if not passing(found.get(test)))
        told = {"tests": len(self.passing), "broken": len(broken), "names": broken[:_SHOWN]}
        return told if run.result.ended else {**told, "ended": False}


def suite_of(judge: Judge, instance: Instance) -> Suite:
    """Run all tests with the reference solution.

    Raises:
        SuiteFailure: it does not apply, the tests do not come to an end within the limits, or a published script names
            its own in a way that is not known.
    """
    try:
        command_of(instance, whole=True)
    except UserError as error:
        raise SuiteFailure(error.message) from None
    kept: set[str] | None = None
    for _ in range(_RUNS):
        with judge.workspaces.fresh(instance) as tree:
            done = run_git(tree, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode())
            if instance.patch.strip() and done.returncode != 0:
                raise SuiteFailure(f"The reference solution of {instance.instance_id} does not apply.")
            judge.workspaces.hidden_tests(instance).write(tree)
            run = judge.test(instance, tree, whole=True)
        if not run.result.ended:
            raise SuiteFailure(f"All tests of {instance.instance_id} do not end within the limits.")
        found = {test for test, status in statuses_of(run).items() if passing(status)}
        kept = found if kept is None else kept & found
    return Suite(frozenset(kept or ()))
