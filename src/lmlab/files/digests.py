"""What a file holds, as one short text: the SHA-256 of its content, remembered until the file is touched.

A copy, a `touch` or another checkout leaves the content alone, so times are no reason to do work again. Reading a
corpus to find that out is slow, so digests are kept in the user's cache directory by path, size, time and inode, as git
does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files.atomic import sha256_file
from lmlab.files.locations import remote_version
from lmlab.files.systems import is_url

_SETTLED_NS = 2 * 10**9  # a file written within the last two seconds may change again without a new time
_TABLE = (
    "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER,"
    " digest TEXT)"
)


def cache_directory() -> Path:
    """Where lmlab keeps what it can compute again: LMLAB_CACHE, else `lmlab` in the user's cache directory.

    Raises:
        UserError: the system does not know the user's home, as in some containers.
    """
    try:
        if place := os.environ.get("LMLAB_CACHE"):
            return Path(place).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmlab"
    except RuntimeError:
        raise UserError("There is no home directory for the cache.", "Set LMLAB_CACHE to a directory.") from None


def describe(location: str) -> list[Any]:
    """The size of a file and what tells its content from another, for deciding whether work must be done again: a
    digest, or for a remote file its tag.

    Raises:
        OSError: a local file cannot be read.
        UserError: a remote one cannot be reached.
    """
    if is_url(location):
        return remote_version(location)
    path = Path(location)
    return [path.stat().st_size, content_digest(path)]


def content_digest(path: str | Path) -> str:
    """The SHA-256 of a file's content, from the cache if size, time and inode are those that it was computed for.

    Raises:
        OSError: the file cannot be read.
    """
    return next(iter(content_digests([path])))


def content_digests(paths: Sequence[str | Path]) -> Iterator[str]:
    """The SHA-256 of each file's content, in order; as `content_digest`, with the cache opened once."""
    with _cache() as cache:
        for path in map(Path, paths):
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            key = os.fsencode(path.resolve()).hex() if not str(path).isprintable() else str(path.resolve())
            digest = _remembered(cache, key, state)
            if digest is None:
                digest = sha256_file(path)
                if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                    _remember(cache, key, state, digest)
            yield digest


@contextlib.contextmanager
def _cache() -> Iterator[sqlite3.Connection | None]:
    """The table of digests; None where it cannot be had, such as on a file system without locks."""
    connection = None
    try:
        path = cache_directory() / "digests.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=1)
        connection.execute(_TABLE)
    except (sqlite3.OperationalError, OSError, UserError):
        connection = None
    except sqlite3.DatabaseError:  # damaged: start it afresh the next time
        with contextlib.suppress(OSError):
            path.unlink()
        connection = None
    try:
        yield connection
    finally:
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.commit()
            connection.close()


def _remembered(cache: sqlite3.Connection | None, path: str, state: tuple[int, int, int]) -> str | None:
    if cache is None:
        return None
    with contextlib.suppress(sqlite3.Error):
        row = cache.execute("SELECT size, mtime_ns, inode, digest FROM digests WHERE path = ?", (path,)).fetchone()
        if row is not None and row[:3] == state and isinstance(row[3], str):
            return row[3]
    return None


def _remember(cache: sqlite3.Connection | None, path: str, state: tuple[int, int, int], digest: str) -> None:
    if cache is not None:
        with contextlib.suppress(sqlite3.Error):
            cache.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", (path, *state, digest))
