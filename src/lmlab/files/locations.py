"""Paths and URLs: which files a location means, what they are like, and their bytes, decompressed.

A location is a local path, a glob, a folder, or a URL of any file system that fsspec knows
(`s3://bucket/folder/*.jsonl.zst`, `memory://x`).
"""

from __future__ import annotations

import bz2
import glob
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from lmlab.errors import UserError, missing_extra
from lmlab.redaction import HIDDEN, redact

_BUFFER_BYTES = 2**20
_OPEN = re.compile(r"[*?[]")  # where a glob leaves a path open
_PACKED_BYTES = 2**16
_UNPACKED_BYTES = 2**18  # the most that a decompressor gives at once
_ZSTD_BYTES = 2**10  # read at once, as zstandard gives all that they hold: at most 32 MiB
_WINDOW_BYTES = 2**27  # the most memory that a file may ask of its decompressor; `zstd -19` and `xz -9` take half
# Text is packed 3 to 20 times, logs 100 times. What starts small and grows beyond this is made to fill memory or disk.
MAX_EXPANSION = 200.0
_EXPANSION_COUNTS_FROM = 2**28
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


def absolute(location: str | Path) -> str:
    """A location in one form, however it was written: an absolute path (globs too), or a URL as it is."""
    return str(location) if is_url(location) else str(Path(location).expanduser().resolve())


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
    if not found and suffixes and is_folder(location):
        raise UserError(
            f"The folder '{location}' holds no file that ends in {_any_of(suffixes)}.",
            "Name the files themselves if theirs is another ending; globs such as data/**/*.txt are allowed.",
        )
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


def names_within(location: str) -> Callable[[str], str]:
    """How the files that a location means, and places in them, are called there: below a folder by their path in it,
    and by its name where the location is a file. Such a name stays when all of it moves, and however the location is
    written; places may be told without their secrets.

    Raises:
        UserError: the file system cannot be reached.
    """
    roots = _roots(location)
    opened = [_OPEN.search(root) for root in roots]
    if any(opened) and not _is_there(location):
        below = [root[: at.start()].rpartition("/")[0] if at else root for root, at in zip(roots, opened, strict=True)]
    else:
        below = [*roots, *(root.rstrip("/").rpartition("/")[0] for root in roots)]
    starts = list(dict.fromkeys(form.rstrip("/") + "/" for root in below for form in (root, redact(root))))

    def name(place: str) -> str:
        return next((place.removeprefix(start) for start in starts if place.startswith(start)), place)

    return name


def _is_there(location: str) -> bool:
    """Whether a location is a file or folder, whatever characters of globs its name has."""
    if not is_url(location):
        return Path(location).expanduser().exists()
    try:
        system, path = file_system(location)
        return bool(system.isfile(path) or system.isdir(path))
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(location, error) from None


def _roots(location: str) -> list[str]:
    """A location as the files that are found there begin: as it was given, and as its file system writes it."""
    if not is_url(location):
        return [str(Path(location).expanduser())]
    system, path = file_system(location)
    return [location, system.unstrip_protocol(path)]


def without_compression(name: str) -> str:
    """A name without the suffix of its compression: `a.jsonl` of `a.jsonl.gz`, `a.tar` of `a.tgz`."""
    stem, dot, suffix = name.rpartition(".")
    if dot + suffix in _SHORT_NAMES:
        return f"{stem}.tar"
    return stem if dot + suffix in _FRAMES else name


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


def open_binary(location: str | Path, max_expansion: float = MAX_EXPANSION) -> IO[bytes]:
    """Open a file for reading, decompressing .gz, .bz2, .xz, .zst and .lz4 by suffix.

    Arguments:
        max_expansion: how many times its size a compressed file may grow to; below 256 MiB it may grow as it likes.

    Raises:
        OSError: it is not there or cannot be read.
        DamagedError: while reading: the compressed data are damaged, or end early.
        UserError: the package that decompresses it is not installed; while reading: it grows too much.
    """
    suffix = Path(str(location)).suffix
    make = _FRAMES.get(_SHORT_NAMES.get(suffix, suffix))
    if make is None:
        return _buffered(location)
    return io.BufferedReader(_Unpacked(location, make, max_expansion), _UNPACKED_BYTES)


