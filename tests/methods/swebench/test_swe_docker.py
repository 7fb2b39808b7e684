"""Patches in containers, by a stand-in for docker: verdicts are those of other sandboxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from swe_parts import BASE, FIXED, write_tree

from docker_parts import FakeDocker, fake_docker
from lmlab.errors import UserError
from lmlab.methods.swebench.grading.verdict import grade_log
from lmlab.methods.swebench.harness.environment import EnvironmentFailure, Environments, EnvironmentSpec, dockerfile
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.scripts import eval_script, script_of_tests
from lmlab.methods.swebench.harness.testing import PYTEST, command_of
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.patches.split import directives
from lmlab.sandbox import docker
from lmlab.sandbox.docker import Docker

_SOURCE = "calc/__init__.py"
_HALF = diff_of(BASE.get, {_SOURCE: BASE[_SOURCE].replace("return a - b", "return a + b")})
_HOOKS = """import unittest, _pytest.python as p
p.Function.runtest = lambda self: None
unittest.TestCase._callTestMethod = lambda *a: None
"""
_FORGED = diff_of(BASE.get, {_SOURCE: _HOOKS + BASE[_SOURCE]})


@pytest.fixture
def fake(
    environment: EnvironmentSpec, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDocker]:
    """The stand-in, whose images have pytest."""
    yield fake_docker(tmp_path_factory.mktemp("docker"), monkeypatch, Path(environment.python))
    docker._probe.cache_clear()


def test_verdicts_in_containers_are_those_of_namespaces(
    judge: Judge, built: Instance, fake: FakeDocker, tmp_path: Path
) -> None:
    spec = EnvironmentSpec(requirements=("pytest>=8",), system_packages=("libxml2",))
    instance = replace(built, extra={**built.extra, "environment": spec.model_dump(mode="json")})
    other = replace(judge, executor=Docker(), environments=Environments(tmp_path, images=True))
    for patch, status in ((built.patch, "resolved"), (_HALF, "unresolved"), (_FORGED, "forged")):
        one, two = judge.judge(built, patch), other.judge(instance, patch)
        assert one.status == two.status == status, (one.reason, two.reason)
        assert (one.statuses, one.failures) == (two.statuses, two.failures)
    (text,) = [each.read_text() for each in (fake.folder / "built").iterdir()]
    assert text == dockerfile(spec) and len(fake.calls("build")) == 1
    assert '"git", "patch", "libxml2"]' in text and '"pytest>=8"]' in text
    with pytest.raises(EnvironmentFailure, match="needs libxml2 of the system"):
        judge.environments.ensure(spec)
    with pytest.raises(EnvironmentFailure, match="cannot use the interpreter"):
        other.environments.ensure(EnvironmentSpec(python="/usr/bin/python3"))


def test_published_instances_run_in_their_images_by_their_scripts(
    judge: Judge, built: Instance, fake: FakeDocker, tmp_path: Path
) -> None:
    write_tree(fake.folder / "images" / "sweb_calc" / "testbed", {**BASE, ".git/config": "[secret]\n"})
    instance = Instance(
        "owner__calc-1",
        "owner/calc",
        "0" * 40,
        built.patch,
        built.test_patch,
        "Add numbers.",
        fail_to_pass=built.fail_to_pass,
        pass_to_pass=built.pass_to_pass,
        image="sweb/calc",
        eval_script=eval_script("0" * 40, built.test_patch, ["tests/test_calc.py"], ["python", "-m", "pytest", "-rA"]),
    )
    workspaces = Workspaces(tmp_path / "cache", TreeStore(tmp_path / "trees"), images=True)
    other = replace(judge, executor=Docker(), workspaces=workspaces, environments=Environments(tmp_path, images=True))
    assert command_of(instance)[:2] == ["bash", "-c"]
    for patch, status in ((built.patch, "resolved"), (_HALF, "unresolved"), (_FORGED, "forged")):
        found = other.judge(instance, patch)
        assert found.status == status, found.reason
    assert found.evidence["results"] is not None
    assert {call[call.index("--user") + 1] for call in fake.calls("create") if "--user" in call} == {"0:0"}
    assert "secret" not in (workspaces.pristine(instance) / ".git" / "config").read_text()
    infra = judge.judge(replace(instance, extra={"base_tree": built.extra["base_tree"]}), built.patch)
    assert (infra.status, infra.reason[:44]) == ("infra", "owner__calc-1 runs in the image 'sweb/calc',")


def test_a_script_is_what_it_does_besides_git(lite: dict[str, Instance]) -> None:
    script = lite["django__django-10914"].eval_script
    found = script_of_tests(script).splitlines()
    assert found[0] == "set -uxo pipefail" and found[-1] == "exit $lmlab_status"
    assert found[-3].startswith("./tests/runtests.py") and found[-2] == "lmlab_status=$?"
    assert "python -m pip install -e ." in found and "conda activate testbed" in found
    assert not any("git" in line or "{test_patch}" in line or ">>>>>" in line or "EOF" in line for line in found)


def test_all_tests_of_a_published_instance_are_its_command_without_its_own_tests(lite: dict[str, Instance]) -> None:
    for instance in lite.values():
        (line,) = {each for each in instance.eval_script.splitlines() if each.startswith("git checkout ")}
        changed = "".join(
            f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
            for path in line.split()[3:]
        )
        own = replace(instance, test_patch=changed, extra={})
        narrow, whole = command_of(own)[-1], command_of(own, whole=True)[-1]
        names = directives(changed, own.repo)
        (first,) = (each for each in narrow.splitlines() if names[0] in each.split())
        (second,) = set(whole.splitlines()) - set(narrow.splitlines())
        assert second.split() == [word for word in first.split() if word not in names] and names
        assert len(narrow.splitlines()) == len(whole.splitlines())
    with pytest.raises(UserError, match="does not name its tests as the test patch does"):
        script_of_tests(instance.eval_script, ["tests/elsewhere.py"])
    with pytest.raises(UserError, match="names no tests"):
        command_of(replace(instance, test_patch="", extra={}), whole=True)


def test_a_written_script_restores_its_tests_and_nothing_else(built: Instance, tmp_path: Path) -> None:
    import subprocess

    from lmlab.methods.swebench.harness.workspaces.git import commit_tree

    write_tree(tmp_path, BASE)
    commit_tree(tmp_path)
    new = diff_of(BASE.get, {"tests/test_new.py": "def test_new():\n    pass\n"})
    script = eval_script("", built.test_patch + new, ["tests/test_calc.py"], list(PYTEST)[:3])
    assert "git checkout HEAD -- tests/test_calc.py\n" in script and "rm -f -- tests/test_new.py" in script
    read = script_of_tests(script).replace("cd /testbed", "").replace("git config --global", ": git config")
    (tmp_path / "tests" / "test_new.py").write_text("def test_new():\n    pass\n")
    ended = subprocess.run(
        ["bash", "-c", read.replace("python -m pytest", "ls tests; exit_with() { return 3; }; exit_with #")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 3 and "test_new.py\n" in ended.stdout
    (tmp_path / "tests" / "test_new.py").unlink()
    (tmp_path / _SOURCE).write_text(FIXED[_SOURCE])
    (tmp_path / "tests" / "test_calc.py").write_text("changed")
    local = script.replace("cd /testbed", f"cd {tmp_path}").replace("git config --global", ": git config")
    local = local.replace("python -m pytest", "ls tests; grep -c def tests/test_calc.py; echo PASSED x #")
    done = subprocess.run(["bash", "-c", local], capture_output=True, text=True, check=False)
    assert "test_new.py" in done.stdout and "\n5\n" in done.stdout and ">>>>> Test Exit Code: 0" in done.stdout
    assert (tmp_path / _SOURCE).read_text() == FIXED[_SOURCE] and not (tmp_path / "tests" / "test_new.py").exists()
    assert (tmp_path / "tests" / "test_calc.py").read_text() == BASE["tests/test_calc.py"]
    instance = replace(built, fail_to_pass=("x",), pass_to_pass=())
    assert grade_log(instance, done.stdout + done.stderr).applied
