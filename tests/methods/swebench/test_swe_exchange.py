"""Instances in the forms of other harnesses, and variants that measure: impossible ones, all tests, covered lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from swe_parts import BASE, FIXED, write_tree

from lmlab.errors import UserError
from lmlab.methods.swebench.building.adequacy import adequacy
from lmlab.methods.swebench.building.coverage import executable_lines
from lmlab.methods.swebench.building.impossible import contradicted, impossible
from lmlab.methods.swebench.exchange.harbor import read_harbor, write_harbor
from lmlab.methods.swebench.exchange.tasks import with_script
from lmlab.methods.swebench.exchange.verifiers import write_verifiers
from lmlab.methods.swebench.grading.run_report import log_folder
from lmlab.methods.swebench.harness.evaluate import evaluate
from lmlab.methods.swebench.harness.judge import Judge, Memory
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore, unpack
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import load_instances, write_instances
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.instances.task_repository import check_instance, write_task_repository
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.report import evaluation_page

_SOURCE = "calc/__init__.py"
_HALF = diff_of(BASE.get, {_SOURCE: BASE[_SOURCE].replace("return a - b", "return a + b")})


def _reward(task: Path, judge: Judge, instance: Instance, solve: bool, folder: Path) -> str | None:
    """What a task's own scripts say, run as in its container but for the places."""
    testbed, logs = folder / "testbed", folder / "logs" / "verifier"
    testbed.mkdir(parents=True)
    logs.mkdir(parents=True)
    (logs / "reward.txt").write_text("1")  # written by an agent
    unpack((task / "environment" / "tree.tar.gz").read_bytes(), testbed)
    tests = folder / "tests"
    shutil.copytree(task / "tests", tests)
    places = {"/logs/verifier": str(logs), "/testbed": str(testbed), "/tests/": f"{tests}/"}
    for script in (*tests.glob("*.py"), *tests.glob("*.sh")):
        text = script.read_text()
        for old, new in places.items():
            text = text.replace(old, new)
        script.write_text(text)
    if solve:
        text = (task / "solution" / "solve.sh").read_text().replace("/testbed", str(testbed))
        subprocess.run(["bash", "-c", text], check=True, capture_output=True)
    python = judge.environments.ensure(judge.environment_of(instance)).python
    assert python is not None
    path = f"{python.parent}:{os.environ['PATH']}"
    subprocess.run(["bash", str(tests / "test.sh")], check=False, capture_output=True, env={"PATH": path})
    reward = logs / "reward.txt"
    return reward.read_text() if reward.exists() else None


def test_tasks_of_harbor_reward_the_solution_and_come_back_as_they_were(
    judge: Judge, built: Instance, tmp_path: Path
) -> None:
    (name,) = write_harbor(tmp_path / "tasks", [built], judge)
    task = tmp_path / "tasks" / name
    assert _reward(task, judge, built, True, tmp_path / "one") == "1"
    assert _reward(task, judge, built, False, tmp_path / "two") == "0"
    seen = [each for each in task.rglob("*") if each.is_file() and each.parts[len(task.parts)] in ("environment",)]
    assert sorted(each.name for each in seen) == ["Dockerfile", "tree.tar.gz"]
    assert "return a + b" not in (task / "instruction.md").read_text()
    told = _toml(task / "task.toml")
    assert told["metadata"]["instance_id"] == built.instance_id and told["environment"]["allow_internet"] is False
    trees = TreeStore(tmp_path / "trees")
    (back,) = read_harbor(tmp_path / "tasks", trees)
    assert back == built and back.digest == built.digest
    assert [each.name for each in trees.folder.iterdir()] == [f"{built.extra['base_tree']}.tar.gz"]
    (tmp_path / "calc").mkdir()
    unpack((trees.folder / f"{built.extra['base_tree']}.tar.gz").read_bytes(), tmp_path / "calc")
    commit_tree(tmp_path / "calc")
    commit = git(tmp_path / "calc", "rev-parse", "HEAD").decode().strip()
    extra = {key: value for key, value in built.extra.items() if key != "base_tree"}
    by_commit = replace(built, instance_id="by-commit", repo="owner/calc", base_commit=commit, extra=extra)
    found = Workspaces(tmp_path / "cache", TreeStore(tmp_path / "others"), tmp_path)
    write_harbor(tmp_path / "second", [by_commit], replace(judge, workspaces=found))
    (back,) = read_harbor(tmp_path / "second", trees)  # where it is read there is no repository
    assert back.extra["base_tree"] == built.extra["base_tree"]
    (other,) = (tmp_path / "second").glob("*/environment/tree.tar.gz")
    with tarfile.open(other, "w:gz"):
        pass
    with pytest.raises(UserError, match="is not the tree of by-commit"):
        list(read_harbor(tmp_path / "second", trees))
    (task / "tests" / "instance.json").unlink()
    with pytest.raises(UserError, match="was not written by"):
        list(read_harbor(tmp_path / "tasks", trees))


