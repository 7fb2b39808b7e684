"""Another package adds a kind of source by an entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PLUGIN = """
from typing import Any, ClassVar, Literal

from lmlab.config import Config
from lmlab.data import Document


class Poems(Config):
    kind: Literal["poems"] = "poems"
    path: str
    lines: int = 9
    suffixes: ClassVar[tuple[str, ...]] = (".poem",)

    def read(self):
        for number in range(40):
            lines = (f"line {line} of poem {number * 7919}, with a few words more" for line in range(self.lines))
            text = "\\n".join(lines)
            yield Document(f"p{number}", text, "poems", f"p{number}")

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump()

    def notices(self) -> list[str]:
        return ["poems are made up"]
"""


@pytest.fixture
def call(tmp_path):
    """The command line in a process of its own, with a package that offers sources."""
    (tmp_path / "poetry_plugin.py").write_text(PLUGIN)

    def run(*arguments, points="poems = poetry_plugin:Poems"):
        info = tmp_path / "poetry_plugin-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poetry-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lmlab.sources]\n{points}\n")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lmlab", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    return run


def test_a_package_adds_a_kind_that_recipes_and_file_names_find(call, tmp_path):
    (tmp_path / "a.poem").write_text("x")
    keep = ("--vocab-size", "300", "--set", "documents.near_duplicate_threshold=null", "--out", tmp_path / "run")
    shown = call("tokenize", "a.poem", *keep)
    assert shown.returncode == 0, shown.stderr
    assert "poems are made up" in shown.stderr
    counts = json.loads((tmp_path / "run" / "documents" / "collect.json").read_text())
    assert counts["read"]["documents"] == {"poems": 40}
    shown = call("tokenize", "a.poem", *keep, "--set", "documents.sources.0.linse=3")
    assert shown.returncode == 2 and "Did you mean 'lines'?" in shown.stderr
    shown = call("tokenize", "a.poem", *keep, "--set", "documents.sources.0.kind=poem")
    assert shown.returncode == 2 and "'poems'" in shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("poems = poetry_plugin:Prose", "'poetry_plugin:Prose' cannot be loaded (AttributeError"),
        ("poems = lmlab.config:Config", "'lmlab.config:Config' is no source of documents: it lacks read, fingerprint"),
    ],
)
def test_a_package_that_offers_no_source_is_named_and_locks_nothing(call, points, message, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    shown = call("data", "inspect", "a.txt", points=points)
    assert shown.returncode == 0 and f"'poems' is left out: {message}" in shown.stderr
    shown = call(
        "tokenize", "a.txt", "--set", "documents.sources.0.kind=poems", "--out", tmp_path / "run", points=points
    )
    assert shown.returncode == 2 and message in shown.stderr and "Traceback" not in shown.stderr
