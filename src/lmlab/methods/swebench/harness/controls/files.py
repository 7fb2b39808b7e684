"""Which test files of a tree get controls, and putting them there."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from lmlab.methods.swebench.harness.controls.control import ANYWHERE, Control, control_source, functions_of
from lmlab.methods.swebench.harness.testing import files_of
from lmlab.methods.swebench.harness.workspaces.trees import tree_files
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.methods.swebench.patches.split import is_test


def write_controls(instance: Instance, prepared: Path, repaired: Sequence[str]) -> dict[str, Control]:
    """Replace the test files of a prepared tree by their controls, also those that the tests that are run may inherit
    from; path to control.
    """
    seed, functions = secrets.token_hex(16), functions_of(repaired)
    own = {path for file in read_diff(instance.patch) for path in file.paths}
    others = [path for path in tree_files(prepared) if path.endswith(".py") and is_test(path) and path not in own]
    controls = {}
    # A script names its tests where nobody else can read them: any of them may be run
    for path in reached(prepared, files_of(instance) or others, others):
        place = prepared / path
        if place.is_symlink() or not place.is_file() or not path.endswith(".py"):
            continue
        source = place.read_text(encoding="utf-8", errors="replace")
        if "def test" not in source:
            continue
        control = control_source(source, functions.get(path, set()) | functions.get(ANYWHERE, set()), seed + path)
        if control is not None:
            place.unlink()
            place.write_text(control.source, encoding="utf-8")
            controls[path] = control
    return controls


def reached(tree: Path, run: Sequence[str], others: Sequence[str]) -> list[str]:
    """The test files that are run, and those of the others that they may take tests from: a file is reached where its
    name is a word of one that is, so that a large repository's other tests need not be read again and again.
    """
    waiting = [*run, *(path for path in others if path.rpartition("/")[2] == "conftest.py")]
    left: dict[str, list[str]] = {}
    for path in others:
        parts = path.removesuffix(".py").split("/")
        word = parts[-2] if parts[-1] == "__init__" and len(parts) > 1 else parts[-1]
        left.setdefault(word, []).append(path)
    found: dict[str, None] = {}
    while waiting:
        path = waiting.pop(0)
        place = tree / path
        if path in found or place.is_symlink() or not place.is_file():
            continue
        found[path] = None
        for word in sorted(set(re.findall(r"\w+", place.read_text(encoding="utf-8", errors="replace")))):
            waiting += left.pop(word, [])
    return list(found)