def bytes_read(file: Any) -> tuple[int, int | None]:
    """How many bytes of what is stored were read of an open file, and how many there are (None: unknown)."""
    raw = getattr(file, "raw", file)
    if isinstance(raw, _Unpacked):
        return raw.packed_read, raw.packed_size
    try:
        return file.tell(), _size(raw)
    except (OSError, ValueError, AttributeError):
        return 0, None


class DamagedError(UserError):
    """A file that ends early or is damaged.

    Attributes:
        location: the file, or the place in it.
        reason: what is wrong.
        missing: what part of it could not be read, as far as that can be told.
        advice: what to do, if that is not to write it again.
    """

    def __init__(self, location: str, reason: str, missing: str = "", remedy: str = "") -> None:
        self.location, self.reason, self.missing, self.advice = redact(location), reason, missing, remedy
        super().__init__(
            f"'{location}' is damaged: {reason}{f' ({missing})' if missing else ''}.",
            remedy or "Write or download it again.",
        )


def share_read(read: int, size: int | None) -> str:
    """How much of a file was read, for people."""
    if not size:
        return f"{read:,} bytes were read, how many are missing is unknown"
    if read >= size:
        return f"all of its {size:,} bytes were read; how many should follow cannot be told"
    return f"{read:,} of {size:,} bytes were read, about {max(0.0, 1 - read / size):.0%} are missing"


class _Frame(Protocol):
    """Decompresses one member of a file.

    Attributes:
        hungry: more input is needed.
        eof: the member is complete.
        unused_data: what follows it.
    """

    hungry: bool

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes:
        """Some of the decompressed bytes."""
        ...


class _Gzip:
    def __init__(self, location: str) -> None:
        self._object = zlib.decompressobj(31)  # a header and a check sum of gzip
        self._tail, self.hungry = b"", True

    def feed(self, data: bytes) -> bytes:
        found = self._object.decompress(self._tail + data, _UNPACKED_BYTES)
        self._tail = self._object.unconsumed_tail
        self.hungry = not self._tail and len(found) < _UNPACKED_BYTES
        return found

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data


class _OfLibrary:
    """A decompressor that tells where its stream ends."""

    _object: Any

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data or b""


class _Limited(_OfLibrary):
    """Decompressors of the standard library's form: bz2, lzma, and lz4."""

    def __init__(self, decompressor: Any) -> None:
        self._object, self.hungry = decompressor, True

    def feed(self, data: bytes) -> bytes:
        found: bytes = self._object.decompress(data, max_length=_UNPACKED_BYTES)
        self.hungry = self._object.needs_input
        return found


class _Zstd(_OfLibrary):
    hungry = True

    def __init__(self, location: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise missing_extra("zstandard", f"Reading '{location}'") from None
        self._object = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()

    def feed(self, data: bytes) -> bytes:
        found: bytes = self._object.decompress(data)
        return found


def _lz4(location: str) -> _Limited:
    try:
        import lz4.frame
    except ImportError:
        raise missing_extra("lz4", f"Reading '{location}'") from None
    return _Limited(lz4.frame.LZ4FrameDecompressor())


_FRAMES: dict[str, Callable[[str], _Frame]] = {
    ".gz": _Gzip,
    ".bz2": lambda location: _Limited(bz2.BZ2Decompressor()),
    ".xz": lambda location: _Limited(lzma.LZMADecompressor(memlimit=_WINDOW_BYTES)),
    ".zst": _Zstd,
    ".lz4": _lz4,
}
_SHORT_NAMES = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}


