"""What stands in a sandbox: the tree that is worked on, what is shown to it read-only, and its variables."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmlab.errors import UserError
from lmlab.words import counted

WORKSPACE = "/testbed"

VARIABLES: Mapping[str, str] = {
    "HOME": "/home/user",
    "USER": "user",
    "LOGNAME": "user",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "SOURCE_DATE_EPOCH": "315532800",
    "OMP_NUM_THREADS": "1",
}
"""The same in every run: nothing of the caller's environment is passed on, neither its proxies nor its secrets."""


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host that is seen at a place inside."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Box:
    """What a session works on.

    Attributes:
        workspace: a folder of the host, seen as /testbed, that the run may change.
        mounts: what else is seen.
        python: an interpreter of a virtual environment, first in PATH; its folder and that of the interpreter that it
            was made from are seen read-only, at their own paths.
        variables: besides and before the usual ones.
        image: of executors that use container images.
        user: number of the user in a container; 0 has no capabilities there either, but may write to what the image
            holds.
    """

    workspace: Path
    mounts: tuple[Mount, ...] = ()
    python: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    user: int = 1000

    def written(self, mounts: Sequence[Mount] = ()) -> list[str]:
        """Folders of the host that a run may write to."""
        return [str(self.workspace), *(str(each.source) for each in (*self.mounts, *mounts) if each.writable)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """All variables."""
        found = dict(VARIABLES)
        if self.python is not None:
            found["PATH"] = f"{self.python.parent}:{found['PATH']}"
            found["VIRTUAL_ENV"] = str(self.python.parent.parent)
        return found | dict(self.variables) | dict(more or {})

    def prefixes(self) -> list[Path]:
        """Folders that the interpreter needs: the virtual environment, and the installation behind its links.

        Raises:
            UserError: the interpreter is not there.
        """
        if self.python is None:
            return []
        if not self.python.exists():
            raise UserError(f"There is no interpreter at '{self.python}'.", "Build the environment again.")
        found = [self.python.parent.parent]
        configuration = found[0] / "pyvenv.cfg"
        if configuration.exists():
            lines = (line.partition("=") for line in configuration.read_text(encoding="utf-8").splitlines())
            home = next((Path(value.strip()) for key, _, value in lines if key.strip() == "home"), None)
            if home is not None:
                # The environment's python is a link, maybe over several: each folder on the way must be there
                found += [home.parent, home.resolve().parent]
        found.append(self.python.resolve().parent.parent)
        return [path for path in dict.fromkeys(found) if path not in (Path("/"), Path("/usr"))]


def open_beneath(root: Path, path: str, flags: int, mode: int = 0o644, make_folders: bool = False) -> int:
    """Open a file below a folder that somebody hostile has written to: no link is followed on the way.

    Raises:
        UserError: the path leaves the folder.
        OSError: there is no such file, or a link is in the way.
    """
    parts = _parts(path)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            if make_folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=folder)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        # O_NONBLOCK: a pipe that nobody writes to would hold the reader for ever
        opened = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"'{path}' is no file")
    return opened


def put_file(root: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file below a folder (`open_beneath`); what stands at its path is replaced, be it a link."""
    temporary = "/".join(_parts(path)) + ".lmlab.tmp"
    with os.fdopen(
        open_beneath(root, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, make_folders=True), "wb"
    ) as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
    os.replace(root / temporary, root / path)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts:
        raise UserError(f"'{path}' does not stand in the workspace.")
    return parts


def get_file(root: Path, path: str, max_bytes: int) -> bytes:
    """Read a file below a folder (`open_beneath`), at most so many bytes.

    Raises:
        OSError: it is not there, is no plain file, or is longer.
    """
    with os.fdopen(open_beneath(root, path, os.O_RDONLY), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(f"'{path}' has more than {counted(max_bytes, 'bytes')}")
    return data