def test_hidden_programs_stay_programs_in_tasks_of_harbor(judge: Judge, built: Instance, tmp_path: Path) -> None:
    program = "diff --git a/tests/run.sh b/tests/run.sh\nnew file mode 100755\n--- /dev/null\n+++ b/tests/run.sh\n"
    instance = replace(built, test_patch=f"{built.test_patch}{program}@@ -0,0 +1 @@\n+echo run\n")
    (name,) = write_harbor(tmp_path / "tasks", [instance], judge)
    _reward(tmp_path / "tasks" / name, judge, instance, True, tmp_path / "run")
    modes = {
        path: os.stat(tmp_path / "run" / "testbed" / path).st_mode & 0o777
        for path in ("tests/run.sh", "tests/test_calc.py")
    }
    assert modes == {"tests/run.sh": 0o755, "tests/test_calc.py": 0o644}


def test_a_task_repository_brings_its_trees_along_and_back(
    lmlab: Callable[..., Any], judge: Judge, built: Instance, tmp_path: Path
) -> None:
    write_instances(tmp_path / "own" / "instances.jsonl", [built])
    shutil.copytree(judge.workspaces.trees.folder, tmp_path / "own" / "trees")
    out = lmlab("swe", "export", "swebench", "-i", tmp_path / "own" / "instances.jsonl", "-o", tmp_path / "tasks")
    assert out.code == 0, out.err
    back = lmlab("swe", "import", "swebench", tmp_path / "tasks", "-o", tmp_path / "back")
    assert back.code == 0 and "1 instance:" in back.out and "not at hand" not in back.out, back.err
    assert [each.name for each in (tmp_path / "back" / "trees").iterdir()] == [f"{built.extra['base_tree']}.tar.gz"]
    common = ("-p", "gold", "--timeout-s", "60", "--cache", tmp_path / "cache", "-o", tmp_path / "out")
    done = lmlab("swe", "eval", "-i", tmp_path / "back" / "instances.jsonl", *common)
    assert done.code == 0 and "1/1 resolved" in done.out, done.out + done.err


