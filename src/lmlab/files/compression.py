"""A file's bytes, decompressed by its suffix: what is damaged, or made to fill the memory, is named."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from lmlab.errors import UserError, missing_extra
from lmlab.files.systems import is_url, open_raw
from lmlab.redaction import redact
from lmlab.words import counted

_BUFFER_BYTES = 2**20  # over a network, where each read is a request
_PACKED_BYTES = 2**16  # that a decompressor gets at once; what they grow to is counted after each
_UNPACKED_BYTES = 2**18  # the most that a decompressor gives at once
_ZSTD_BYTES = 2**10  # read at once, as zstandard gives all that they hold: at most 32 MiB
_WINDOW_BYTES = 2**27  # the most memory that a file may ask of its decompressor; `zstd -19` and `xz -9` take half
# Text is packed 3 to 20 times, logs 100 times. What starts small and grows beyond this is made to fill memory or disk.
MAX_EXPANSION = 200.0
_EXPANSION_COUNTS_FROM = 2**28  # 256 MiB do no harm, and short repetitive files grow much without ill will


def without_compression(name: str) -> str:
    """A name without the suffix of its compression: `a.jsonl` of `a.jsonl.gz`, `a.tar` of `a.tgz`."""
    stem, dot, suffix = name.rpartition(".")
    ending = (dot + suffix).lower()
    if ending in _SHORT_NAMES:
        return f"{stem}.tar"
    return stem if ending in _FRAMES else name


def open_binary(location: str | Path, max_expansion: float = MAX_EXPANSION) -> IO[bytes]:
    """Open a file for reading, decompressing .gz, .bz2, .xz, .zst and .lz4 by suffix.

    Arguments:
        max_expansion: how many times its size a compressed file may grow to; below 256 MiB it may grow as it likes.

    Raises:
        OSError: it is not there or cannot be read.
        DamagedError: while reading: the compressed data are damaged, or end early.
        UserError: the package that decompresses it is not installed; while reading: it grows too much.
    """
    suffix = Path(str(location)).suffix.lower()
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
        return f"{counted(read, 'bytes were')} read, how many are missing is unknown"
    if read >= size:
        return f"all of its {counted(size, 'bytes were')} read; how many should follow cannot be told"
    return f"{read:,} of {counted(size, 'bytes were')} read, about {max(0.0, 1 - read / size):.0%} are missing"


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
        missing = f"all of its {counted(self.packed_read, 'bytes were')} read; how many should follow cannot be told"
        return DamagedError(self._location, "the compressed data end early", missing)

    def _refuse_bombs(self) -> None:
        if self._unpacked > _EXPANSION_COUNTS_FROM and self._unpacked > self._max_expansion * self.packed_read:
            raise UserError(
                f"'{self._location}' grows to more than {self._max_expansion:g} times its size when it is decompressed:"
                f" {counted(self.packed_read, 'bytes hold')} {self._unpacked:,} so far.",
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
