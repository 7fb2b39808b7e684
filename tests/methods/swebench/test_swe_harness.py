"""Evaluation of many patches: resumed, reproducible, without a verdict where the surroundings fail; comparisons."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from swe_parts import BASE, FIXED, write_tree

from lmlab.errors import UserError
from lmlab.methods.swebench.building.leaks import scan_leaks, scan_repository
from lmlab.methods.swebench.commands.shared import say
from lmlab.methods.swebench.grading.regrading import report_of_logs
from lmlab.methods.swebench.grading.verdict import grade_log
from lmlab.methods.swebench.harness.choosing import choose
from lmlab.methods.swebench.harness.compare import compare, pass_at
from lmlab.methods.swebench.harness.controls.files import reached
from lmlab.methods.swebench.harness.environment import Environments, EnvironmentSpec
from lmlab.methods.swebench.harness.evaluate import Evaluated, _Job, _on_ray, evaluate, overlap, result_key
from lmlab.methods.swebench.harness.judge import Judge, Memory
from lmlab.methods.swebench.harness.result import Result
from lmlab.methods.swebench.harness.reward import RewardFn
from lmlab.methods.swebench.harness.testing import RunOfTests, run_tests
from lmlab.methods.swebench.harness.workspaces.applying import Applied
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore, changed_paths, tree_digest, unpack
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces, copied, diff_against
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import write_instances
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.report import evaluation_page
from lmlab.sandbox import Box, ExecResult, Limits, SandboxFailure, Session

_SOURCE = "calc/__init__.py"
_HALF = diff_of(BASE.get, {_SOURCE: BASE[_SOURCE].replace("return a - b", "return a + b")})


def _predictions(instance: Instance, patch: str | None, model: str = "a/model") -> dict[str, Prediction]:
    return {instance.instance_id: Prediction(instance.instance_id, model, patch)}


def test_a_run_is_resumed_by_what_was_judged_and_not_by_its_name(judge: Judge, built: Instance, tmp_path: Path) -> None:
    first = evaluate([built], _predictions(built, built.patch), judge, tmp_path, "run")
    assert (first.reused, first.report["resolved_ids"], str(first.share)[:20]) == (
        0,
        [built.instance_id],
        "1/1 resolved, 100.0 ",
    )
    again = evaluate([built], _predictions(built, built.patch), judge, tmp_path, "run")
    assert again.reused == 1 and again.results == first.results
    other = evaluate([built], _predictions(built, _HALF), judge, tmp_path, "run")
    assert other.reused == 0 and other.report["unresolved_ids"] == [built.instance_id]
    assert other.results[built.instance_id].failures == ("tests/test_calc.py::test_empty",)
    assert result_key(judge, built, _HALF) != result_key(replace(judge, control=False), built, _HALF)
    bases = [replace(judge, environments=Environments("e", True, base)) for base in (None, "python:3.11", "other:1")]
    assert len({result_key(each, built, _HALF) for each in bases}) == 3


def test_the_public_package_grades_our_logs_alike(
    judge: Judge, built: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("swebench.harness.run_evaluation", reason="swebench is not installed")
    from swebench.harness.run_evaluation import run_instance
    from swebench.harness.utils import make_test_spec

    monkeypatch.chdir(tmp_path)
    forged = diff_of(
        BASE.get,
        {
            _SOURCE: "import _pytest.python as p\np.Function.runtest = lambda self: None\nimport unittest\n"
            "unittest.TestCase._callTestMethod = lambda *a: None\n" + BASE[_SOURCE]
        },
    )
    for number, patch in enumerate((built.patch, _HALF, forged)):
        done = evaluate([built], _predictions(built, patch), judge, tmp_path, f"run{number}")
        log = tmp_path / "logs" / "run_evaluation" / f"run{number}" / "a__model" / built.instance_id / "test_output.txt"
        row = {**built.to_row("json"), "image": "none", "eval_script": ""}
        prediction = _predictions(built, patch)[built.instance_id].to_row()
        _, theirs = run_instance(make_test_spec(row), prediction, None, f"run{number}", rewrite_reports=True)
        ours = done.results[built.instance_id].resolved
        assert theirs[built.instance_id]["resolved"] == ours == grade_log(built, log.read_text()).resolved
        assert ours == (number == 0)


class _Broken:
    """An executor whose sessions break in a way that is chosen."""

    name = "bubblewrap"

    def __init__(self, judge: Judge, how: Callable[[Sequence[str]], None]) -> None:
        self._inner, self._how = judge.executor, how

    def probe(self) -> Any:
        return self._inner.probe()

    @contextmanager
    def open(self, box: Box, limits: Limits | None = None) -> Iterator[Session]:
        with self._inner.open(box, limits) as session:
            yield _BrokenSession(session, self._how)


class _BrokenSession:
    def __init__(self, inner: Session, how: Callable[[Sequence[str]], None]) -> None:
        self._inner, self._how, self.root = inner, how, inner.root
        self.place, self.put, self.get = inner.place, inner.put, inner.get

    def run(self, argv: Sequence[str], **options: Any) -> ExecResult:
        self._how(argv)
        return self._inner.run(argv, **options)


def _fail(error: Exception) -> Callable[[Sequence[str]], None]:
    def how(argv: Sequence[str]) -> None:
        raise error

    return how


@pytest.mark.parametrize(
    "error",
    [
        SandboxFailure("The sandbox was ended from outside (-9)."),
        OSError(28, "No space left on device"),
        OSError(12, "Cannot allocate memory"),
        PermissionError(13, "Permission denied"),
        OSError(7, "Argument list too long"),
    ],
)
def test_failures_of_the_surroundings_are_no_verdict_and_no_reward(
    error: Exception, judge: Judge, built: Instance, tmp_path: Path
) -> None:
    broken = replace(judge, executor=_Broken(judge, _fail(error)))
    done = evaluate([built], _predictions(built, built.patch), broken, tmp_path, "run")
    assert done.results[built.instance_id].status == "infra"
    assert done.report["error_ids"] == [built.instance_id] and done.report["completed_ids"] == []
    assert RewardFn([built], broken)(built.instance_id, built.patch) is None
    healed = evaluate([built], _predictions(built, built.patch), judge, tmp_path, "run")
    assert healed.reused == 0 and healed.report["resolved_ids"] == [built.instance_id]


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"environment": {"requirements": ["pytest"], "python": "/nonexistent/bin/python"}}, {}),
        ({"environment": {"requirements": [], "python": "2.1"}}, {}),
        ({"test_command": ["python", "-m", "no_such_runner"]}, {}),
        ({"test_command": ["no-such-program"]}, {}),
        ({"base_tree": "0" * 64}, {}),
        ({"test_files": ["tests/no_such_file.py"]}, {}),
        ({}, {"memory_mib": 8}),
        ({}, {"timeout_s": 0.05}),
        ({}, {"processes": 2}),
    ],
)
def test_a_runner_that_cannot_run_without_the_patch_either_is_no_verdict(
    changes: dict[str, Any], limits: dict[str, Any], judge: Judge, built: Instance
) -> None:
    if "processes" in limits and "processes" not in judge.executor.probe().enforced:
        pytest.skip("no control group limits processes here")
    instance = replace(built, extra={**built.extra, **changes})
    small = replace(judge, limits=judge.limits.model_copy(update=limits))
    result = small.judge(instance, built.patch)
    assert result.status == "infra", result


def test_a_very_long_list_of_tests_is_run(judge: Judge, built: Instance) -> None:
    files = ["tests/test_calc.py", *(f"./{'./' * 60}tests/test_calc.py" for _ in range(2200))]
    assert sum(map(len, files)) > 256 << 10
    assert judge.judge(replace(built, extra={**built.extra, "test_files": files}), built.patch).resolved


def test_rewards_are_the_same_again_and_again_and_for_several_at_once(judge: Judge, built: Instance) -> None:
    reward = RewardFn([built], judge, workers=2)
    pairs = [(built.instance_id, patch) for patch in (built.patch, _HALF, "", None)] * 2
    assert reward.many(pairs) == [1.0, 0.0, 0.0, 0.0] * 2
    assert reward.judged(built.instance_id, "").status == "empty_patch"
    with pytest.raises(UserError, match="Unknown instance 'owner__calk'"):
        reward("owner__calk", "")


def test_a_workspace_has_one_commit_and_no_way_to_the_solution(judge: Judge, built: Instance, tmp_path: Path) -> None:
    assert scan_leaks(built, judge) == []
    with judge.workspaces.fresh(built) as tree:
        assert git(tree, "log", "--all", "--format=%s %an %ad", "--date=unix").decode() == "base lmlab 0\n"
        first = git(tree, "rev-parse", "HEAD")
        (tree / "x").write_text("x")
        git(tree, "add", "--all")
        git(tree, "commit", "-q", "-m", "later")
        git(tree, "tag", "v2")
        git(tree, "remote", "add", "origin", "https://example.com/x")
        assert scan_repository(tree)[:3] == [
            "the workspace has 2 commits",
            "the workspace has a remote",
            "the workspace has tags",
        ]
    with judge.workspaces.fresh(built) as tree:
        assert git(tree, "rev-parse", "HEAD") == first
    later = EnvironmentSpec(requirements=(), python=str(_environment_with_the_fix(built, tmp_path)))
    leaky = replace(built, extra={**built.extra, "environment": later.model_dump(mode="json")})
    assert any("has lines of the solution" in each for each in scan_leaks(leaky, judge))


def _environment_with_the_fix(built: Instance, folder: Path) -> Path:
    source = Path(str(built.extra["environment"]["python"])).parent.parent
    shutil.copytree(source, folder / "env", symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "calc_fixed.py").write_text(FIXED[_SOURCE])
    return folder / "env" / "bin" / "python"


def test_hidden_tests_are_in_no_workspace_before_a_patch_is_applied(judge: Judge, built: Instance) -> None:
    seen: list[str] = []

    def look(argv: Sequence[str]) -> None:
        seen.append(" ".join(argv))

    class Looking(_Broken):
        @contextmanager
        def open(self, box: Box, limits: Limits | None = None) -> Iterator[Session]:
            text = (box.workspace / "tests" / "test_calc.py").read_text()
            with self._inner.open(box, limits) as session:
                yield _BrokenSession(session, lambda argv: seen.append(f"{argv[0]} {'test_empty' in text}"))

    judge_ = replace(judge, executor=Looking(judge, look))
    assert judge_.judge(built, built.patch).resolved
    assert seen[0] == "sh False" and all(each == "python True" for each in seen[1:])


def test_what_a_workspace_has_changed_is_told_with_its_own_git_out_of_the_way(judge: Judge, built: Instance) -> None:
    with judge.workspaces.fresh(built) as tree:
        (tree / _SOURCE).write_text(FIXED[_SOURCE])
        (tree / "new.py").write_text("x\n")
        (tree / ".git" / "config").write_text("[core]\n\tfsmonitor = touch /tmp/owned-by-git\n")
        (tree / ".git" / "hooks").mkdir(exist_ok=True)
        patch = diff_against(judge.workspaces.pristine(built), tree)
    assert judge.judge(built, patch).resolved
    assert "new.py" in patch and not Path("/tmp/owned-by-git").exists()


def test_trees_are_stored_once_and_unpacked_as_they_were(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "x").write_bytes(b"x\r\n")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("a/x")
    store = TreeStore(tmp_path / "store")
    digest = store.add(tree)
    assert store.add(tree) == digest == tree_digest(tree) and len(list((tmp_path / "store").iterdir())) == 1
    store.unpack(digest, tmp_path / "again")
    assert changed_paths(tree, tmp_path / "again") == {}
    (tmp_path / "again" / "a" / "x").write_text("y")
    assert changed_paths(tree, tmp_path / "again") == {"a/x": "changed"}
    with pytest.raises(UserError, match="is not at"):
        store.unpack("1" * 64, tmp_path / "other")


@pytest.mark.parametrize("name", ["../out", "/tmp/out-of-the-archive", "a/../../out"])
def test_archives_that_reach_out_are_refused(name: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    inside = tmp_path / "inside"
    inside.mkdir()
    if name.startswith("/"):
        unpack(data.getvalue(), inside)  # taken as a path inside
        assert (inside / name.lstrip("/")).exists()
    else:
        with pytest.raises(UserError, match="cannot be unpacked"):
            unpack(data.getvalue(), inside)
    assert not (tmp_path / "out").exists()


def _archive(*members: tuple[str, str | bytes]) -> bytes:
    """An archive of files (bytes) and links (text)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
    return data.getvalue()