def test_what_an_import_cannot_bring_along_is_said(
    lmlab: Callable[..., Any], judge: Judge, built: Instance, tmp_path: Path
) -> None:
    (tmp_path / "clones" / "owner__calc").mkdir(parents=True)
    clone = tmp_path / "clones" / "owner__calc"
    judge.workspaces.trees.unpack(built.extra["base_tree"], clone)
    commit_tree(clone)
    commit = git(clone, "rev-parse", "HEAD").decode().strip()
    extra = {key: value for key, value in built.extra.items() if key != "base_tree"}
    by_commit = replace(built, instance_id="by-commit", repo="owner/calc", base_commit=commit, extra=extra)
    in_image = replace(with_script(by_commit), instance_id="in-image", extra={})
    write_instances(tmp_path / "rows.jsonl", [by_commit, in_image])
    asked = ("swe", "import", "swebench", tmp_path / "rows.jsonl", "--cache", tmp_path / "cache")
    blind = lmlab(*asked, "-o", tmp_path / "one")
    assert "1 tree is not at hand. Name a folder with clones: --repositories" in blind.out, blind.err
    assert "1 tree is left in images" in blind.out
    # Another folder was filled with the same cache before
    clones = ("--repositories", tmp_path / "clones")
    assert lmlab(*asked, "-o", tmp_path / "first", *clones).code == 0
    seeing = lmlab(*asked, "-o", tmp_path / "two", *clones)
    assert seeing.code == 0 and "not at hand" not in seeing.out, seeing.err
    rows = {each.instance_id: each for each in load_instances(tmp_path / "two" / "instances.jsonl")}
    assert (
        rows["by-commit"].extra["base_tree"] == built.extra["base_tree"] and "base_tree" not in rows["in-image"].extra
    )
    assert (tmp_path / "two" / "trees" / f"{built.extra['base_tree']}.tar.gz").is_file()
    write_instances(tmp_path / "fresh" / "rows.jsonl", [by_commit])
    common = ("-i", tmp_path / "fresh" / "rows.jsonl", "--cache", tmp_path / "cache")
    assert lmlab("swe", "export", "swebench", *common, "-o", tmp_path / "tasks", *clones).code == 0
    back = lmlab("swe", "import", "swebench", tmp_path / "tasks", "-o", tmp_path / "three")
    assert "not at hand" not in back.out, back.err
    assert (tmp_path / "three" / "trees" / f"{built.extra['base_tree']}.tar.gz").is_file()


def test_trees_of_somebody_else_are_what_their_names_say(
    lmlab: Callable[..., Any], judge: Judge, built: Instance, tmp_path: Path
) -> None:
    digest = built.extra["base_tree"]
    other = tmp_path / "other"
    write_tree(other, {"evil.py": "x = 1\n"})
    store = TreeStore(tmp_path / "own" / "trees")
    (tmp_path / "own" / "trees" / f"{store.add(other)}.tar.gz").rename(store.folder / f"{digest}.tar.gz")
    write_instances(tmp_path / "own" / "instances.jsonl", [built])
    out = lmlab("swe", "export", "swebench", "-i", tmp_path / "own" / "instances.jsonl", "-o", tmp_path / "tasks")
    assert out.code != 0 and "does not hold the tree that its name says" in out.err
    assert not (tmp_path / "tasks" / "sweb.yaml").exists()
    back = lmlab("swe", "import", "swebench", tmp_path / "own" / "instances.jsonl", "-o", tmp_path / "back")
    assert "1 tree is not at hand" in back.out, back.err
    # A digest becomes a part of paths, and may lead to any folder
    for odd in (str(other), f"../../../{other}", "..", 7, digest.upper()):
        instance = replace(built, extra={**built.extra, "base_tree": odd})
        with pytest.raises(UserError, match="base_tree is the SHA-256 of a tree in 64 digits"):
            judge.workspaces.pristine(instance)


@pytest.mark.parametrize("name", ["../../out", "a/b", "..", "a\x1b[2Jb"])
def test_ids_that_cannot_name_a_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no id: it cannot name a folder"):
        Instance.from_row({"instance_id": name})


def _toml(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text())


def test_a_task_repository_has_a_script_for_each_instance(judge: Judge, built: Instance, tmp_path: Path) -> None:
    write_task_repository(tmp_path, [with_script(built)], "mine")
    (back,) = load_instances(str(tmp_path))
    assert back.eval_script == with_script(built).eval_script and check_instance(back) == []
    assert f"git checkout {built.base_commit} -- tests/test_calc.py" in back.eval_script
    pytest.importorskip("swebench.harness.utils", reason="swebench is not installed")
    from swebench.harness.utils import make_test_spec

    spec = make_test_spec(back.to_row("json"))
    assert spec.instance_id == built.instance_id and list(spec.FAIL_TO_PASS) == list(built.fail_to_pass)


