"""Patches that touch what is not theirs: the tests, the runner's configuration, git, the machine.

Some paths make a patch inadmissible before it is applied; others are admitted and noted, and the verdict then rests on
a run without them as well.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
# Modules that the runner imports, which one of the same name in the tree would stand in for
_INFRA_SHADOWS = {"pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py", *sys.stdlib_module_names}
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
        text = "".join(line for hunk in file.hunks for line in (*hunk.lines, hunk.section))
        if any(
            is_test_infra(path, text) or (file.old is None and shadows(path, _LINK in file.modes))
            for path in file.paths
        ):
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


def is_test_infra(path: str, changed_text: str) -> bool:
    """Whether a change can change how tests are found or judged, whatever they test.

    Arguments:
        changed_text: the lines that change, with those around them.
    """
    name = path.rpartition("/")[2]
    if name.endswith((".pth", ".egg-link", ".pyc", ".so")):
        return True
    if name in _CONFIG_TABLES:
        return _CONFIG_TABLES[name].search(changed_text) is not None
    return name in _INFRA_NAMES or ".dist-info/" in path or ".egg-info/" in path


def shadows(path: str, link: bool = False) -> bool:
    """Whether a new module or package bears the name of one that the runner imports.

    Arguments:
        link: it is a symbolic link, which may lead to a package of another name.
    """
    return _top(path).removesuffix(".py") in _INFRA_SHADOWS and (link or path.endswith(".py"))


def infra_paths(before: Path, after: Path, changed: Iterable[str]) -> list[str]:
    """Of changed paths of a tree those by which tests are found or judged (`is_test_infra`)."""
    return [
        path
        for path in changed
        if is_test_infra(path, _changed_text(before / path, after / path))
        or (
            shadows(path, (after / path).is_symlink())
            and not any((before / root / _top(path)).exists() for root in ("", "src"))
        )
    ]


def _top(path: str) -> str:
    return path.removeprefix("src/").split("/")[0]


def _changed_text(before: Path, after: Path) -> str:
    if before.name not in _CONFIG_TABLES:
        return ""
    old, new = (
        place.read_text("utf-8", "replace").splitlines() if place.is_file() and not place.is_symlink() else []
        for place in (before, after)
    )
    return "\n".join(difflib.unified_diff(old, new, lineterm="", n=1))