def test_git_runs_no_program_that_an_archive_names(tmp_path: Path) -> None:
    clean = f'[filter "x"]\n\tclean = touch {tmp_path}/owned; cat\n'.encode()
    members = [(".gitattributes", b"* filter=x\n"), ("a", b"x\n"), ("b/a", b"x\n")]
    members += [
        (f"{top}{dot}/{name}", data)
        for top in ("", "b/")
        for dot in (".git", ".GIT")
        for name, data in (("config", clean), ("HEAD", b"ref: refs/heads/main\n"))
    ]
    tree = tmp_path / "tree"
    tree.mkdir()
    unpack(_archive(*members), tree)
    commit_tree(tree)
    assert not (tmp_path / "owned").exists() and not list(tree.glob("*/.git"))
    assert git(tree, "ls-files").split() == [b".gitattributes", b"a", b"b/a"]


@pytest.mark.parametrize(
    "members",
    [
        [("a", ".."), ("a/x", b"x")],
        [("a", "/tmp"), ("a/x", b"x")],
        [("a/b", "../.."), ("a/b/x", b"x")],
        [("a", "."), ("a/a/a/x", "../../../..")],
        [("x", b"x"), ("x", "x")],
    ],
)
def test_links_of_an_archive_lead_nowhere_outside(members: list[tuple[str, str | bytes]], tmp_path: Path) -> None:
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(_archive(*members), inside)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["side"]
    assert not any(path.is_symlink() and not path.resolve().is_relative_to(inside) for path in inside.rglob("*"))


