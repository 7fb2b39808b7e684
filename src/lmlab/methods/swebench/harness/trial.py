"""The way of one patch: applied, its tests restored, run, controlled."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from lmlab.methods.swebench.grading.parsers.status import ERROR, FAILED, StatusMap
from lmlab.methods.swebench.grading.verdict import Verdict, grade, status_of
from lmlab.methods.swebench.harness.changes import States, digest_of, shown, solution_of, states_of
from lmlab.methods.swebench.harness.controls.control import Survivors, survivors
from lmlab.methods.swebench.harness.controls.files import write_controls
from lmlab.methods.swebench.harness.result import Result, Status
from lmlab.methods.swebench.harness.suite import SuiteFailure, suite_of
from lmlab.methods.swebench.harness.testing import (
    RunOfTests,
    command_of,
    disagreement,
    files_of,
    is_pytest,
    loosest,
    statuses_of,
)
from lmlab.methods.swebench.harness.workspaces.applying import apply_patch
from lmlab.methods.swebench.harness.workspaces.trees import DOT_GIT, changed_paths
from lmlab.methods.swebench.harness.workspaces.workspace import HiddenTests, clear_way, copied, copy_tree, remove
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.methods.swebench.patches.safety import infra_paths, judge_patch
from lmlab.methods.swebench.patches.split import is_test
from lmlab.sandbox import ExecResult, SandboxFailure
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.methods.swebench.harness.judge import Judge


class Ended(Exception):
    """The result is known, and nothing more is run."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Endless(SandboxFailure):
    """A control that used up its limits."""


