"""Whether the solution stands somewhere where a solver could look it up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmlab.distributed import scratch_folder
from lmlab.methods.swebench.harness.environment import Environment
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.workspaces.git import git, run_git
from lmlab.methods.swebench.harness.workspaces.trees import MOST_BYTES, tree_files
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff

_ANYBODYS = ("#", "import ", "from ")
_SHORTEST = 20  # characters of a line that tells something
_MOST_BYTES = 4 << 20  # of a file that is searched
_SAME_LINES = 3  # lines of a solution in one file of the environment that may be no accident ...
_SAME_SHARE = 0.3  # ... where they are that much of what it adds to a file: `def __repr__(self) -> str:` is anybody's


def scan_leaks(instance: Instance, judge: Judge) -> list[str]:
    """What a solver could find in the workspace or the environment, in sentences.

    Looked for: commits besides the one, remotes, tags, reflogs, alternates; added lines of the solution that the base
    tree has not; a release of the repository itself among the installed packages.
    """
    found = []
    with judge.workspaces.fresh(instance) as tree:
        found += scan_repository(tree)
        parts = telling_lines(instance, tree)
    environment = judge.built(instance)
    with _packages(environment) as packages:
        holding = [path for path in tree_files(packages) if holds(_content(packages / path), parts)] if parts else []
    found += [f"the environment's {path} has lines of the solution" for path in holding]
    name = instance.repo.rpartition("/")[2].lower().replace("_", "-")
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in environment.lock}
    if name in installed:
        found.append(f"the environment has a release of {name}")
    return found


@contextmanager
def _packages(environment: Environment) -> Iterator[Path]:
    """The folder with installed packages, also of an image."""
    if environment.python is not None:
        yield environment.python.parent.parent / "lib"
        return
    from lmlab.sandbox.docker import copy_out_of, run_in_image

    where = run_in_image(environment.image, ["python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    with scratch_folder("packages") as folder:
        copy_out_of(environment.image, where.strip(), folder, MOST_BYTES)
        yield folder


def scan_repository(tree: Path) -> list[str]:
    """History and its kin in a workspace."""
    found = []
    commits = git(tree, "rev-list", "--all", "--reflog").split()
    if len(set(commits)) != 1:
        found.append(f"the workspace has {len(set(commits))} commits")
    for what, arguments in (("a remote", ["remote"]), ("tags", ["tag"]), ("stashes", ["stash", "list"])):
        if run_git(tree, arguments).stdout.strip():
            found.append(f"the workspace has {what}")
    loose = git(tree, "fsck", "--unreachable", "--no-progress", "--no-reflogs", check=False).strip()
    if loose:
        found.append("the workspace has objects that no commit reaches")
    for name in ("objects/info/alternates", "FETCH_HEAD", "ORIG_HEAD", "packed-refs", "logs"):
        if os.path.lexists(tree / ".git" / name):
            found.append(f"the workspace has .git/{name}")
    return found


@dataclass(frozen=True)
class Part:
    """What the solution adds to one file.

    Attributes:
        added: lines that no file of the base tree has.
        around: unchanged lines beside them, where the added ones are too few to tell a copy from an accident.
    """

    added: frozenset[bytes]
    around: frozenset[bytes]


def telling_lines(instance: Instance, tree: Path) -> list[Part]:
    """The longer lines of the solution, by file."""
    files = [file for file in read_diff(instance.patch) if file.path.endswith(".py")]
    added = [_long(line for hunk in file.hunks for line in hunk.added) for file in files]
    for path in tree_files(tree) if any(added) else ():
        text = _content(tree / path)
        added = [{line for line in each if line not in text} for each in added]
    return [
        Part(
            frozenset(each),
            frozenset(
                ()
                if len(each) >= _SAME_LINES
                else _long(line[1:] for hunk in file.hunks for line in hunk.lines if line.startswith(" "))
            ),
        )
        for file, each in zip(files, added, strict=True)
        if each
    ]


def _long(lines: Iterable[str]) -> set[bytes]:
    stripped = (line.strip() for line in lines)
    return {each.encode() for each in stripped if len(each) >= _SHORTEST and not each.startswith(_ANYBODYS)}


def holds(text: bytes, parts: Sequence[Part]) -> bool:
    """Whether a file has what the solution adds to some file."""
    for part in parts:
        same = _count(text, part.added)
        every = part.added | part.around
        if same >= max(min(_SAME_LINES, len(part.added)), _SAME_SHARE * len(part.added)) and (
            not part.around or _count(text, every) >= min(_SAME_LINES, len(every))
        ):
            return True
    return False


def _count(text: bytes, lines: Iterable[bytes]) -> int:
    return sum(line in text for line in lines)


def _content(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return b""
    return path.read_bytes()
