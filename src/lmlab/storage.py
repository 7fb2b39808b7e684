"""Paths and URLs: which files a location means, what they are like, and their bytes, decompressed.

A location is a local path, a glob, a folder, or a URL of any file system that fsspec knows
(`s3://bucket/folder/*.jsonl.zst`, `memory://x`).
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

from lmlab.errors import UserError, missing_extra
from lmlab.redaction import HIDDEN

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BUFFER_BYTES = 2**20
_ZSTD_BYTES = 2**13  # read at once: they hold at most 256 MiB of text
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
}


def is_url(location: str | Path) -> bool:
    """Whether a location names a file system: `s3://bucket/key`, `memory://file`; a plain path does not."""
    return "://" in str(location)


def find_files(location: str, suffixes: Sequence[str] = ()) -> list[str]:
    """The files that a location means, sorted: one file, those a glob matches, or all below a folder.

    Arguments:
        suffixes: of the files below a folder that count, before a suffix of compression; none for all.

    Raises:
        UserError: nothing is there, or the file system cannot be reached.
    """
    try:
        found = _find_remote(location, suffixes) if is_url(location) else _find_local(location, suffixes)
    except UserError:
        raise
    except Exception as error:  # every file system raises errors of its own
        raise _unreachable(location, error) from None
    if not found:
        raise UserError(
            f"The source path '{location}' matches no file.", "Check the path; globs such as data/**/*.txt are allowed."
        )
    return found


def remote_version(location: str) -> list[Any]:
    """The size of a remote file and what tells its versions apart: its tag, or a time where there is none.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        system, path = file_system(location)
        found = system.info(path)
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(location, error) from None
    version = next(
        (str(found[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created", "updated") if found.get(key)),
        "",
    )
    return [found.get("size"), version]


def is_folder(location: str) -> bool:
    """Whether a location is a folder.

    Raises:
        UserError: the file system cannot be reached.
    """
    if not is_url(location):
        return Path(location).expanduser().is_dir()
    try:
        system, path = file_system(location)
        return bool(system.isdir(path))
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(location, error) from None


def without_compression(name: str) -> str:
    """A name without the suffix of its compression."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix in _COMPRESSED else name


def open_raw(location: str | Path) -> IO[bytes]:
    """Open a file for reading, as it is.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_url(location):
        return open(location, "rb")
    system, path = file_system(str(location))
    opened: IO[bytes] = system.open(path, "rb")
    return opened


def open_binary(location: str | Path) -> IO[bytes]:
    """Open a file for reading, decompressing .gz, .bz2, .xz and .zst by suffix.

    Raises:
        OSError: it is not there or cannot be read; reading raises it, EOFError or an error of the compression where the
            file is damaged.
        UserError: the package that decompresses it is not installed.
    """
    match Path(str(location)).suffix:
        case ".gz":
            return gzip.open(_named(location), "rb")
        case ".bz2":
            return bz2.open(_named(location), "rb")
        case ".xz":
            return lzma.open(_named(location), "rb")
        case ".zst":
            return io.BufferedReader(_ZstdFile(location), _BUFFER_BYTES)
        case _:
            return _buffered(location)


@contextmanager
def undamaged(location: str | Path) -> Iterator[None]:
    """Where a file is read that must be whole: damage of its compression is a `UserError` that names it."""
    try:
        yield
    except Exception as error:
        damaged = isinstance(error, EOFError | zlib.error | lzma.LZMAError) or type(error).__name__ == "ZstdError"
        if damaged or (isinstance(error, OSError) and error.errno is None):  # gzip and bz2
            raise UserError(f"'{location}' is damaged ({error}).", "Write it again.") from None
        raise


def _named(location: str | Path) -> Any:
    """What the standard library decompresses: a local path, which it closes itself, or an open file."""
    return _buffered(location) if is_url(location) else location


def _buffered(location: str | Path) -> IO[bytes]:
    raw: Any = open_raw(location)
    return io.BufferedReader(raw, _BUFFER_BYTES) if is_url(location) else raw


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of a .zst file of any number of frames; unlike zstandard's own reader it notices when the
    file is cut short.
    """

    def __init__(self, location: str | Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise missing_extra("zstandard", "data", f"Reading '{location}'") from None
        self._open_frame = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._packed = _buffered(location)
        self._frame: Any = None
        self._rest, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._packed.read(_ZSTD_BYTES)
            if not data and self._frame is not None:
                raise EOFError("the compressed data are cut short")
            if not data:
                return 0
            self._frame = self._frame or self._open_frame()
            self._ready, self._rest = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed and hasattr(self, "_packed"):
            self._packed.close()
        super().close()


def file_system(location: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        UserError: no such file system, or its package is not installed.
    """
    if f"{HIDDEN}@" in location or f"={HIDDEN}" in location:
        raise UserError(
            f"'{location}' was stored without its secrets.",
            "Run the recipe that has them, or let the environment hold them (AWS_ACCESS_KEY_ID and the like).",
        )
    protocol = location.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(location)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        raise UserError(
            f"Reading '{location}' needs the package '{package}'.", f"Install it with: pip install {package}"
        ) from None
    except ValueError as error:
        raise UserError(f"'{location}': {error}.", "Check what stands before '://'.") from None
    return system, path


def _find_local(location: str, suffixes: Sequence[str]) -> list[str]:
    root = Path(location).expanduser()
    if root.is_dir():
        return [str(path) for path in sorted(root.rglob("*")) if path.is_file() and _counts(path.name, suffixes)]
    if root.is_file():
        return [str(root)]
    return [name for name in sorted(glob.glob(str(root), recursive=True)) if Path(name).is_file()]


def _find_remote(location: str, suffixes: Sequence[str]) -> list[str]:
    system, path = file_system(location)
    if system.isfile(path):
        return [location]
    if system.isdir(path):
        found = [name for name in system.find(path) if _counts(name, suffixes)]
    else:
        found = [name for name, info in system.glob(path, detail=True).items() if info["type"] == "file"]
    return [system.unstrip_protocol(name) for name in sorted(found)]


def _counts(name: str, suffixes: Sequence[str]) -> bool:
    return not suffixes or without_compression(name).endswith(tuple(suffixes))


def _unreachable(location: str, error: Exception) -> UserError:
    lines = str(error).splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return UserError(f"'{location}' cannot be reached ({reason}).", "Check the address and the credentials.")