@pytest.mark.parametrize(
    "data", [b"", b"no archive", b"\x1f\x8b\x08\x00" + b"x" * 30, b"\xfd7zXZ\x00" + b"x" * 30, _archive()[:15]]
)
def test_damaged_archives_are_told_in_a_sentence(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_workspace_is_removed_however_deep_and_whatever_its_modes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with copied(tree) as workspace:
        folder = os.open(workspace, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.close(folder)
        (workspace / "closed" / "x").mkdir(parents=True)
        (workspace / "closed").chmod(0)
    assert not workspace.parent.exists()


def test_a_tree_that_cannot_be_copied_is_a_failure_of_the_surroundings(
    judge: Judge, built: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge.workspaces.pristine(built)
    cp = tmp_path / "cp"
    cp.write_text("#!/bin/sh\necho 'cp: error writing x: No space left on device' >&2\nexit 1\n")
    cp.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = judge.judge(built, built.patch)
    assert result.status == "infra" and "No space left on device" in result.reason


@pytest.mark.parametrize(
    ("others", "status"), [(Applied("git apply", ""), "apply_failed"), (Applied("", "x"), "infra")]
)
def test_a_patch_that_is_not_applied_in_time_is_blamed_only_if_another_one_is(
    others: Applied, status: str, judge: Judge, built: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(session: Session, patch: str) -> Applied:
        return others if patch == built.patch else Applied("", "applying it used up the limits", exhausted=True)

    monkeypatch.setattr("lmlab.methods.swebench.harness.trial.apply_patch", apply)
    assert judge.judge(built, _HALF).status == status


@pytest.mark.parametrize(("runs", "status"), [(1, "unresolved"), (2, "infra")])
def test_a_machine_without_room_is_no_verdict_though_tests_ran(
    runs: int, status: str, judge: Judge, built: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [True] * runs  # how many runs find the disk full

    def run(*arguments: Any, **options: Any) -> RunOfTests:
        found = run_tests(*arguments, **options)
        if not left:
            return found
        left.pop()
        full = found.output + "E   OSError: [Errno 28] No space left on device"
        bad = dict.fromkeys(found.logged, "FAILED")
        return replace(found, output=full, logged=bad, structured=bad, result=replace(found.result, exit_code=1))

    monkeypatch.setattr("lmlab.methods.swebench.harness.judge.run_tests", run)
    result = judge.judge(built, built.patch)
    assert (result.status, result.runs, left) == (status, 2, [])


def test_a_repository_in_a_workspace_is_a_plain_folder(judge: Judge, built: Instance, tmp_path: Path) -> None:
    with judge.workspaces.fresh(built) as tree:
        (tree / "inner").mkdir()
        (tree / "inner" / "x.py").write_bytes(b"# caf\xe9\n")
        commit_tree(tree / "inner")
        git(tree / "inner", "config", "core.fsmonitor", f"touch {tmp_path}/owned; false")
        (tree / "calc" / ".git").write_text("gitdir: /etc\n")
        patch = diff_against(judge.workspaces.pristine(built), tree)
    assert "b/inner/x.py" in patch and "Subproject" not in patch and not (tmp_path / "owned").exists()
    patch.encode()


def _summary(statuses: Mapping[str, str], model: str = "m") -> dict[str, Any]:
    return {
        "model": model,
        "provenance": {"dataset": "d", "harness": 1},
        "instances": {name: {"status": status} for name, status in statuses.items()},
    }


def test_two_runs_are_compared_on_the_same_instances() -> None:
    one = {f"i{n}": "resolved" if n < 10 else "unresolved" for n in range(20)}
    two = {f"i{n}": "resolved" if n >= 2 else "unresolved" for n in range(20)} | {"i19": "infra"}
    found = compare(_summary(one), _summary(two))
    assert (found.both, found.only_first, found.only_second, found.neither, found.masked) == (8, 2, 9, 0, 1)
    assert found.difference.value == pytest.approx(7 / 19)
    assert found.p == pytest.approx(2 * sum((1, 11, 55)) / 2**11)
    with pytest.raises(UserError, match="other instances"):
        compare(_summary(one), {**_summary(two), "provenance": {"dataset": "e", "harness": 1}})


def test_pass_at_k_is_unbiased_and_passes_over_what_has_no_verdict() -> None:
    runs = [
        _summary({"a": "resolved", "b": "unresolved"}),
        _summary({"a": "unresolved", "b": "unresolved"}),
        _summary({"a": "resolved", "b": "unresolved"}),
    ]
    assert pass_at(runs, 1).value == pytest.approx((2 / 3 + 0) / 2)
    assert pass_at(runs, 2).value == pytest.approx((1 + 0) / 2)
    with pytest.raises(UserError, match="pass@4 needs 4 tries"):
        pass_at(runs, 4)


def test_two_instances_leave_wide_intervals() -> None:
    all_, none = _summary({"a": "resolved", "b": "resolved"}), _summary({"a": "unresolved", "b": "unresolved"})
    found = compare(all_, none)
    assert found.difference.value == found.difference.low == -1 and found.difference.high > 0 and found.p == 0.5
    assert compare(all_, all_ | {"model": "n"}).difference.bounds == pytest.approx((-0.658, 0.658), abs=1e-3)
    assert pass_at([all_, all_], 2).bounds == pytest.approx((0.342, 1.0), abs=1e-3)  # Wilson, 2 of 2


def test_tries_are_of_one_model_and_of_the_same_instances() -> None:
    one = _summary({"a": "resolved"}, "gold")
    with pytest.raises(UserError, match="of 2: gold, other"):
        pass_at([one, _summary({"a": "unresolved"}, "other")], 2)
    assert pass_at([one | {"model": f"m.{sample}"} for sample in range(2)], 2).value == 1  # `infer --samples 2`
    with pytest.raises(UserError, match="other instances"):
        pass_at([one, {**one, "provenance": {"dataset": "e", "harness": 1}}], 2)


def test_why_no_try_takes_a_patch_is_a_sentence() -> None:
    tries = "== git apply --verbose\n{}\n== patch --batch\n{}\n"
    garbage = tries.format('error: No valid patches in input (allow with "--allow-empty")', "patch: **** Only garbage")
    assert Applied("", garbage).why_not == "it is no patch: git finds no change of a file in it"
    late = tries.format("Checking patch a.py...\nerror: while searching for:\nx\nerror: patch failed: a.py:1", "")
    assert Applied("", late).why_not == "neither git apply nor patch takes it: while searching for:"
    assert Applied("", "").why_not.endswith("they say nothing")


def test_a_report_of_logs_has_a_row_for_patches_that_came_to_no_test_run(tmp_path: Path, built: Instance) -> None:
    folder = tmp_path / "logs" / "run" / "model" / built.instance_id
    folder.mkdir(parents=True)
    (folder / "patch.diff").write_text("no diff")
    (folder / "run_instance.log").write_text("apply_failed: it is no patch\n")
    (row,) = report_of_logs(tmp_path, [built], None, False, False)
    assert row.untested == {built.instance_id} and row.report["error_ids"] == [built.instance_id]
    assert row.row()[1:6] == ["0", "0", "0", "0", "1"] and row.row()[-1].startswith("0.0 % (0.0 to 79")
    (folder / "run_instance.log").write_text("infra: no sandbox\n")
    with pytest.raises(UserError, match="has no logs"):
        report_of_logs(tmp_path, [built], None, False, False)


@pytest.mark.slow
def test_a_killed_evaluation_loses_nothing_and_judges_nothing_twice(
    judge: Judge, built: Instance, tmp_path: Path, repository: Path
) -> None:
    folder = tmp_path / "benchmark"
    instances = [replace(built, instance_id=f"owner__calc-{number}") for number in range(6)]
    write_instances(folder / "instances.jsonl", instances)
    shutil.copytree(judge.workspaces.trees.folder, folder / "trees")
    command = ["swe", "eval", "-i", str(folder / "instances.jsonl"), "-p", "gold", "-o", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache"), "--timeout-s", "60", "-w", "2"]
    results = tmp_path / "out" / "results"
    times: dict[Path, int] = {}
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-m", "lmlab", *command], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while len(list(results.glob("*/*/result.json"))) < wanted and time.monotonic() < end:
            time.sleep(0.05)
        process.kill()
        process.wait()
        for path in results.glob("*/*/result.json"):
            assert times.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-m", "lmlab", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6/6 resolved" in done.stdout
    assert all(path.stat().st_mtime_ns == before for path, before in times.items()) and len(times) >= 3
    assert json.loads((tmp_path / "out" / "gold.run.json").read_text())["resolved_instances"] == 6


def test_commands_refuse_what_they_cannot_do(lmlab: Callable[..., Any], built: Instance, tmp_path: Path) -> None:
    write_instances(tmp_path / "i.jsonl", [built])
    base = ("swe", "eval", "-i", tmp_path / "i.jsonl", "-p", "gold", "-o", tmp_path / "out")
    for options, message in (
        (("--run-id", "../x"), "is no name"),
        (("--shard", "3/2"), "expected I/N"),
        (("--executor", "local"), "has no walls"),
        (("--repair", "much"), "repair: input should be 'raw', 'recount', 'minimal' or 'anchor'"),
        (("--require-limits", "luck"), "nothing holds the limits of luck"),
    ):
        done = lmlab(*base, *options)
        assert done.code == 2 and message in done.err, done.err
    # In a cache of its own: a tree that other tests have unpacked is found by what it holds
    lost = lmlab(*base, "--cache", tmp_path / "cache")
    assert lost.code == 1 and "No verdict" in lost.out and "is not at" in lost.out


def test_a_page_says_what_it_leaves_out(tmp_path: Path) -> None:
    ids = [f"o__r-{number:03}" for number in range(201)]
    instances = [Instance(name, patch="") for name in ids]
    large = "+" + "x" * 30_000
    results = {name: Result(name, "unresolved", "none", {}) for name in ids}
    rows = {name: {"status": "unresolved", "reason": "none", "test_s": 1.0} for name in ids}
    summary = {"provenance": {"isolation": "none", "control": True, "enforced": {}}, "seconds": 1.0}
    report = {"resolved_ids": [], "total_instances": 201, "resolved_instances": 0}
    done = Evaluated(results, report, tmp_path / "x", {**summary, "statuses": {}, "instances": rows}, 0)
    patches = {name: Prediction(name, "m", large if name == ids[0] else "+\ud800") for name in ids}
    page = evaluation_page(done, instances, patches, tmp_path).write(tmp_path / "page.html").read_text()
    assert "its first 20,000 characters of 30,001" in page and page.count("<details") == 200
    assert "The first 200 of 201 instances" in page


def test_what_others_have_printed_is_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("No verdict on a: \x1b[2J\x1b]0;title\x07\ud800")
    assert capsys.readouterr().out == "No verdict on a: [2J]0;title\\ud800\n"


def test_the_example_tells_the_reference_from_a_wrong_patch_and_a_forged_one(
    judge: Judge, environment: EnvironmentSpec, tmp_path: Path
) -> None:
    script = Path(__file__).parents[3] / "examples" / "swebench.py"
    command = [sys.executable, str(script), environment.python, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["reference: resolved", "wrong: unresolved", "forged: forged"], done.stderr


def test_a_control_is_not_run_again_for_what_it_is_known_of_and_verdicts_are_equal(
    judge: Judge, built: Instance
) -> None:
    other = diff_of(BASE.get, {_SOURCE: FIXED[_SOURCE].replace("return a + b", "return b + a")})
    hooks = "import unittest, _pytest.python as p\np.Function.runtest = lambda self: None\n"
    hooks += "unittest.TestCase._callTestMethod = lambda *a: None\n"
    forged = diff_of(BASE.get, {_SOURCE: hooks + BASE[_SOURCE]})
    # The reference solution with a file more is no longer what was validated
    beside = diff_of(BASE.get, {_SOURCE: FIXED[_SOURCE], "calc/more.py": "x = 1\n"})
    once, every = replace(judge, memory=Memory()), replace(judge, reuse=False)
    for patch, runs in ((built.patch, (1, 1)), (other, (2, 1)), (forged, (2, 1)), (beside, (2, 1)), (_HALF, (1, 1))):
        full, first, again = every.judge(built, patch), once.judge(built, patch), once.judge(built, patch)
        assert full.status == first.status == again.status
        assert full.reason.partition(":")[0] == again.reason.partition(":")[0]
        assert (first.runs, again.runs) == runs and full.runs == (1 if patch == _HALF else 2)
    assert again.status == "unresolved" and once.judge(built, forged).status == "forged"
    unknown = replace(built, extra={key: value for key, value in built.extra.items() if key != "control"})
    assert replace(judge, memory=Memory()).judge(unknown, built.patch).runs == 2


def test_only_tests_that_can_be_reached_are_controlled(tmp_path: Path) -> None:
    files = {
        "tests/test_a.py": "from tests.common import Common\nimport helpers_test\n",
        "tests/common.py": "from .base import testing\n",
        "tests/base/__init__.py": "",
        "tests/test_other.py": "def test_other():\n    pass\n",
        "helpers_test.py": "",
        "tests/conftest.py": "pytest_plugins = ['tests.plugged']\n",
        "tests/plugged.py": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert set(files) - set(reached(tmp_path, ["tests/test_a.py"], sorted(files))) == {"tests/test_other.py"}


def test_what_a_killed_run_has_left_of_a_tree_goes(judge: Judge, built: Instance, tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path, judge.workspaces.trees)
    left = tmp_path / "pristine" / f".new-{built.extra['base_tree']}"
    (left / "half").mkdir(parents=True)
    place = workspaces.pristine(built)
    assert not (place / "half").exists() and [each.name for each in place.parent.glob(".new-*")] == []
    assert tree_digest(place) == built.extra["base_tree"]


def test_a_cluster_judges_as_this_machine_does(judge: Judge, built: Instance, tmp_path: Path) -> None:
    import pickle

    job = _Job(judge, built, built.patch, result_key(judge, built, built.patch), tmp_path / "far", True)
    mark = tmp_path / "far" / "mark"
    unseen = _on_ray((job, mark))
    assert unseen.status == "infra" and f"does not see the folder '{tmp_path / 'far'}'" in unseen.reason
    write_tree(tmp_path / "far", {"mark": ""})
    blind = replace(judge, workspaces=Workspaces(tmp_path / "cache", TreeStore(tmp_path / "no-trees")))
    unseen = _on_ray((replace(job, judge=blind), mark))
    assert f"does not see the folder '{tmp_path / 'no-trees'}'" in unseen.reason
    far = _on_ray(pickle.loads(pickle.dumps((job, mark))))  # noqa: S301 - as it goes to another machine
    assert far.status == "resolved"
    pytest.importorskip("ray", reason="ray is not installed")
    done = evaluate([built], _predictions(built, _HALF), judge, tmp_path / "out", "run", backend="ray")
    assert done.results[built.instance_id].status == "unresolved"
    assert not list((tmp_path / "out").glob(".seen-*"))


def _run(name: str, rows: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    instances = {key: {"status": status, "evidence": {"changes": changes}} for key, (status, changes) in rows.items()}
    return {"model": name, "instances": instances, "provenance": {}}


def test_a_choice_by_agreement_is_told_with_auc_and_calibration() -> None:
    good, bad = ("resolved", "a"), ("unresolved", "b")
    runs = [
        _run("m", {"x": good, "y": bad}),
        _run("m", {"x": good, "y": ("resolved", "c")}),
        _run("m", {"x": bad, "y": bad}),
    ]
    found = choose(runs, 3)
    # Of x two agree and are right, of y two agree and are wrong
    assert (found.chosen, found.one, found.any, found.issues) == (0.5, 0.5, 1.0, 2)
    # Scores of right ones: 2/3, 2/3, 1/3; of wrong ones: 1/3, 2/3, 2/3
    assert found.auc == pytest.approx(0.5) and found.ece == pytest.approx(
        (4 * abs(2 / 3 - 1 / 2) + 2 * abs(1 / 3 - 1 / 2)) / 6
    )
    assert choose(runs, 1).chosen == 0.5 and choose(runs[:1], 1).auc == 0.5
    with pytest.raises(UserError, match="needs 4 tries"):
        choose(runs, 4)


def test_costs_and_lines_of_the_solution_are_counted(judge: Judge, built: Instance, tmp_path: Path) -> None:
    half = Prediction(built.instance_id, "m", _HALF, {"cost": 0.25})
    done = evaluate([built], {built.instance_id: half}, judge, tmp_path, "run")
    assert done.summary["cost_usd"] == 0.25 and done.summary["cost_usd_per_resolved"] is None
    # Of the longer lines that the solution adds this one has none
    assert done.summary["lines_of_the_solution"] == {"patches": 1, "mean": 0.0}
    assert overlap(built.patch, built.patch) == 1.0 and overlap("", _HALF) is None
