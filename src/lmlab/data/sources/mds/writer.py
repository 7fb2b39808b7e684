"""Writing MDS: samples to shards, and the index at the end."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lmlab.data.sources.mds.encoding import DAMAGE, SCALARS, encoder, short_reason, zstandard_library
from lmlab.data.sources.mds.index import INDEX
from lmlab.errors import UserError
from lmlab.files import atomic_file, write_json

SIZE_LIMIT = 2**26  # as Mosaic's own writer has it


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
        if (directory / INDEX).exists():
            raise UserError(f"'{directory}' already holds a data set.", "Name another directory, or remove this one.")
        if compression not in (None, "zstd"):
            raise UserError(f"Unknown compression '{compression}'.", "Use zstd, or none.")
        self.directory, self.compression, self.size_limit = directory, compression, size_limit
        self.columns = dict(sorted(columns.items()))
        self._encoders = {name: encoder(encoding) for name, encoding in self.columns.items()}
        self._sizes = {
            name: np.dtype(SCALARS[encoding]).itemsize if encoding in SCALARS else None
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
        except DAMAGE as error:
            raise UserError(
                f"A value of the column '{name}' is not of the type '{self.columns[name]}' ({short_reason(error)})."
            ) from None

    def close(self) -> None:
        """Write the last shard and the index."""
        self._flush()
        write_json(self.directory / INDEX, {"version": 2, "shards": self._shards})

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
            data = zstandard_library().ZstdCompressor().compress(data)
            entry["zip_data"] = _describe(f"{name}.zstd", data)
            name += ".zstd"
        with atomic_file(self.directory / name) as file:
            file.write(data)
        self._shards.append(entry)
        self._samples, self._bytes = [], 0


def _describe(name: str, data: bytes) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
