"""Shared parts: the published logs with the verdicts of the reference, and small repositories."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest
from swe_parts import BASE, FIXED, PublishedLog, lean_environment, write_tree

from lmlab.methods.swebench.building.candidate import Rejection
from lmlab.methods.swebench.building.collect import collect_git
from lmlab.methods.swebench.building.validate import ValidateConfig, validate
from lmlab.methods.swebench.harness.environment import Environments, EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.sandbox import Limits
from lmlab.sandbox.bubblewrap import Bubblewrap

SHARED = Path(os.environ.get("LMLAB_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "swebench"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the published logs."""
    if not (SHARED / "logs.tar.xz").exists():
        pytest.skip("the published logs are not at hand; LMLAB_SHARED names the folder that holds data/swebench")
    return SHARED


@pytest.fixture(scope="session")
def lite(shared: Path) -> dict[str, Instance]:
    """Instances of SWE-bench Lite without patches, by id."""
    with gzip.open(shared / "lite_meta.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["eval_script"] = row.pop("eval_script_skeleton")
    return {row["instance_id"]: Instance.from_row(row) for row in rows}


@pytest.fixture(scope="session")
def published(shared: Path, lite: dict[str, Instance]) -> list[PublishedLog]:
    """All 518 logs."""
    expected = [json.loads(line) for line in (shared / "expected.jsonl").read_text().splitlines()]
    with tarfile.open(shared / "logs.tar.xz") as archive:
        files = [member for member in archive if member.isfile()]
        data = {member.name: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]
    return [PublishedLog(row["log"], data[row["log"]], row, lite[row["instance_id"]]) for row in expected]


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """A judge with bubblewrap and an environment that has pytest alone."""
    executor = Bubblewrap()
    info = executor.probe()
    if not info.available:
        pytest.skip(f"bubblewrap cannot be used here: {info.reason}")
    folder = tmp_path_factory.mktemp("swe")
    limits = Limits(timeout_s=60, memory_mib=512, processes=64, tmp_mib=64, disk_mib=64, output_mib=1)
    return Judge(
        executor, Workspaces(folder / "cache", TreeStore(folder / "trees")), Environments(folder / "e"), limits
    )


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> EnvironmentSpec:
    """pytest alone."""
    return EnvironmentSpec(requirements=(), python=str(lean_environment(tmp_path_factory.mktemp("lean") / "env")))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one fix, and commits that are none."""
    folder = tmp_path_factory.mktemp("repository") / "calc"
    write_tree(folder, BASE)
    commit_tree(folder)
    write_tree(folder, {"calc/other.py": "x = 1\n"})
    for message, files in (
        ("Only source", {"calc/other.py": "x = 2\n"}),
        ("Add numbers, fixes #12\n\nSee 0123456789abcdef and https://example.com/a.", FIXED),
        ("Only tests", {"tests/test_more.py": "def test_more():\n    pass\n"}),
        ("No failing test", {"calc/other.py": "x = 3\n", "tests/test_more.py": "def test_even_more():\n    pass\n"}),
    ):
        write_tree(folder, files)
        git(folder, "add", "--all")
        git(folder, "commit", "-q", "-m", message)
    return folder


@pytest.fixture(scope="session")
def built(repository: Path, judge: Judge, environment: EnvironmentSpec) -> Instance:
    """The instance that the fix makes."""
    candidates = list(collect_git(repository, judge.workspaces.trees, "owner/calc"))
    config = ValidateConfig(repeats=1, before_runs=1, hash_seeds=())
    found = [validate(each, judge, environment, config) for each in candidates]
    assert [each.reason for each in found if isinstance(each, Rejection)] == ["no_f2p"]
    (instance,) = (each for each in found if isinstance(each, Instance))
    return instance
