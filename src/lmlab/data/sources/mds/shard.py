"""A shard of MDS, read: its samples by number, with sizes and hashes checked."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import mmap
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lmlab.data.sources.mds.encoding import DAMAGE, MDSError, decoder, short_reason, zstandard_library
from lmlab.errors import LmlabError, UserError
from lmlab.files import MAX_EXPANSION, open_raw

# a small file that holds one repeated value grows more than any text; up to here it does no harm
_EXPANSION_COUNTS_FROM = 2**28
_MAX_SHARD_BYTES = 2**32  # offsets are uint32


class MDSShard:
    """The samples of one shard, by number.

    Arguments:
        entry: its entry in `index.json`.
        folder: path or URL of the folder of the index.
        data: the bytes of the shard, for instance a file that is mapped into memory; by default they are read, and
            compared with the hashes of the index.

    Raises:
        MDSError: the shard is damaged or has columns that are not read (pickles, for instance).
    """

    def __init__(self, entry: Mapping[str, Any], folder: str, data: bytes | mmap.mmap | None = None) -> None:
        try:
            self.path = f"{folder.rstrip('/')}/{entry['raw_data']['basename']}"
            self.columns: list[str] = list(entry["column_names"])
            self._sizes: list[int | None] = [None if size is None else int(size) for size in entry["column_sizes"]]
            self._decoders = [decoder(encoding, self.path) for encoding in entry["column_encodings"]]
            if not len(self.columns) == len(self._sizes) == len(self._decoders):
                raise ValueError("columns without size or encoding")
            self._data = read_shard(entry, folder) if data is None else data
            self._offsets = self._read_offsets(int(entry["samples"]))
        except DAMAGE as error:
            raise MDSError(
                f"A shard that the index of '{folder}' describes is damaged ({short_reason(error)})."
            ) from None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample, column -> value.

        Raises:
            MDSError: it is damaged.
        """
        data = self._data[self._offsets[number] : self._offsets[number + 1]]
        try:
            place = 4 * sum(size is None for size in self._sizes)
            variable = iter(struct.unpack_from(f"<{place // 4}I", data))
            sample = {}
            for name, size, decode in zip(self.columns, self._sizes, self._decoders, strict=True):
                length = next(variable) if size is None else size
                if place + length > len(data):
                    raise ValueError("a value is cut short")
                sample[name] = decode(data[place : place + length])
                place += length
        except DAMAGE as error:
            raise MDSError(f"'{self.path}', sample {number}: damaged ({short_reason(error)}).") from None
        return sample

    def _read_offsets(self, expected: int) -> list[int]:
        data = self._data
        if (
            expected < 0
            or len(data) < 8
            or len(data) < 4 * (expected + 2)
            or struct.unpack_from("<I", data)[0] != expected
        ):
            raise MDSError(f"'{self.path}' does not hold the {expected} samples that its index promises.")
        offsets = list(struct.unpack_from(f"<{expected + 1}I", data, 4))
        if offsets[0] < 4 * (expected + 2) or offsets[-1] != len(data) or any(a > b for a, b in pairwise(offsets)):
            raise MDSError(f"The table of offsets of '{self.path}' is damaged.")
        return offsets


def read_shard(entry: Mapping[str, Any], folder: str) -> bytes:
    """The bytes of a shard, decompressed, with their sizes and hashes checked.

    Never more is read than the index promises.
    """
    path = f"{folder.rstrip('/')}/{entry['raw_data']['basename']}"
    packed = entry.get("zip_data")
    data = _bytes_of(path, entry["raw_data"])
    if data is None and packed:
        zipped = f"{folder.rstrip('/')}/{packed['basename']}"
        compressed = _bytes_of(zipped, packed)
        if compressed is None:
            raise MDSError(f"The shard '{zipped}' is missing.")
        _verify(compressed, packed, zipped)
        if _size(entry["raw_data"]) > max(_EXPANSION_COUNTS_FROM, MAX_EXPANSION * len(compressed)):
            raise MDSError(f"The shard '{zipped}' would grow to more than {MAX_EXPANSION:g} times its size.")
        data = _decompress(compressed, str(entry.get("compression")), _size(entry["raw_data"]), zipped)
    if data is None:
        raise MDSError(f"The shard '{path}' is missing.")
    _verify(data, entry["raw_data"], path)
    return data


def _bytes_of(path: str, described: Mapping[str, Any]) -> bytes | None:
    """The file's bytes, at most one more than its index says; None if there is no such file."""
    try:
        with open_raw(path) as file:
            return file.read(_size(described) + 1)
    except FileNotFoundError:
        return None
    except LmlabError:
        raise
    except Exception as error:  # every file system raises errors of its own
        raise MDSError(f"'{path}' is unreadable ({short_reason(error)}).") from None


def _size(described: Mapping[str, Any]) -> int:
    size = int(described["bytes"])
    if not 0 <= size < _MAX_SHARD_BYTES:
        raise ValueError(f"{size} bytes are none of a shard")
    return size


def _verify(data: bytes, described: Mapping[str, Any], path: str) -> None:
    size = _size(described)
    if len(data) != size:
        has = f"more than {size}" if len(data) > size else len(data)
        raise MDSError(f"'{path}' has {has} bytes; its index says {size}.")
    for name, expected in (described.get("hashes") or {}).items():
        if (
            name in hashlib.algorithms_available
            and not name.startswith("shake")
            and hashlib.new(name, data).hexdigest() != expected
        ):
            raise MDSError(f"'{path}' is damaged: its {name} is not the one in the index.")


def _decompress(data: bytes, compression: str, size: int, path: str) -> bytes:
    file: Any
    match compression.partition(":")[0]:
        case "zstd":
            file = zstandard_library().ZstdDecompressor().stream_reader(data, read_across_frames=True)
        case "gz":
            file = gzip.GzipFile(fileobj=io.BytesIO(data))
        case "bz2":
            file = bz2.BZ2File(io.BytesIO(data))
        case _:
            raise UserError(f"'{path}' is compressed by '{compression}', which lmlab does not read.")
    try:
        return bytes(file.read(size + 1))
    except Exception as error:  # each library has errors of its own
        raise MDSError(f"'{path}' cannot be decompressed ({short_reason(error)}).") from None
