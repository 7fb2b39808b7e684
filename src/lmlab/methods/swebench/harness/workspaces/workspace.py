"""Workspaces: a fresh copy of a tree with one commit and no history, and hidden tests that come in later."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lmlab.distributed import remove_tree, scratch_folder
from lmlab.errors import LmlabError, UserError
from lmlab.files import sha256_json, write_text
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git, run_git
from lmlab.methods.swebench.harness.workspaces.trees import (
    DOT_GIT,
    MOST_BYTES,
    TreeStore,
    checked_digest,
    file_state,
    is_commit,
)
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.sandbox.box import WORKSPACE, put_file
from lmlab.sandbox.docker import copy_out_of

_MOST_HIDDEN = 1000  # sets of hidden tests that are remembered, each some kilobytes


@dataclass(frozen=True)
class HiddenTests:
    """The files that a test patch writes, and those that it removes.

    Attributes:
        written: path to kind ("file", "program", "link") and content.
    """

    written: Mapping[str, tuple[str, bytes]]
    removed: frozenset[str] = frozenset()

    @property
    def paths(self) -> set[str]:
        """All of them."""
        return {*self.written, *self.removed}

    def write(self, folder: Path) -> None:
        """Put them into a tree that somebody else has changed: no link in it is followed, what is in the way goes."""
        for path in sorted(self.paths):
            clear_way(folder, path)
        for path, (kind, content) in self.written.items():
            if kind == "link":
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.symlink(os.fsdecode(content), folder / path)
            else:
                put_file(folder, path, content, 0o755 if kind == "program" else 0o644)


def clear_way(folder: Path, path: str) -> None:
    """Remove what stands at a path, and links or files that stand where its folders must be."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:count])
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
        elif count == len(parts) and place.is_dir():
            remove(place)


class Workspaces:
    """Fresh workspaces of the trees of instances.

    Arguments:
        cache: a folder for unpacked trees, which are read and never worked in.
        trees: where the trees of instances with `base_tree` are.
        repositories: a folder with repositories, for instances that name a repository and a commit: OWNER__NAME,
            NAME, or OWNER/NAME, bare or not.
        images: take trees of instances that bring none along out of their images.
    """

    def __init__(
        self, cache: str | Path, trees: TreeStore, repositories: str | Path | None = None, images: bool = False
    ) -> None:
        self.images = images
        self._hidden: dict[str, HiddenTests] = {}
        repositories = None if repositories is None else Path(repositories)
        cache = Path(cache)
        self.cache, self.trees, self.repositories = cache, trees, repositories

    def pristine(self, instance: Instance) -> Path:
        """The base tree with its one commit; nobody may change it.

        Raises:
            UserError: the tree is not at hand.
        """
        digest = self.tree_of(instance)
        place = self.cache / "pristine" / digest
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{place}.lock"):
                if not place.exists():
                    # Always of one name, so that what a killed run has left is found, and goes
                    tree = place.with_name(f".new-{digest}")
                    remove(tree)
                    tree.mkdir(mode=0o755)
                    try:
                        self.trees.unpack(digest, tree)
                        commit_tree(tree)
                        tree.rename(place)
                    finally:
                        remove(tree)
        return place

    def tree_of(self, instance: Instance) -> str:
        """The digest of an instance's base tree, which is put into the store if it is not there.

        Raises:
            UserError: the tree is not at hand.
        """
        digest = instance.extra.get("base_tree")
        if digest:
            return checked_digest(digest)
        in_image = self.images and bool(instance.image)
        repository = None if in_image else self._repository(instance)
        name = instance.image if in_image else instance.base_commit
        known = self.cache / "commits" / instance.repo.replace("/", "__") / re.sub(r"[^\w.-]", "_", name)
        # What another store has is not in this one, and what a killed run has written may be a part
        if not (known.is_file() and self.trees.has(known.read_text())):
            with scratch_folder("tree") as scratch:
                if repository is None:
                    # With all that was built there; history stays behind, as nothing called .git is stored
                    copy_out_of(instance.image, WORKSPACE, scratch, MOST_BYTES)
                    digest = self.trees.add(scratch)
                else:
                    digest = self.trees.add_commit(repository, instance.base_commit, scratch)
            write_text(known, digest)
        return known.read_text()

    def _repository(self, instance: Instance) -> Path:
        if self.repositories is not None and instance.base_commit:
            for name in (instance.repo.replace("/", "__"), instance.repo, instance.repo.rpartition("/")[2]):
                for place in (self.repositories / name, self.repositories / f"{name}.git"):
                    if place.is_dir() and is_commit(place, instance.base_commit):
                        return place
        raise UserError(
            f"The source of {instance.instance_id} is not at hand.",
            "Instances that lmlab has built bring it along in trees/; for others name a folder with --repositories.",
        )

    @contextmanager
    def fresh(self, instance: Instance) -> Iterator[Path]:
        """A workspace of its own, removed at the end."""
        with copied(self.pristine(instance)) as workspace:
            yield workspace

    def hidden_tests(self, instance: Instance) -> HiddenTests:
        """What the test patch makes of the base tree, computed on a copy that no model has seen.

        Raises:
            LmlabError: the test patch does not apply.
        """
        key = instance.test_patch.strip() and self.key(instance)
        if key and key in self._hidden:
            return self._hidden[key]
        if not instance.test_patch.strip():
            restored = instance.extra.get("hidden_files", {})
            return HiddenTests({path: ("file", text.encode()) for path, text in restored.items()})
        with self.fresh(instance) as tree:
            done = run_git(tree, ["apply", "--whitespace=nowarn", "-"], instance.test_patch.encode())
            if done.returncode != 0:
                said = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
                raise LmlabError(f"The test patch of {instance.instance_id} does not apply: {''.join(said)[:300]}")
            paths = {path for file in read_diff(instance.test_patch) for path in file.paths}
            written = {path: file_state(tree, path) for path in sorted(paths) if os.path.lexists(tree / path)}
        found = HiddenTests(written, frozenset(paths - set(written)))
        if len(self._hidden) >= _MOST_HIDDEN:
            self._hidden.clear()
        self._hidden[key] = found
        return found

    def key(self, instance: Instance) -> str:
        """What tells one base tree with its tests from another."""
        return sha256_json([self.tree_of(instance), instance.test_patch])