def test_an_environment_of_verifiers_asks_for_our_rewards(
    judge: Judge, built: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = InferConfig(context="oracle", budget=4000)
    write_verifiers(tmp_path, [built], judge.workspaces, config, "my-swe", timeout_s=60.0)
    assert _toml(tmp_path / "pyproject.toml")["project"]["name"] == "my-swe"
    (row,) = map(json.loads, (tmp_path / "my_swe" / "data" / "dataset.jsonl").read_text().splitlines())
    assert row["prompt"][0]["role"] == "system" and row["answer"] == built.patch and row["example_id"] == 0
    assert json.loads(row["info"])["instance_id"] == built.instance_id
    assert not any("a + b" in each["content"] for each in row["prompt"])

    # The package itself is not needed: what the module takes of it is three names
    class Error(Exception):
        pass

    fake, data = types.ModuleType("verifiers"), types.ModuleType("datasets")
    fake.InfraError, fake.Environment = Error, object  # type: ignore[attr-defined]
    fake.Rubric = lambda funcs: funcs  # type: ignore[attr-defined]
    fake.SingleTurnEnv = lambda dataset, rubric: (dataset, rubric)  # type: ignore[attr-defined]
    data.Dataset = types.SimpleNamespace(from_list=list)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verifiers", fake)
    monkeypatch.setitem(sys.modules, "datasets", data)
    monkeypatch.syspath_prepend(str(tmp_path))
    import asyncio
    import importlib

    rows, (reward,) = importlib.import_module("my_swe").load_environment()
    info = json.loads(rows[0]["info"])
    answer = [{"role": "assistant", "content": f"<patch>\n{_HALF}\n</patch>"}]
    assert asyncio.run(reward(answer, info)) == 0.0
    assert asyncio.run(reward([{"role": "assistant", "content": f"```diff\n{built.patch}```"}], info)) == 1.0
    shutil.rmtree(tmp_path / "my_swe" / "data" / "trees")
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "empty"))
    _, (lost,) = importlib.import_module("my_swe").load_environment()
    with pytest.raises(Error, match="is not at"):
        asyncio.run(lost(answer, info))


def test_impossible_variants_are_passed_by_cheats_alone(judge: Judge, built: Instance, tmp_path: Path) -> None:
    made = impossible(built, judge)
    assert isinstance(made, Instance) and made.extra["impossible"]["kind"] == "conflicting"
    assert made.fail_to_pass == built.fail_to_pass and made.patch == built.patch
    assert judge.judge(made, made.patch).status == "unresolved"
    cheat = "class Both(int):\n    __hash__ = int.__hash__\n    def __eq__(self, other): return True\n"
    text = FIXED[_SOURCE].replace("return a + b", "return Both(a + b)").replace("return a * b", "return Both(a * b)")
    cheated = replace(judge, control=False).judge(made, diff_of(BASE.get, {_SOURCE: cheat + text}))
    assert cheated.status == "resolved"
    patches = {made.instance_id: Prediction(made.instance_id, "gold", made.patch)}
    done = evaluate([made], patches, judge, tmp_path, "run")
    assert done.summary["impossible"] == {"total": 1, "passed": 0}


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("def test_a():\n    assert f(1) == 2\n", "one-off", "def test_a():\n    assert f(1) == 3\n"),
        (
            "def test_a():\n    assert 'é' == g()",
            "conflicting",
            "def test_a():\n    assert 'é' == g()\n    assert 'és' == g()\n",
        ),
        ("class A:\n  def test_a(self):\n    self.assertEqual(\n      f(),\n      True)\n", "one-off", "False"),
        ("def test_a(): assert f() == 1\n", "conflicting", "def test_a(): assert f() == 2\n"),
        ("def test_a():\n    assert f() == g()\n", "one-off", None),
        ("def test_a():\n    assert f() == {'a': [None, 1]}\n", "one-off", "{'as': [None, 1]}"),
        ("def test_a():\n    assert [] == f()\n", "one-off", None),
        ("def test_b():\n    assert f() == 1\n", "one-off", None),
        ("def test_a(:\n", "one-off", None),
        (
            "X = '\u2028'\n\x0c\ndef test_a():\r\n    assert f() == 1\r\n",
            "one-off",
            "\x0c\ndef test_a():\r\n    assert f() == 2",
        ),
    ],
)
def test_an_expectation_is_contradicted_in_its_place(source: str, kind: Any, expected: str | None) -> None:
    found = contradicted(source, {"test_a"}, kind)
    if expected is None:
        assert found is None
    else:
        assert found is not None and expected in found[0] and compile(found[0], "f", "exec")


