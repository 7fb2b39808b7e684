"""Where leases are kept: a folder, a SQLite file, objects at a URL. Each does an atomic compare and swap with what it
has.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lmlab.distributed.leases import Record
from lmlab.files import file_system

if TYPE_CHECKING:
    import sqlite3


class FolderStore:
    """Leases in a folder, also one that machines share (NFS, Lustre, a volume of a cluster).

    A held piece is a folder with one file, whose name is the record. Every change is one rename or removal of that very
    file, which the file system does for one process only, whatever its caches and clocks show. A free piece is no
    folder, or an empty one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._new = itertools.count()
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> Record | None:
        """The record of a name."""
        try:
            found = os.listdir(self._place(name))
        except FileNotFoundError:
            return None
        if len(found) != 1:  # none: free; two: a listing in the middle of a rename, of which the swap will tell
            return None
        owner, _, beat = found[0].rpartition("~")
        return Record(owner, int(beat))

    def swap(self, name: str, old: Record | None, new: Record | None) -> bool:
        """One rename."""
        place = self._place(name)
        if old is None:
            return new is None or self._create(place, new)
        try:
            if new is not None:
                os.rename(place / _file_name(old), place / _file_name(new))
                return True
            os.unlink(place / _file_name(old))
        except (FileNotFoundError, NotADirectoryError):
            # A server that repeats a request whose answer was lost reports the file as missing: look what came of it.
            return new is not None and (place / _file_name(new)).exists()
        with contextlib.suppress(OSError):  # somebody has taken the piece already
            os.rmdir(place)
        return True

    def _create(self, place: Path, record: Record) -> bool:
        """A folder that already holds its file is renamed to the piece's name, which fails if a folder with a file is
        there.
        """
        ready = self.folder / f".new-{uuid.uuid4().hex}-{next(self._new)}"
        ready.mkdir()
        try:
            (ready / _file_name(record)).touch()
            os.rename(ready, place)
            return True
        except OSError as error:
            if (place / _file_name(record)).exists():  # a repeated request, as above
                return True
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        finally:
            shutil.rmtree(ready, ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self.folder / quote(name, safe=" ").replace(".", "%2E")


class SqliteStore:
    """Leases in a table of a SQLite file, which may hold other tables; None for one in memory.

    Every change is one statement on the very record. Threads may share it.
    """

    _SCHEMA = "create table if not exists leases (name text primary key, owner text not null, beat integer not null)"

    def __init__(self, path: str | Path | None, wait_s: float = 60.0) -> None:
        import sqlite3

        # A connection of its own, as the number of changed rows is that of the connection's last statement.
        self._database: sqlite3.Connection = sqlite3.connect(
            path or ":memory:", timeout=wait_s, isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()
        self._database.execute("pragma synchronous=normal")
        self._database.execute(self._SCHEMA)

    def read(self, name: str) -> Record | None:
        """The record of a name."""
        with self._lock:
            row = self._database.execute("select owner, beat from leases where name = ?", (name,)).fetchone()
        return None if row is None else Record(*row)

    def swap(self, name: str, old: Record | None, new: Record | None) -> bool:
        """One statement."""
        if old is None:
            if new is None:
                return True
            return self._changes("insert or ignore into leases values (?, ?, ?)", (name, new.owner, new.beat))
        where = (name, old.owner, old.beat)
        if new is None:
            return self._changes("delete from leases where name = ? and owner = ? and beat = ?", where)
        changed = "update leases set owner = ?, beat = ? where name = ? and owner = ? and beat = ?"
        return self._changes(changed, (new.owner, new.beat, *where))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _changes(self, statement: str, values: tuple[str | int, ...]) -> bool:
        with self._lock:
            return self._database.execute(statement, values).rowcount == 1


class UrlStore:
    """Leases at a URL: in a store of objects (S3, GCS, Azure), in memory, or in files.

    Such a store does not compare and swap, but it creates an object for one asker only. So the records of a name are
    numbered objects in a folder, of which the highest is in force, and who changes it creates the next one. A number
    that was removed could be created again by who is slow, and a listing that is read while others come and go may lack
    some. So the highest stay (a piece that was given back keeps notes), and only those far below them are removed.
    """

    def __init__(self, location: str) -> None:
        self._system, self.root = file_system(location)
        self._creates_once = False  # as far as is known

    def read(self, name: str) -> Record | None:
        """The record of a name."""
        return self._standing(name)[1]

    def swap(self, name: str, old: Record | None, new: Record | None) -> bool:
        """One object more.

        Raises:
            NoAtomicCreateError: the file system cannot create an object for one asker only.
        """
        number, standing = self._standing(name)
        if standing != old:
            return False
        if old is None and new is None:
            return True
        folder, own = self._folder(name), number + 1
        content = _FREE if new is None else f"{new.owner} {new.beat}".encode()
        self._system.makedirs(folder, exist_ok=True)
        # else it is ours: a request whose answer was lost was repeated
        if not self._create(folder, own, content) and self._content(folder, own) != content:
            return False
        if not self._creates_once:
            # Servers that know no such condition, and file systems older than it, write over what is there.
            if self._create(folder, own, content):
                self._remove(folder, own)
                raise NoAtomicCreateError(f"{type(self._system).__name__} creates an object that is there")
            self._creates_once = True
        numbers = self._numbers(folder)
        if max(numbers) > own:  # this number was created, passed over and removed since the standing record was read
            self._remove(folder, own)
            return False
        for lower in numbers:
            if lower <= own - _STAY:
                self._remove(folder, lower)
        return True

    def _create(self, folder: str, number: int, content: bytes) -> bool:
        """Whether there was none."""
        from fsspec import AbstractFileSystem
        from fsspec.implementations.local import LocalFileSystem

        path = _numbered(folder, number)
        try:
            if isinstance(self._system, LocalFileSystem):
                with open(path, "xb") as file:
                    file.write(content)
            elif getattr(self._system.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file:
                raise NotImplementedError  # it would look whether there is one, and then write over what came meanwhile
            else:
                self._system.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError) as error:
            raise NoAtomicCreateError(f"{type(self._system).__name__} cannot create an object once") from error
        return True

    def _standing(self, name: str) -> tuple[int, Record | None]:
        """The highest number, 0 if there is none, and its record."""
        folder = self._folder(name)
        number = max(self._numbers(folder), default=0)
        content = self._content(folder, number) if number else _FREE
        if content == _FREE:
            return number, None
        owner, _, beat = (content or b"").decode(errors="replace").rpartition(" ")
        # no content: a file is being written, or its writer died; such a record too runs out
        return number, Record(owner, int(beat)) if beat.isdigit() else Record("unknown", number)

    def _numbers(self, folder: str) -> list[int]:
        self._system.invalidate_cache(folder)
        try:
            names = [str(name).rpartition("/")[2] for name in self._system.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        return [int(name) for name in names if name.isdigit()]

    def _content(self, folder: str, number: int) -> bytes | None:
        try:
            found: bytes = self._system.cat_file(_numbered(folder, number))
        except FileNotFoundError:
            return None
        return found

    def _remove(self, folder: str, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(_numbered(folder, number))

    def _folder(self, name: str) -> str:
        return f"{self.root}/{quote(name, safe=' ').replace('.', '%2E')}"


class NoAtomicCreateError(Exception):
    """A file system that cannot keep leases."""


_FREE = b"free"
_STAY = 16  # records: a process would have to sleep through as many within one listing to miss that it is late


def _numbered(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}"


def _file_name(record: Record) -> str:
    return f"{record.owner}~{record.beat}"
