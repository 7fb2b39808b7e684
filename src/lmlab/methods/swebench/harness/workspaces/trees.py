"""Source trees by what they hold: stored once, unpacked with care, compared file by file."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from lmlab.distributed import scratch_folder
from lmlab.errors import LmlabError, UserError
from lmlab.files import atomic_file
from lmlab.methods.swebench.harness.workspaces.git import git, run_git

DOT_GIT = ".git"
_DIGEST = re.compile("[0-9a-f]{64}")
MOST_FILES, MOST_BYTES = 200_000, 4 << 30  # of an archive from outside, which may claim any number


def tree_files(folder: Path) -> Iterator[str]:
    """Paths of the files and links below a folder, sorted, without what is called .git, at whatever depth."""
    pending, found = [""], list[str]()
    while pending:
        at = pending.pop()
        with os.scandir(folder / at if at else folder) as entries:
            for entry in entries:
                path = f"{at}/{entry.name}" if at else entry.name
                if entry.name != DOT_GIT:
                    (pending if entry.is_dir(follow_symlinks=False) else found).append(path)
    return iter(sorted(found))


def file_state(folder: Path, path: str) -> tuple[str, bytes]:
    """Kind (file, program, link, other) and content of a file."""
    place = folder / path
    mode = place.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", os.fsencode(os.readlink(place))
    if not stat.S_ISREG(mode):
        return "other", b""
    return ("program" if mode & 0o100 else "file"), place.read_bytes()


def tree_digest(folder: Path) -> str:
    """SHA-256 of what a tree holds: paths, kinds and contents."""
    digest = hashlib.sha256()
    for path in tree_files(folder):
        kind, content = file_state(folder, path)
        digest.update(f"{path}\0{kind}\0{hashlib.sha256(content).hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def changed_paths(before: Path, after: Path) -> dict[str, str]:
    """Path to "added", "removed" or "changed", between two folders."""
    old, new = set(tree_files(before)), set(tree_files(after))
    found = dict.fromkeys(old - new, "removed") | dict.fromkeys(new - old, "added")
    found |= {path: "changed" for path in old & new if file_state(before, path) != file_state(after, path)}
    return dict(sorted(found.items()))


def checked_digest(digest: object) -> str:
    """A digest of a tree that stands in a file of somebody else's, and becomes a part of paths.

    Raises:
        UserError: it is none.
    """
    if isinstance(digest, str) and _DIGEST.fullmatch(digest):
        return digest
    raise UserError(f"base_tree is the SHA-256 of a tree in 64 digits, not {str(digest)[:80]!r}.")


class TreeStore:
    """Trees in a folder, each an archive that is named by the digest of its content."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.folder = folder

    def add(self, tree: str | Path) -> str:
        """Store a folder; its digest."""
        tree = Path(tree)
        digest = tree_digest(tree)
        place = self._place(digest)
        if not place.exists():
            with (
                atomic_file(place) as file,
                gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                for path in tree_files(tree):
                    _add(archive, tree, path)
        return digest

    def add_packed(self, archive: str | Path) -> str:
        """Store a tree out of an archive; its digest.

        Raises:
            UserError: the archive cannot be read.
        """
        try:
            data = Path(archive).read_bytes()
        except OSError as error:
            raise UserError(f"'{archive}' cannot be read: {error.strerror}.") from None
        with scratch_folder("tree") as scratch:
            unpack(data, scratch)
            return self.add(scratch)

    def add_from(self, other: TreeStore, digest: str) -> None:
        """Store a tree of another store.

        Raises:
            UserError: it is not there, cannot be read, or is another tree than its name says.
        """
        place = other._place(digest)
        if not self.has(digest) and self.add_packed(place) != digest:
            raise UserError(f"'{place}' does not hold the tree that its name says.", "Copy it again.")

    def has(self, digest: str) -> bool:
        """Whether a tree is stored."""
        return _DIGEST.fullmatch(digest) is not None and self._place(digest).exists()

    def add_commit(self, repository: str | Path, commit: str, scratch: str | Path) -> str:
        """Store the tree of a commit, without history.

        Arguments:
            scratch: an empty folder that receives the tree.

        Raises:
            UserError: it has submodules.
            LmlabError: git fails.
        """
        scratch = Path(scratch)
        repository = Path(repository)
        listed = git(repository, "ls-tree", "-r", "-z", commit)
        if any(entry.startswith(b"160000 ") for entry in listed.split(b"\0")):
            raise UserError(f"The commit {commit[:12]} has submodules, which are not supported.")
        unpack(git(repository, "archive", "--format=tar", commit), scratch)
        return self.add(scratch)

    def unpack(self, digest: str, into: str | Path) -> None:
        """Write a stored tree into an empty folder.

        Raises:
            UserError: it is not in the store.
            LmlabError: what the archive holds is something else.
        """
        into = Path(into)
        place = self._place(digest)
        if not place.exists():
            raise UserError(f"The tree {digest[:16]} is not at '{self.folder}'.", "Copy the folder trees/ along.")
        unpack(place.read_bytes(), into)
        if tree_digest(into) != digest:
            raise LmlabError(f"'{place}' does not hold the tree that its name says.", "Build the instances again.")

    def _place(self, digest: str) -> Path:
        return self.folder / f"{checked_digest(digest)}.tar.gz"


def _add(archive: tarfile.TarFile, tree: Path, path: str) -> None:
    kind, content = file_state(tree, path)
    entry = tarfile.TarInfo(path)
    entry.mode = 0o755 if kind == "program" else 0o644
    if kind == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, os.fsdecode(content)
        archive.addfile(entry)
    elif kind != "other":
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def unpack(data: bytes, into: Path, strip: int = 0) -> None:
    """Unpack an archive of somebody else's: nothing outside the folder, no devices, not too much.

    What is called .git is left out, as its configuration names programs that git runs. Links come last, so that nothing
    is written through one.

    Arguments:
        strip: leading folders to leave out.

    Raises:
        UserError: it is damaged, too large, or has members that reach out of the folder.
    """
    links: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            files = size = 0
            for member in archive:
                files, size = files + 1, size + member.size
                if files > MOST_FILES or size > MOST_BYTES:
                    raise UserError(f"The archive has more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB.")
                parts = member.name.strip("/").split("/")[strip:]
                member.name = "/".join(parts)
                if not member.name or any(part.lower() == DOT_GIT for part in parts):
                    continue
                if member.issym():
                    links.append(member)
                elif member.isfile() or member.isdir():
                    _extract(archive, member, into)
            for member in links:
                _link(into, member)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES):
            raise
        raise UserError(f"The archive cannot be unpacked: {error}.") from None


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """Write a file or folder where no links are yet. Not `TarFile.extract`, which knows filters from Python 3.11.4 on
    only, and whose filters were broken since.

    Raises:
        UserError: its path leaves the folder.
    """
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UserError(f"The archive cannot be unpacked: '{member.name}' leads out of it.")
    place = into.joinpath(*parts)
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None
    with content, open(place, "wb") as file:
        shutil.copyfileobj(content, file)
    place.chmod(0o755 if member.mode & 0o100 else 0o644)


def _link(into: Path, member: tarfile.TarInfo) -> None:
    """Make a link that leads nowhere outside, in folders that are none.

    Raises:
        UserError: it leads outside, or stands where something else does.
    """
    depth = 0
    parts = member.name.split("/")
    for part in [*parts[:-1], *member.linkname.split("/")]:
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0 or member.linkname.startswith("/"):
            raise UserError(f"The archive cannot be unpacked: '{member.name}' is a link to '{member.linkname}'.")
    place = into
    for part in parts[:-1]:
        place /= part
        if place.is_symlink() or part == "..":
            raise UserError(f"The archive cannot be unpacked: '{member.name}' stands behind a link.")
        place.mkdir(exist_ok=True)
    (place / parts[-1]).symlink_to(member.linkname)


def is_commit(repository: Path, name: str) -> bool:
    """Whether a repository has a commit."""
    return run_git(repository, ["cat-file", "-e", f"{name}^{{commit}}"]).returncode == 0
