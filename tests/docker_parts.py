"""The stand-in for `docker` in a folder, as tests of the sandbox and of methods need it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from lmlab.sandbox import docker
from lmlab.sandbox.box import Box


class FakeDocker:
    """Its folder, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, verb: str) -> list[list[str]]:
        """The arguments of all calls of a verb."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [row[1:] for row in map(json.loads, lines) if row[0] == verb]


def fake_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, python: Path = Path(sys.executable)) -> FakeDocker:
    """Put the stand-in before whatever `docker` there is."""
    (folder / "bin").mkdir(parents=True)
    (folder / "containers").mkdir()
    program = folder / "bin" / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).with_name("fake_docker.py")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DOCKER", str(folder))
    monkeypatch.setenv("FAKE_DOCKER_PREFIXES", ":".join(map(str, Box(folder, python=python).prefixes())))
    docker._probe.cache_clear()
    docker._remove_orphans.cache_clear()
    return FakeDocker(folder)
