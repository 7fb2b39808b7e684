"""Patches that touch what is not theirs: the tests, the runner's configuration, git, the machine.

Some paths make a patch inadmissible before it is applied; others are admitted and noted, and the verdict then rests on
a run without them as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmlab.methods.swebench.patches.diff import FileDiff, read_diff

# What Python, pytest and its like read before or beside the tests, wherever it stands
_INFRA_NAMES = {
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "tox.ini",
    "setup.cfg",
    "pyproject.toml",
    "noxfile.py",
    "sitecustomize.py",
    "usercustomize.py",
    ".coveragerc",
    "pyvenv.cfg",
    "entry_points.txt",
}
_INFRA_SHADOWS = {"pytest", "_pytest", "unittest", "pluggy", "py", "site", "os", "sys", "builtins", "importlib"}
# Only the tables of these files that a runner reads matter
_CONFIG_TABLES = {
    "pyproject.toml": re.compile(r"tool\.pytest|pytest|addopts|conftest|plugins"),
    "setup.cfg": re.compile(r"tool:pytest|pytest|addopts|plugins"),
    "tox.ini": re.compile(r"pytest|addopts|plugins"),
}
_LINK, _SUBMODULE = "120000", "160000"


@dataclass(frozen=True)
class PatchSafety:
    """What a patch touches.

    Attributes:
        refused: for each path that must not be applied the reason.
        infra: paths that can change how tests are found or judged.
        binary: paths whose change is not text.
    """

    refused: dict[str, str]
    infra: tuple[str, ...]
    binary: tuple[str, ...]

    @property
    def touches_test_infra(self) -> bool:
        """The verdict needs a run without these files."""
        return bool(self.infra)


def judge_patch(text: str) -> PatchSafety:
    """Judge a patch by its paths and modes."""
    refused: dict[str, str] = {}
    infra, binary = [], []
    for file in read_diff(text):
        for path in sorted(file.paths):
            if reason := _reason(path, file):
                refused[path] = reason
        if any(is_test_infra(path, file) for path in file.paths):
            infra.append(file.path)
        if file.binary:
            binary.append(file.path)
    return PatchSafety(refused, tuple(infra), tuple(binary))


def _reason(path: str, file: FileDiff) -> str | None:
    parts = path.split("/")
    if path.startswith("/") or re.match(r"[A-Za-z]:[\\/]", path):
        return "an absolute path"
    if ".." in parts or "" in parts[:-1] or "\0" in path:
        return "a path that leaves the repository"
    # Some file systems fold case and ignore trailing points
    if any(part.lower().rstrip(". ") in (".git", "git~1") for part in parts):
        return "a path inside .git"
    if path.rpartition("/")[2] in (".gitmodules",) or _SUBMODULE in file.modes:
        return "a submodule"
    if _LINK in file.modes and (target := _target(file)) is not None and _leaves(path, target):
        return f"a symbolic link to {target}"
    return None


def _target(file: FileDiff) -> str | None:
    added = [line for hunk in file.hunks for line in hunk.added]
    return added[0].rstrip("\n") if added else None


def _leaves(path: str, target: str) -> bool:
    if target.startswith("/"):
        return True
    depth = path.count("/")
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in (".", "")
        if depth < 0:
            return True
    return False


def is_test_infra(path: str, file: FileDiff) -> bool:
    """Whether a changed path can change how tests are found or judged, whatever they test."""
    name = path.rpartition("/")[2]
    if name.endswith(".pth") or name.endswith(".egg-link") or name.endswith(".pyc") or name.endswith(".so"):
        return True
    if name in _CONFIG_TABLES:
        return any(_CONFIG_TABLES[name].search(line) for hunk in file.hunks for line in (*hunk.lines, hunk.section))
    if name in _INFRA_NAMES or ".dist-info/" in path or ".egg-info/" in path:
        return True
    return path.removeprefix("src/").split("/")[0].removesuffix(".py") in _INFRA_SHADOWS