class _Unpacked(io.RawIOBase):
    """The decompressed bytes of a file of any number of members. Unlike the readers of the standard library it finds
    every kind of damage (bz2 and lzma take what follows the first member for harmless when it is broken), and it never
    holds more than a piece.
    """

    def __init__(self, location: str | Path, make: Callable[[str], _Frame], max_expansion: float) -> None:
        self._location, self._make, self._max_expansion = str(location), make, max_expansion
        self._frame: _Frame | None = make(self._location)
        self._piece = _ZSTD_BYTES if make is _Zstd else _PACKED_BYTES
        self._packed = _buffered(location)
        self._rest, self._ready = b"", memoryview(b"")
        self.packed_size = _size(self._packed)
        self.packed_read = self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = b""
            if self._frame is None or self._frame.hungry:
                data = self._rest or self._packed.read(self._piece)
                self.packed_read += 0 if self._rest else len(data)
                self._rest = b""
                if not data and self._frame is None:
                    return 0
                if not data:
                    raise self._early_end()
                if self._frame is None:
                    data = data.lstrip(b"\0")  # padding, as of tapes
                    if not data:
                        continue
                    self._frame = self._make(self._location)
            self._ready = memoryview(self._feed(data))
            self._refuse_bombs()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _feed(self, data: bytes) -> bytes:
        assert self._frame is not None
        try:
            found = self._frame.feed(data)
        except Exception as error:  # each library has errors of its own
            raise self._damage(f"its compression is broken, {error}") from None
        self._unpacked += len(found)
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame = None
        return found

    def _damage(self, reason: str) -> DamagedError:
        return DamagedError(self._location, reason, share_read(self.packed_read, self.packed_size))

    def _early_end(self) -> DamagedError:
        if not self.packed_read:
            return DamagedError(self._location, "it is empty, which no compressed file is")
        missing = f"all of its {self.packed_read:,} bytes were read; how many should follow cannot be told"
        return DamagedError(self._location, "the compressed data end early", missing)

    def _refuse_bombs(self) -> None:
        if self._unpacked > _EXPANSION_COUNTS_FROM and self._unpacked > self._max_expansion * self.packed_read:
            raise UserError(
                f"'{self._location}' grows to more than {self._max_expansion:g} times its size when it is decompressed:"
                f" {self.packed_read:,} bytes hold {self._unpacked:,} so far.",
                "Files that are made to fill memory or disk do so; if this one is sound, raise max_expansion of the"
                " source.",
            )

    def close(self) -> None:
        if not self.closed and hasattr(self, "_packed"):
            self._packed.close()
        super().close()


def _size(file: Any) -> int | None:
    """The size of an open file; None where its file system does not say."""
    raw = getattr(file, "raw", file)
    size = getattr(raw, "size", None)
    if isinstance(size, int):
        return size
    try:
        return os.fstat(file.fileno()).st_size
    except (OSError, AttributeError, ValueError):
        return None


def _buffered(location: str | Path) -> IO[bytes]:
    raw: Any = open_raw(location)
    return io.BufferedReader(raw, _BUFFER_BYTES) if is_url(location) else raw


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
    import fsspec  # here, as help needs none and it takes 20 ms

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
    if root.is_file():
        return [str(root)]
    from lmlab.files.owned import only_owned  # which reads its manifests by way of this module

    if root.is_dir():
        found = [str(path) for path in sorted(root.rglob("*")) if path.is_file() and _counts(path.name, suffixes)]
        return only_owned(found, root)
    return only_owned([name for name in sorted(glob.glob(str(root), recursive=True)) if Path(name).is_file()], Path())


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


def _any_of(names: Sequence[str]) -> str:
    *others, last = (f"'{name}'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _unreachable(location: str, error: Exception) -> UserError:
    lines = str(error).splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return UserError(f"'{location}' cannot be reached ({reason}).", "Check the address and the credentials.")
