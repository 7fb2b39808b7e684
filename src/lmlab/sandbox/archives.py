"""A folder as a tar archive, into a container and out of it again: what comes out is somebody hostile's."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO

from lmlab.sandbox.limits import SandboxFailure

_MOST_FILES = 500_000
_MOST_DEEP = 128  # folders in one another, more than any real tree has


class TooLarge(Exception):
    """An archive holds more than may be written, or deeper folders."""


def pack(folder: Path, into: BinaryIO, owner: int, name: str = ".") -> None:
    """Write a folder as a tar archive; links stay links, and everything belongs to one user.

    Arguments:
        owner: number of user and group inside.
        name: of the folder in the archive; `.` for its content alone.
    """
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT, dereference=False) as archive:
        for part in _parents(name):
            above = tarfile.TarInfo(part)
            above.type, above.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(above)
        archive.add(folder, name, filter=lambda entry: _owned(entry, owner))


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _owned(entry: tarfile.TarInfo, owner: int) -> tarfile.TarInfo | None:
    if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        return None  # pipes, sockets and devices are of no use elsewhere
    entry.uid = entry.gid = owner
    entry.uname = entry.gname = ""
    return entry


def replace_by(archive: Path, folder: Path, most_bytes: int) -> None:
    """Make a folder what an archive holds, whose first part of names is left out.

    Nothing is written outside of the folder: files come first, into a folder of their own where no links are yet, links
    last. Devices and pipes are left out.

    Raises:
        TooLarge: it holds more bytes or files than it may; the folder is as it was.
        SandboxFailure: it is no archive.
    """
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        with tarfile.open(archive, mode="r:") as opened:
            _extract(opened, fresh, most_bytes)
        _empty(folder)  # its inode stays, as others may have mounted it
        for each in list(fresh.iterdir()):
            each.rename(folder / each.name)
    except tarfile.TarError as error:
        raise SandboxFailure(f"What the container gave back cannot be read: {error}.") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _extract(archive: tarfile.TarFile, into: Path, most_bytes: int) -> None:
    links: list[tuple[Path, str]] = []
    folders: list[tuple[Path, int]] = []
    files = size = 0
    for member in archive:
        files += 1
        size += member.size
        if files > _MOST_FILES or size > most_bytes:
            raise TooLarge
        parts = _parts(member.name)
        if parts is None:
            raise SandboxFailure(f"What the container gave back leaves its folder: {member.name!r}.")
        if len(parts) > _MOST_DEEP:
            raise TooLarge
        place = into.joinpath(*parts)
        mode = stat.S_IMODE(member.mode) & 0o777
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            folders.append((place, mode | 0o700))
        elif member.issym():
            links.append((place, member.linkname))
        elif member.isreg() or member.islnk():
            place.parent.mkdir(parents=True, exist_ok=True)
            if member.islnk():
                linked = _parts(member.linkname)
                source = None if linked is None else into.joinpath(*linked)
                if source is not None and source.is_file():
                    size += source.stat().st_size  # thousands of links to one large file would be as many files here
                    if size > most_bytes:
                        raise TooLarge
                    shutil.copyfile(source, place)
                    place.chmod(mode | 0o600)
                continue
            content = archive.extractfile(member)
            assert content is not None
            with content, open(place, "wb") as file:
                shutil.copyfileobj(content, file)
            place.chmod(mode | 0o600)
            os.utime(place, (member.mtime, member.mtime))
    for place, target in links:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(place):
            place.symlink_to(target)
    for place, mode in reversed(folders):
        if place.is_dir() and not place.is_symlink():
            place.chmod(mode)


def _parts(name: str) -> list[str] | None:
    """A member's name without its first part; None where it leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else parts[1:]


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
