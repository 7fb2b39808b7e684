"""MDS, the shard format of Mosaic Streaming: read and written.

A data set is a folder with `index.json`, which lists its shards. A shard, little endian, holds the number of samples N
(uint32), N + 1 offsets from the start of the file (uint32), its configuration as JSON, and the samples. A sample is the
sizes (uint32) of the values of its columns of variable size, then the values of all columns.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import mmap
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lmlab.errors import LmlabError, UserError, missing_extra
from lmlab.files import atomic_file, write_json
from lmlab.parsing import MAX_JSON_BYTES, json_value
from lmlab.storage import MAX_EXPANSION, find_files, open_raw

SIZE_LIMIT = 2**26
_INDEX = "index.json"
_EXPANSION_COUNTS_FROM = 2**28
_SCALARS = {
    "int": "<i8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
_ARRAY_CODES = {
    8: "u1",
    9: "i1",
    16: "u2",
    17: "i2",
    18: "f2",
    32: "u4",
    33: "i4",
    34: "f4",
    64: "u8",
    65: "i8",
    66: "f8",
}
_SHAPE_TYPES = ("u1", "u2", "u4", "u8")
_MAX_SHARD_BYTES = 2**32
_DAMAGE = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError, struct.error)


class MDSError(LmlabError):
    """A shard that is damaged, or holds what lmlab does not read."""


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
            self._decoders = [_decoder(encoding, self.path) for encoding in entry["column_encodings"]]
            if not len(self.columns) == len(self._sizes) == len(self._decoders):
                raise ValueError("columns without size or encoding")
            self._data = read_shard(entry, folder) if data is None else data
            self._offsets = self._read_offsets(int(entry["samples"]))
        except _DAMAGE as error:
            raise MDSError(f"A shard that the index of '{folder}' describes is damaged ({_short(error)}).") from None

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
        except _DAMAGE as error:
            raise MDSError(f"'{self.path}', sample {number}: damaged ({_short(error)}).") from None
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


def mds_indexes(folder: str) -> list[str]:
    """The `index.json` of every data set below a folder. An index speaks for all folders below its own.

    Raises:
        UserError: there is none.
    """
    found = [path for path in find_files(folder, (_INDEX,)) if path.rpartition("/")[2] == _INDEX]
    if not found:
        raise UserError(f"'{folder}' holds no MDS data set (index.json is missing).")
    folders = [path.removesuffix(_INDEX) for path in found]
    return [
        path
        for path, own in zip(found, folders, strict=True)
        if not any(own.startswith(each) and own != each for each in folders)
    ]


def read_mds_index(folder: str) -> list[tuple[str, dict[str, Any]]]:
    """The entries of all shards below a folder, each with the folder of its index.

    Raises:
        UserError: there is no index, or it is none of MDS.
    """
    return [(path.rpartition("/")[0], entry) for path in mds_indexes(folder) for entry in mds_entries(path)]


def mds_entries(path: str) -> list[dict[str, Any]]:
    """The entries of the shards that an index lists.

    Raises:
        UserError: it is none of MDS; the message says what is missing, and in which entry.
    """
    try:
        with open_raw(path) as file:
            index = json_value(file.read(MAX_JSON_BYTES + 1))
    except Exception as error:  # every file system raises errors of its own
        raise UserError(f"'{path}' is not the index of an MDS data set ({_short(error)}).") from None
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not isinstance(index, dict) or index.get("version") != 2:
        raise UserError(f"'{path}' is not the index of an MDS data set of version 2.")
    for number, entry in enumerate(shards):
        fault = _fault(entry)
        if fault is not None:
            raise UserError(f"'{path}', entry {number} of shards: {fault}.", "Write or download the index again.")
    return shards


def _fault(entry: Any) -> str | None:
    """What is wrong with the description of a shard, if anything."""
    if not isinstance(entry, dict):
        return "it is not an object"
    if entry.get("format") != "mds":
        return f"its format is {entry.get('format')!r}, not 'mds'"
    lists = ("column_names", "column_encodings", "column_sizes")
    wrong = next((key for key in lists if not isinstance(entry.get(key), list)), None)
    if wrong is not None:
        return f"'{wrong}' is missing or no list"
    if len({len(entry[key]) for key in lists}) > 1:
        return "its columns have not all a name, an encoding and a size"
    if not _is_number(entry.get("samples")):
        return "'samples' is missing or no number"
    if not isinstance(entry.get("raw_data"), dict):
        return "'raw_data' is missing or no object"
    for part in ("raw_data", "zip_data"):
        described = entry.get(part)
        if described is None:
            continue
        if not isinstance(described, dict) or not isinstance(described.get("basename"), str):
            return f"'{part}' names no file (basename)"
        if not _is_number(described.get("bytes")):
            return f"'{part}' has no size (bytes)"
        if not isinstance(described.get("hashes") or {}, dict):
            return f"'{part}.hashes' is no object"
        if ".." in Path(described["basename"]).parts or Path(described["basename"]).is_absolute():
            return f"it names a shard outside its folder, '{described['basename']}'"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class MDSWriter:
    """Writes samples to shards, and the index at the end.

    Arguments:
        columns: name -> encoding: `str`, `bytes`, `json`, a number type such as `uint32`, or `ndarray:uint32`.
        directory: must not hold an index yet.
        compression: None, or `zstd`.
        size_limit: most bytes of a shard.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        directory: str | Path,
        compression: str | None = None,
        size_limit: int = SIZE_LIMIT,
    ) -> None:
        directory = Path(directory)
        if (directory / "index.json").exists():
            raise UserError(f"'{directory}' already holds a data set.", "Name another directory, or remove this one.")
        if compression not in (None, "zstd"):
            raise UserError(f"Unknown compression '{compression}'.", "Use zstd, or none.")
        self.directory, self.compression, self.size_limit = directory, compression, size_limit
        self.columns = dict(sorted(columns.items()))
        self._encoders = {name: _encoder(encoding) for name, encoding in self.columns.items()}
        self._sizes = {
            name: np.dtype(_SCALARS[encoding]).itemsize if encoding in _SCALARS else None
            for name, encoding in self.columns.items()
        }
        self._shards: list[dict[str, Any]] = []
        self._samples: list[bytes] = []
        self._bytes = 0

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample, which has every column.

        Raises:
            UserError: a column is missing, or its value does not suit its encoding.
        """
        values = [self._encode(name, sample) for name in self.columns]
        sizes = [len(value) for value, size in zip(values, self._sizes.values(), strict=True) if size is None]
        data = struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(values)
        if self._samples and self._header_size(len(self._samples) + 1) + self._bytes + len(data) > self.size_limit:
            self._flush()
        self._samples.append(data)
        self._bytes += len(data)

    def _encode(self, name: str, sample: Mapping[str, Any]) -> bytes:
        if name not in sample:
            raise UserError(f"A sample lacks the column '{name}'.")
        try:
            return self._encoders[name](sample[name])
        except _DAMAGE as error:
            raise UserError(
                f"A value of the column '{name}' is not of the type '{self.columns[name]}' ({_short(error)})."
            ) from None

    def close(self) -> None:
        """Write the last shard and the index."""
        self._flush()
        write_json(self.directory / "index.json", {"version": 2, "shards": self._shards})

    def __enter__(self) -> MDSWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _configuration(self) -> dict[str, Any]:
        return {
            "column_encodings": list(self.columns.values()),
            "column_names": list(self.columns),
            "column_sizes": list(self._sizes.values()),
            "compression": self.compression,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": self.size_limit,
            "version": 2,
        }

    def _header_size(self, samples: int) -> int:
        return 4 * (samples + 2) + len(json.dumps(self._configuration(), sort_keys=True))

    def _flush(self) -> None:
        if not self._samples:
            return
        header = json.dumps(self._configuration(), sort_keys=True).encode()
        ends = np.cumsum([4 * (len(self._samples) + 2) + len(header), *map(len, self._samples)])
        if ends[-1] >= 2**32:
            raise UserError(
                f"A shard of {ends[-1]} bytes is too large for MDS.", "Lower size_limit, or cut the samples."
            )
        data = np.uint32(len(self._samples)).tobytes() + ends.astype("<u4").tobytes() + header + b"".join(self._samples)
        name = f"shard.{len(self._shards):05d}.mds"
        entry: dict[str, Any] = {
            **self._configuration(),
            "raw_data": _describe(name, data),
            "samples": len(self._samples),
            "zip_data": None,
        }
        if self.compression:
            data = _zstandard().ZstdCompressor().compress(data)
            entry["zip_data"] = _describe(f"{name}.zstd", data)
            name += ".zstd"
        with atomic_file(self.directory / name) as file:
            file.write(data)
        self._shards.append(entry)
        self._samples, self._bytes = [], 0


def _describe(name: str, data: bytes) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}


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
        raise MDSError(f"'{path}' is unreadable ({_short(error)}).") from None


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
            file = _zstandard().ZstdDecompressor().stream_reader(data, read_across_frames=True)
        case "gz":
            file = gzip.GzipFile(fileobj=io.BytesIO(data))
        case "bz2":
            file = bz2.BZ2File(io.BytesIO(data))
        case _:
            raise UserError(f"'{path}' is compressed by '{compression}', which lmlab does not read.")
    try:
        return bytes(file.read(size + 1))
    except Exception as error:  # each library has errors of its own
        raise MDSError(f"'{path}' cannot be decompressed ({_short(error)}).") from None


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise missing_extra("zstandard", "data", "Reading a compressed MDS shard") from None
    return zstandard


def _decoder(encoding: Any, path: str) -> Callable[[bytes], Any]:
    if not isinstance(encoding, str):
        raise UserError(f"'{path}' has a column whose type is no text ({encoding!r}).")
    if encoding in _SCALARS:
        return lambda data: np.frombuffer(data, _SCALARS[encoding])[0].item()
    match encoding.split(":"):
        case ["str"]:
            return lambda data: data.decode("utf-8")
        case ["bytes"]:
            return lambda data: data
        case ["json"]:
            return json_value
        case ["ndarray"]:
            return lambda data: _array(data[1:], _ARRAY_CODES[data[0]])
        case ["ndarray", dtype] if _is_dtype(dtype):
            return lambda data: _array(data, dtype)
        case ["ndarray", dtype, shape] if _is_dtype(dtype):
            sizes = tuple(int(size) for size in shape.split(","))
            return lambda data: np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(sizes)
        case _:
            raise UserError(f"'{path}' has a column of the type '{encoding}', which lmlab does not read.")


def _is_dtype(name: str) -> bool:
    return name in _SCALARS and name != "int"


def _array(data: bytes, dtype: str) -> Any:
    """An array after its header: (dimensions << 2 | code of the type of its sizes), then the sizes."""
    dimensions, code = data[0] >> 2, data[0] & 3
    sizes = np.frombuffer(data, np.dtype(_SHAPE_TYPES[code]).newbyteorder("<"), dimensions, 1)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), offset=1 + sizes.nbytes)
    return values.reshape(sizes)


def _encoder(encoding: str) -> Callable[[Any], bytes]:
    if encoding in _SCALARS:
        return lambda value: np.array(value, _SCALARS[encoding]).tobytes()
    match encoding.split(":"):
        case ["str"]:
            return lambda value: str(value).encode("utf-8")
        case ["bytes"]:
            return bytes
        case ["json"]:
            return lambda value: json.dumps(value).encode()
        case ["ndarray", dtype] if _is_dtype(dtype):
            return lambda value: _array_bytes(np.asarray(value, np.dtype(dtype).newbyteorder("<")))
        case _:
            raise UserError(
                f"lmlab does not write MDS columns of the type '{encoding}'.",
                "Use str, bytes, json, a number, or ndarray:TYPE.",
            )


def _array_bytes(array: Any) -> bytes:
    if array.size == 0:
        raise UserError("MDS cannot hold an array without elements.")
    code = next(code for code in range(4) if max(array.shape) < 256 ** (2**code))
    return (
        bytes([array.ndim << 2 | code])
        + np.array(array.shape, np.dtype(_SHAPE_TYPES[code]).newbyteorder("<")).tobytes()
        + array.tobytes()
    )
