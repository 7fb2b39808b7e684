"""Shared parts: the published logs with the verdicts of the reference, and small repositories."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest
from swe_parts import PublishedLog

from lmlab.methods.swebench.instances.instance import Instance

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
        data = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    return [PublishedLog(row["log"], data[row["log"]], row, lite[row["instance_id"]]) for row in expected]