class Trial:
    """The way of one patch."""

    def __init__(self, judge: Judge, instance: Instance, patch: str, keep: Path | None) -> None:
        self.judge, self.instance, self.patch, self.keep = judge, instance, patch, keep
        self.statuses: StatusMap = {}
        self.facts: dict[str, Any] = {}
        self.evidence: dict[str, Any] = {}
        self.runs, self.control_s = 0, 0.0
        self.changes = ""

    def result(self, status: Status, reason: str) -> Result:
        return Result(
            self.instance.instance_id,
            status,
            shown(reason),
            self.statuses,
            evidence=self.evidence,
            runs=self.runs,
            control_s=self.control_s,
            **self.facts,
        )

    @cached_property
    def hidden(self) -> HiddenTests:
        """Computed on a tree of its own."""
        return self.judge.workspaces.hidden_tests(self.instance)

    def run(self) -> None:
        """Raise what ends the trial before the issue is resolved."""
        if not self.patch.strip():
            raise Ended("empty_patch", "there is nothing to apply")
        if not _is_text(self.patch):
            raise Ended("apply_failed", "it has characters that no file can hold")
        if refused := judge_patch(self.patch).refused:
            path, reason = next(iter(refused.items()))
            raise Ended("refused", f"{path}: {reason}")
        pristine = self.judge.workspaces.pristine(self.instance)
        with copied(pristine) as workspace:
            self._apply(workspace)
            self._restore(pristine, workspace)
            self.hidden.write(workspace)
            with copied(workspace) as untouched, self._spare(workspace) as spare:
                run = self._first_run(workspace)
                verdict = self._grade(run)
                self.facts["failures"] = (*verdict.fail_to_pass.failure, *verdict.pass_to_pass.failure)
                if not verdict.resolved:
                    if any(sign in run.output for sign in _STARVED):
                        self._blame("unresolved", self._why(verdict, run), passing_ones=True)
                    raise Ended("unresolved", self._why(verdict, run))
                if conflict := disagreement(run):
                    raise Ended("invalid", conflict)
                if self.judge.control:
                    self._control(untouched)
                if spare is not None:
                    self._all_tests(spare)

    def _spare(self, workspace: Path) -> AbstractContextManager[Path | None]:
        return copied(workspace) if self.judge.full_suite else nullcontext()

    def _all_tests(self, workspace: Path) -> None:
        """Note what breaks of all tests; the issue stays resolved."""
        memory, key = self.judge.memory, self.instance.digest
        with memory.lock:
            own = memory.suite_locks.setdefault(key, Lock())
        with own:  # others wait for it only if they need it
            if key not in memory.suites:
                try:
                    memory.suites[key] = suite_of(self.judge, self.instance)
                except SuiteFailure as failure:  # so it is for every patch
                    memory.suites[key] = failure.message
        suite = memory.suites[key]
        if isinstance(suite, str):
            self.evidence["full_suite"] = {"why_not": suite}
        else:
            self.evidence["full_suite"] = suite.broken_by(self.judge, self.instance, workspace)
            self.runs += 1

    @property
    def _expected(self) -> list[str]:
        return [*self.instance.fail_to_pass, *self.instance.pass_to_pass]

    def _apply(self, workspace: Path) -> None:
        with self.judge.session(self.instance, workspace) as session:
            applied = apply_patch(session, self.patch)
        if not applied.by and applied.exhausted:
            self._blame_applying(applied.said)
        if not applied.by:
            self.evidence["applying"] = shown(applied.said.strip()[-1500:])
            raise Ended("apply_failed", applied.why_not)
        self.facts["applied_by"] = applied.by

    def _blame_applying(self, said: str) -> None:
        """End the trial without a verdict if no other patch can be applied either."""
        other = self.instance.patch or self.instance.test_patch
        with (
            self.judge.workspaces.fresh(self.instance) as workspace,
            self.judge.session(self.instance, workspace) as session,
        ):
            if not apply_patch(session, other).by:
                raise Ended("infra", f"{said.strip()[-500:]}, and neither can the reference solution be applied")

    def _restore(self, pristine: Path, workspace: Path) -> None:
        """Put back what is not the patch's to change. What it has changed is told by the tree itself, as a patch may be
        read in more than one way.
        """
        remove(workspace / DOT_GIT)
        copy_tree(pristine / DOT_GIT, workspace / DOT_GIT)
        changed = changed_paths(pristine, workspace)
        own = {path for file in read_diff(self.instance.patch) for path in file.paths}
        states = states_of(workspace, changed)
        infra = set(infra_paths(pristine, workspace, changed))
        # What the reference solution makes of such a file it was validated with, so that it stays, whoever wrote it.
        # A change that goes further, or less far, is another one.
        infra = {path for path in infra if states[path] != self.solution.get(path)} if infra else infra
        run = {*self.hidden.paths, *files_of(self.instance)}
        tests = {path for path in changed if path in run or (is_test(path) and path not in own)}
        for path in changed:
            _refuse_link(workspace, path)
        for path in sorted(infra | tests):
            clear_way(workspace, path)
            if os.path.lexists(pristine / path):
                (workspace / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(pristine / path, workspace / path, follow_symlinks=False)
        self.changes = digest_of(states, infra | tests)
        self.evidence["changes"] = self.changes
        self.facts["touches_test_infra"] = tuple(map(shown, sorted(infra - self.hidden.paths)))
        self.facts["restored"] = tuple(map(shown, sorted(tests - infra)))

    @property
    def solution(self) -> States:
        """What the reference solution changes."""
        memory, key = self.judge.memory.solutions, self.instance.digest
        if key not in memory:
            memory[key] = solution_of(self.judge.workspaces, self.instance, self.hidden)
        return memory[key]

    def _first_run(self, workspace: Path) -> RunOfTests:
        run = self.judge.test(self.instance, workspace)
        self.runs += 1
        self.facts["test_s"] = run.result.wall_s
        self.statuses = statuses_of(run)
        result = run.result
        self.evidence |= {
            "exit_code": result.exit_code,
            "results": None if run.structured is None else len(run.structured),
            "logged": len(run.logged),
            "isolation": self.judge.executor.probe().isolation,
            "max_rss_bytes": result.max_rss_bytes,
        }
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            text = run.log()
            if result.timed_out:
                text += f"\n\nTimeout error: {self.judge.limits.timeout_s:g} seconds exceeded."
            (self.keep / "test_output.txt").write_text(text, encoding="utf-8")
        if (cause := _exhausted(result)) is not None:
            self._blame(cause, f"the run used up its {_LIMITS[cause]}")
        # 126 and 127: a command could not be run; above 128 a signal ended it
        if not self.statuses or run.structured == {} or (result.exit_code or 0) > 125:
            said = run.output.strip().splitlines()
            self._blame("invalid", f"no test was run: {said[-1][:300] if said else 'no output'}")
        if run.structured is None and self._has_results:
            self._blame("invalid", "the runner left no results")
        return run

    @property
    def _has_results(self) -> bool:
        return is_pytest(command_of(self.instance))

    def _blame(self, status: Status, reason: str, passing_ones: bool = False) -> None:
        """End the trial: by a verdict if the tests can be run on the tree without the patch, else without one.

        Arguments:
            passing_ones: those that pass without the patch must do so now.
        """
        with self.judge.workspaces.fresh(self.instance) as workspace:
            self.hidden.write(workspace)
            run = self.judge.test(self.instance, workspace)
        self.runs += 1
        found = statuses_of(run)
        kept = [test for test in self.instance.pass_to_pass if status_of(test, found) is not None]
        if passing_ones:
            kept = [test for test in kept if status_of(test, found) not in (FAILED, ERROR)]
            kept = kept if len(kept) == len(self.instance.pass_to_pass) else []
        if run.result.ended and found and (kept or not self.instance.pass_to_pass):
            raise Ended(status, reason)
        raise Ended("infra", f"{reason}, and so it is without the patch")

    def _grade(self, run: RunOfTests) -> Verdict:
        return grade(self.instance, self.statuses)

    def _why(self, verdict: Verdict, run: RunOfTests) -> str:
        broken = [line for line in run.output.splitlines() if line.startswith("ERROR ")]
        missing = [test for test in self._expected if status_of(test, self.statuses) is None]
        if missing and broken:
            return f"{counted(len(missing), 'tests were')} not collected: {broken[0][:200]}"
        failing, lost = len(verdict.fail_to_pass.failure), len(verdict.pass_to_pass.failure)
        of = counted(len(self.instance.fail_to_pass), "tests")
        return f"not repaired: {failing} of {of}; failing now that passed: {lost}"

    def _control(self, untouched: Path) -> None:
        began = time.monotonic()
        exempt = self.instance.extra.get("control")
        known = exempt if isinstance(exempt, dict) else None
        memory, key = self.judge.memory.controls, (self.instance.digest, self.changes)
        if self.judge.reuse and known is not None and self.solution and self.changes == digest_of(self.solution):
            tests, copies, how = list[str](), list[str](), "validation"  # what does not fail with it is what is exempt
        elif self.judge.reuse and key in memory:
            (tests, copies), how = memory[key], "an equal patch"
        else:
            found = self._survivors_of_patch(untouched)
            if known is None and (found.tests or found.copies or found.missing):
                known = self._gold_control()
            tests = sorted((found.tests | found.missing) - set((known or {}).get("tests", [])))
            copies = sorted(found.copies - set((known or {}).get("copies", [])))
            memory[key] = tests, copies
            how = "a run"
        known = known or {}
        self.control_s = time.monotonic() - began
        self.evidence["control"] = {
            "tests": tests[:20],
            "copies": copies[:20],
            "exempt": len(known.get("tests", [])),
            "by": how,
        }
        if tests or copies:
            raise Ended("forged", f"tests that must fail pass: {', '.join([*tests, *copies][:3])}")
        if self.instance.fail_to_pass and set(self.instance.fail_to_pass) <= set(known.get("tests", [])):
            raise Ended("infra", "no test that the patch is to repair can be controlled")

    def _survivors_of_patch(self, prepared: Path) -> Survivors:
        try:
            return self._survivors(prepared)
        except _Endless:
            if not self.instance.patch.strip():
                raise
            self._gold_control()  # where it does not end either, the patch is not to blame
            raise Ended(
                "invalid", "its control does not come to an end, and that of the reference solution does"
            ) from None

    def _survivors(self, prepared: Path) -> Survivors:
        controls = write_controls(self.instance, prepared, self.instance.fail_to_pass)
        run = self.judge.test_control(self.instance, prepared)
        self.runs += 1
        if not run.result.ended:
            raise _Endless("The control run did not come to its end.")
        expected = {test: status for test in self._expected if (status := status_of(test, self.statuses))}
        return survivors(loosest(run), expected, controls)

    def _gold_control(self) -> dict[str, list[str]]:
        """What does not fail with the reference solution either, for instances that do not say."""
        if not self.instance.patch.strip():
            return {}
        with self.judge.workspaces.fresh(self.instance) as workspace:
            with self.judge.session(self.instance, workspace) as session:
                if not apply_patch(session, self.instance.patch).by:
                    return {}
            self.hidden.write(workspace)
            found = self._survivors(workspace)
        return {"tests": sorted(found.tests | found.missing), "copies": sorted(found.copies)}


def _is_text(patch: str) -> bool:
    try:
        patch.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


# What a machine says that has no room left for anybody; code that says it too is told from it by the tree without it
_STARVED = (
    "No space left on device",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "Too many open files",
)
_LIMITS: dict[Status, str] = {"timed_out": "time", "out_of_memory": "memory", "disk_full": "disk"}


def _exhausted(result: ExecResult) -> Status | None:
    if result.timed_out:
        return "timed_out"
    if result.oom_killed:
        return "out_of_memory"
    return "disk_full" if result.disk_exceeded else None


def _refuse_link(workspace: Path, path: str) -> None:
    place = workspace / path
    # Not Path.resolve, which refuses links that lead in a circle
    if place.is_symlink() and not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(workspace)):
        raise Ended("refused", f"{path}: a symbolic link to {os.readlink(place)}")
