"""Which candidates are instances: tests that fail before and pass after the change, every time."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmlab.errors import LmlabError
from lmlab.methods.swebench.building.candidate import Candidate, Reason, Rejection
from lmlab.methods.swebench.building.leaks import scan_leaks
from lmlab.methods.swebench.building.settings import ValidateConfig
from lmlab.methods.swebench.grading.parsers.status import ERROR, FAILED, StatusMap
from lmlab.methods.swebench.harness.controls.control import survivors
from lmlab.methods.swebench.harness.controls.files import write_controls
from lmlab.methods.swebench.harness.environment import EnvironmentFailure, EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.testing import RunOfTests, command_of, loosest, passing
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.harness.workspaces.workspace import HiddenTests
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.sandbox import SandboxFailure
from lmlab.words import counted

_NAME_ERRORS = ("ImportError", "AttributeError", "ModuleNotFoundError")


class _Rejected(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Runs:
    """Outcomes in all runs of one state of the tree."""

    maps: list[StatusMap]
    disputed: set[str]
    seconds: list[float]
    first: RunOfTests

    @property
    def flaky(self) -> set[str]:
        """Tests whose outcome is not the same in all runs."""
        names = {name for each in self.maps for name in each}
        return {name for name in names if len({each.get(name) for each in self.maps}) > 1}


def validate(
    candidate: Candidate, judge: Judge, environment: EnvironmentSpec | None = None, config: ValidateConfig | None = None
) -> Instance | Rejection:
    """Run the tests before and after the change, again and again.

    Arguments:
        environment: what the tests need, by default pytest alone.
    """
    config = config or ValidateConfig()
    began = time.monotonic()
    spec = environment or judge.environment_of(candidate.instance)
    instance = replace(
        candidate.instance, extra={**candidate.instance.extra, "environment": spec.model_dump(mode="json")}
    )
    try:
        found = _validated(instance, judge, spec, config)
    except _Rejected as rejected:
        return Rejection(instance.instance_id, rejected.reason, rejected.detail)
    except EnvironmentFailure as failure:
        return Rejection(instance.instance_id, "environment_failed", failure.message)
    except (SandboxFailure, OSError) as failure:
        return Rejection(instance.instance_id, "sandbox_failed", str(failure).splitlines()[0])
    except LmlabError as failure:
        return Rejection(instance.instance_id, "test_patch_conflict", failure.message)
    extra = {**found.extra, "validated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    extra["validation_s"] = round(time.monotonic() - began, 2)
    return replace(found, extra=extra)


def _validated(instance: Instance, judge: Judge, spec: EnvironmentSpec, config: ValidateConfig) -> Instance:
    built = judge.built(instance)
    hidden = judge.workspaces.hidden_tests(instance)
    before = _runs(instance, judge, hidden, config, config.before_runs, patched=False)
    after = _runs(instance, judge, hidden, config, config.repeats, patched=True)
    if not any(after.maps):
        said = after.first.output.strip().splitlines()
        raise _Rejected("no_tests_collected", said[-1][:300] if said else "")
    errors = [name for name, status in after.maps[0].items() if status in (FAILED, ERROR)]
    if config.reject_after_errors and errors:
        raise _Rejected("after_has_errors", f"{len(errors)}, such as {errors[0]}")
    if after.first.result.exit_code not in (0, 1):
        raise _Rejected("no_tests_collected", f"the runner ended with {after.first.result.exit_code}")
    flaky = before.flaky | after.flaky
    dropped = after.disputed
    passed = {name for name, status in after.maps[0].items() if passing(status)}
    repaired = sorted(name for name in passed if not passing(before.maps[0].get(name)))
    kept = sorted(name for name in passed if passing(before.maps[0].get(name)))
    if not repaired:
        raise _Rejected("no_f2p", f"{counted(len(kept), 'tests')} passed before and after")
    fail_to_pass = tuple(name for name in repaired if name not in flaky | dropped)
    pass_to_pass = tuple(name for name in kept if name not in flaky | dropped)
    if not fail_to_pass:
        raise _Rejected("flaky_only", counted(len(repaired), "tests"))
    unstated = _unstated_names(before.first)
    if unstated and config.reject_name_errors:
        raise _Rejected("no_f2p", f"the tests ask for names that the issue does not give: {unstated}")
    found = replace(
        instance,
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        extra={
            **instance.extra,
            "test_command": shlex.join(command_of(instance)),
            "environment": spec.model_dump(mode="json"),
            "environment_lock": list(built.lock),
            "flaky": sorted(flaky),
            "disputed": sorted(before.disputed | after.disputed),
            "fail_after": len(errors),
            "requires_unstated_names": unstated,
            "run_s": {"before": before.seconds, "after": after.seconds},
        },
    )
    found = replace(found, extra={**found.extra, "control": _control_of_gold(found, judge, hidden, after.maps[0])})
    leaks = scan_leaks(found, judge)
    if leaks and config.reject_leaks:
        raise _Rejected("leak", "; ".join(leaks)[:300])
    return replace(found, extra={**found.extra, "leaks": leaks})


def apply_gold(instance: Instance, tree: Path) -> None:
    """Apply the reference solution to a tree; it is the data set's and no model's, so that this happens outside.

    Raises:
        _Rejected: it does not apply.
    """
    if instance.patch.strip():
        done = run_git(tree, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode())
        if done.returncode != 0:
            raise _Rejected("patch_conflict", done.stderr.decode("utf-8", "replace").strip()[:300])


def _runs(
    instance: Instance, judge: Judge, hidden: HiddenTests, config: ValidateConfig, count: int, patched: bool
) -> _Runs:
    maps, disputed, seconds, first = [], set[str](), [], None
    for seed in [0] * count + list(config.hash_seeds):
        with judge.workspaces.fresh(instance) as tree:
            if patched:
                apply_gold(instance, tree)
            hidden.write(tree)
            run = judge.test(instance, tree, PYTHONHASHSEED=str(seed))
        if run.result.timed_out:
            raise _Rejected("timeout", f"{'after' if patched else 'before'} the change: {judge.limits.timeout_s:g} s")
        first = first or run
        maps.append(run.logged)
        disputed |= _disputed(run)
        seconds.append(round(run.result.wall_s, 3))
        if patched and not run.logged:
            break
    assert first is not None
    return _Runs(maps, disputed, seconds, first)


def _disputed(run: RunOfTests) -> set[str]:
    """Tests of which the log says another thing than the runner's results."""
    if run.structured is None:
        return set()
    written: dict[str, set[bool]] = {}
    for name, status in run.structured.items():
        written.setdefault(name.split()[0] if name.split() else name, set()).add(passing(status))
    return {name for name, status in run.logged.items() if name in written and written[name] != {passing(status)}}


