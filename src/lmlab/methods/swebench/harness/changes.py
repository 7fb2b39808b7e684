"""What was changed in a tree, and what of it is the reference solution's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lmlab.files import sha256_json
from lmlab.methods.swebench.harness.workspaces.git import run_git
from lmlab.methods.swebench.harness.workspaces.trees import changed_paths, file_state
from lmlab.methods.swebench.harness.workspaces.workspace import HiddenTests, Workspaces, copied
from lmlab.methods.swebench.instances.instance import Instance

States = Mapping[str, tuple[str, ...]]
"""Path to how it was changed, and, where it still stands, to its kind and the SHA-256 of its content."""


def states_of(tree: Path, changed: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What a tree has at changed paths (`changed_paths`)."""
    found = dict[str, tuple[str, ...]]()
    for path, how in changed.items():
        found[path] = (how,)
        if how != "removed":
            kind, content = file_state(tree, path)
            found[path] = (how, kind, hashlib.sha256(content).hexdigest())
    return found


def digest_of(states: States, without: Iterable[str] = ()) -> str:
    """SHA-256 of changes, but for some paths."""
    left = set(states) - set(without)
    return sha256_json([[shown(path), *states[path]] for path in sorted(left)])


def solution_of(workspaces: Workspaces, instance: Instance, hidden: HiddenTests) -> dict[str, tuple[str, ...]]:
    """What the reference solution changes, besides the hidden tests; nothing where it does not apply."""
    if not instance.patch.strip():
        return {}
    pristine = workspaces.pristine(instance)
    with copied(pristine) as tree:
        done = run_git(tree, ["apply", "--whitespace=nowarn", "-"], instance.patch.encode())
        if done.returncode != 0:
            return {}
        changed = changed_paths(pristine, tree)
        return states_of(tree, {path: how for path, how in changed.items() if path not in hidden.paths})


def shown(text: str) -> str:
    """Text that JSON can carry, as names of files may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