@contextmanager
def copied(tree: Path) -> Iterator[Path]:
    """A copy of a tree in a temporary folder, removed at the end."""
    with scratch_folder("work") as scratch:
        workspace = scratch / "testbed"
        copy_tree(tree, workspace)
        yield workspace


def copy_tree(tree: Path, into: Path) -> None:
    """Copy a tree with links and times; file systems that can share blocks do.

    Raises:
        OSError: it cannot be copied, for want of space for example.
    """
    done = subprocess.run(["cp", "-a", "--reflink=auto", "--", str(tree), str(into)], check=False, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(f"A tree cannot be copied: {said[-1][:300] if said else done.returncode}")
    into.chmod(0o755)


def remove(place: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if place.is_dir() and not place.is_symlink():
        remove_tree(place)
    else:
        place.unlink(missing_ok=True)


def _dot_gits(folder: Path) -> list[Path]:
    """Whatever is called .git below a folder."""
    found = []
    for at, folders, files in os.walk(folder):
        found += [Path(at, name) for name in (*folders, *files) if name == DOT_GIT]
        folders[:] = [name for name in folders if name != DOT_GIT]
    return found


def diff_against(pristine: Path, workspace: Path) -> str:
    """What was changed in a workspace, as a patch, new files too.

    Whoever worked there may have written to its .git, configuration and hooks included; that of the pristine tree takes
    its place, and repositories inside of it are taken for plain folders. Bytes that are no UTF-8 are replaced, as a
    prediction is JSON.
    """
    for place in _dot_gits(workspace):
        remove(place)
    copy_tree(pristine / DOT_GIT, workspace / DOT_GIT)
    git(workspace, "read-tree", "HEAD")  # forgets sizes and times, so that contents are compared
    git(workspace, "add", "--all", "--intent-to-add")
    options = ("--no-renames", "--full-index", "--no-ext-diff", "--no-textconv")
    return git(workspace, "diff", *options, "HEAD").decode("utf-8", "replace")