def _unstated_names(run: RunOfTests) -> bool:
    """Whether tests fail before the change since a name is not there."""
    return any(
        line.startswith("E  ") and any(word in line for word in _NAME_ERRORS) for line in run.output.splitlines()
    )


def _control_of_gold(
    instance: Instance, judge: Judge, hidden: HiddenTests, statuses: Mapping[str, str]
) -> dict[str, Sequence[str]]:
    """Which tests of a control do not fail with the reference solution (they expect any exception, for instance).

    Raises:
        _Rejected: no test that is to be repaired can be controlled.
    """
    with judge.workspaces.fresh(instance) as tree:
        apply_gold(instance, tree)
        hidden.write(tree)
        controls = write_controls(instance, tree, instance.fail_to_pass)
        run = judge.test_control(instance, tree)
    if not run.result.ended:
        raise _Rejected("uncontrolled", f"the control does not end within the limits ({run.result.wall_s:.0f} s)")
    expected: dict[str, Any] = {
        test: statuses[test] for test in (*instance.fail_to_pass, *instance.pass_to_pass) if test in statuses
    }
    found = survivors(loosest(run), expected, controls)
    exempt = sorted(found.tests | found.missing)
    if set(instance.fail_to_pass) <= set(exempt):
        raise _Rejected("uncontrolled", f"bodies that raise do not make them fail: {exempt[:3]}")
    return {"tests": exempt, "copies": sorted(found.copies)}