def test_lines_that_no_test_runs_are_told(judge: Judge, built: Instance) -> None:
    lines = FIXED[_SOURCE].splitlines()
    found = adequacy(built, judge, most=1)
    # Only a test that passed before runs the last line
    assert found.covered == 0.75
    assert [lines[line - 1].strip() for _, line in found.missed] == ["return int(text.strip())"]
    fewer = replace(built, fail_to_pass=tuple(each for each in built.fail_to_pass if "empty" not in each))
    found = adequacy(fewer, judge, most=1, full_suite=True)
    assert found.covered == 0.25 and len(found.missed) == 3
    assert found.wrong in (0, 1)
    text = '"""a\nb"""\nx = (\n    1,\n)\n# c\ndef f():\n    """d"""\n    return 1\n'
    assert executable_lines(text, set(range(1, 10))) == (3, 7, 9)


def test_patches_that_break_other_tests_are_told(judge: Judge, built: Instance, tmp_path: Path) -> None:
    more = "\n\nLIMIT = 3\n"
    test = "import calc\n\n\ndef test_limit():\n    assert calc.LIMIT == 3\n"
    base = {**BASE, _SOURCE: BASE[_SOURCE] + more, "tests/test_limit.py": test}
    write_tree(tmp_path / "tree", base)
    digest = judge.workspaces.trees.add(tmp_path / "tree")
    gold = diff_of(base.get, {_SOURCE: FIXED[_SOURCE] + more})
    instance = replace(built, patch=gold, extra={**built.extra, "base_tree": digest})
    whole = replace(judge, full_suite=True)
    breaking = diff_of(base.get, {_SOURCE: FIXED[_SOURCE] + "\n\nLIMIT = 4\n"})
    patches = {instance.instance_id: Prediction(instance.instance_id, "m", breaking)}
    done = evaluate([instance], patches, whole, tmp_path / "out", "run")
    result = done.results[instance.instance_id]
    assert result.resolved and result.evidence["full_suite"]["names"] == ["tests/test_limit.py::test_limit"]
    assert done.summary["full_suite"] == {"checked": 1, "broken": 1}
    assert whole.judge(instance, gold).evidence["full_suite"]["broken"] == 0


def test_a_reference_whose_tests_cannot_all_be_run_is_decided_once(
    judge: Judge, built: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    test = Judge.test

    def counting(self: Judge, instance: Instance, workspace: Path, *args: Any, **named: Any) -> Any:
        if named.get("whole"):
            runs.append(instance.instance_id)
            self = replace(self, limits=self.limits.model_copy(update={"timeout_s": 0.01}))
        return test(self, instance, workspace, *args, **named)

    monkeypatch.setattr(Judge, "test", counting)
    whole = replace(judge, full_suite=True, memory=Memory())
    other = diff_of(BASE.get, {_SOURCE: FIXED[_SOURCE].replace("a + b", "b + a")})
    for patch in (built.patch, other, built.patch):
        result = whole.judge(built, patch)
        assert result.resolved and "do not end within the limits" in result.evidence["full_suite"]["why_not"]
    assert len(runs) == 1
    patches = {built.instance_id: Prediction(built.instance_id, "m", other)}
    done = evaluate([built], patches, whole, tmp_path, "run")
    assert done.summary["full_suite"]["checked"] == 0 and list(done.summary["full_suite"]["unknown"]) == [
        built.instance_id
    ]
    page = evaluation_page(done, [built], patches, log_folder(tmp_path, "run", "m")).write(tmp_path / "page.html")
    assert "Which other tests it breaks is not known" in page.read_text()
    assert evaluate([built], patches, whole, tmp_path, "run").reused == 1  # a verdict, that no run asks for again
    found = adequacy(built, judge, most=1, full_suite=True)
    assert found.wrong is None and "do not end" in found.to_row()["full_suite_unknown"]
