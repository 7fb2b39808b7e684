"""Vectors on disk: written once for a model and its texts, memory-mapped, resumable, at any fsspec URL.

A store is a folder: `meta.json` (what the vectors are of), `ids.txt`, and shards `00000-DIGEST.npy`, whose digest is of
their texts and of all that decides on the vectors. So a build that was cut off goes on, and after a change of a few
texts only their shards are made again. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.config import differences
from lmlab.errors import UserError, reads
from lmlab.files import (
    atomic_file,
    file_system,
    is_url,
    parse_json,
    read_mapping,
    remove_leftovers,
    require_mapping,
    sha256_json,
)
from lmlab.progress import progress
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.encoder import Encoder, Kind
from lmlab.retrieval.locks import alone
from lmlab.words import counted

StoreType = Literal["float32", "float16"]

_TELLING_IDS = 50  # all would be read for a name; a store tells for itself which texts it is of
_SHARD_ROWS = 2048  # what a stop can cost; fewer would write many small files


def encoder_folder(cache: Path, encoder: Encoder, precision: Precision) -> Path:
    """Where a cache keeps the vectors of an encoder: whoever asks for the same ones finds them there."""
    return cache / sha256_json([encoder.fingerprint, precision])[:12]


def collection_folder(name: str, ids: Sequence[str]) -> str:
    """Where those of a collection are in it: by its name, and by the ids of its documents for others of that name."""
    return f"{name}-{sha256_json(list(ids[:_TELLING_IDS]))[:6]}"


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of vectors.

    Attributes:
        location: a path or a URL.
        meta: what the vectors are of: `fingerprint` of the encoder, `kind`, `precision`, `dtype`, `rows`, `dim`, the
            digests of all `texts` and of the file of `ids`, and the names of `shards`.
    """

    location: str
    meta: dict[str, Any]

    @classmethod
    def build(
        cls,
        location: str | Path,
        encoder: Encoder,
        ids: Sequence[str],
        texts: Sequence[str],
        kind: Kind = "document",
        precision: Precision = "fp32",
        dtype: StoreType = "float32",
        shard_rows: int = _SHARD_ROWS,
    ) -> EmbeddingStore:
        """Encode texts, or what of them is not there yet.

        Raises:
            UserError: the folder holds vectors of another encoder; the message says in which fields they differ.
        """
        if len(ids) != len(texts):
            raise ValueError(f"{counted(len(ids), 'ids')} for {counted(len(texts), 'texts')}")
        place = str(location)
        about = {
            "fingerprint": encoder.fingerprint,
            "kind": kind,
            "precision": precision,
            "dtype": dtype,
        }
        with alone(place):
            return cls._build(place, about, encoder, ids, texts, shard_rows)

    @classmethod
    def _build(
        cls,
        place: str,
        about: dict[str, Any],
        encoder: Encoder,
        ids: Sequence[str],
        texts: Sequence[str],
        shard_rows: int,
    ) -> EmbeddingStore:
        kind, precision, dtype = about["kind"], about["precision"], about["dtype"]
        before = None
        if _exists(f"{place}/meta.json"):
            before = cls.open(place)._require(about)
        parts = [range(start, min(start + shard_rows, len(texts))) for start in range(0, len(texts), shard_rows)]
        names = [
            f"{number:05d}-{sha256_json([about, [texts[row] for row in part]])[:16]}.npy"
            for number, part in enumerate(parts)
        ]
        listed = "".join(json.dumps(id) + "\n" for id in ids).encode()
        digests = {"texts": _digest(texts), "ids": hashlib.sha256(listed).hexdigest()}
        store = cls(place, {**about, "rows": len(ids), "dim": encoder.dim, **digests, "shards": names})
        if (
            before is not None
            and before.meta == {**store.meta, "complete": True}
            and all(map(_exists, (f"{place}/{name}" for name in names)))
            and _read(f"{place}/ids.txt") == listed
        ):
            return store  # nothing is written, so that readers and other builds of the same are not disturbed
        if not is_url(place):
            remove_leftovers(place, nested=False)  # of a builder that was killed: who builds is alone here
        _write(f"{place}/meta.json", json.dumps({**store.meta, "complete": False}, indent=2).encode())
        _write(f"{place}/ids.txt", listed)
        with progress("encode", len(texts), "texts") as advance:
            for name, part in zip(names, parts, strict=True):
                if not _exists(f"{place}/{name}"):
                    vectors = encoder.encode_text([texts[row] for row in part], kind, precision)
                    buffer = io.BytesIO()
                    np.save(buffer, vectors.astype(dtype), allow_pickle=False)
                    _write(f"{place}/{name}", buffer.getvalue())
                advance(len(part))
        _write(f"{place}/meta.json", json.dumps({**store.meta, "complete": True}, indent=2).encode())
        _remove_others(place, set(names))
        return store

    @classmethod
    @reads("a store of vectors")
    def open(cls, location: str | Path) -> EmbeddingStore:
        """What a folder holds.

        Raises:
            UserError: it is no store.
        """
        place = str(location)
        if not _exists(f"{place}/meta.json"):
            raise UserError(f"'{place}' is no store of vectors: it has no meta.json.", "Run: lmlab retrieval encode")
        if is_url(place):
            meta = require_mapping(parse_json(_read(f"{place}/meta.json"), f"'{place}/meta.json'"), "a store")
        else:
            meta = read_mapping(Path(place) / "meta.json")
        meta["fingerprint"], meta["shards"]
        return cls(place, meta)

    def require(self, encoder: Encoder, kind: Kind, texts: Sequence[str] | None = None) -> EmbeddingStore:
        """Itself, if it holds vectors of this encoder (and of these texts).

        Raises:
            UserError: it does not; the message says which field differs; or its build was cut off.
        """
        self._require({"fingerprint": encoder.fingerprint, "kind": kind})
        if self.meta.get("complete") is False:
            raise UserError(f"The store '{self.location}' is not complete.", "Run its encoding again: it goes on.")
        if texts is not None and _digest(texts) != self.meta["texts"]:
            raise UserError(
                f"The store '{self.location}' holds vectors of other texts ({self.meta['rows']:,} of them).",
                "Encode again: only what changed is made anew.",
            )
        return self

    def _require(self, about: dict[str, Any]) -> EmbeddingStore:
        have = {**self.meta["fingerprint"], **{key: self.meta.get(key) for key in about if key != "fingerprint"}}
        want = {**about["fingerprint"], **{key: value for key, value in about.items() if key != "fingerprint"}}
        if told := differences(have, want):
            raise UserError(
                f"The store '{self.location}' holds vectors of another encoder: {told}.",
                "Choose another folder, or remove this one.",
            )
        return self

    @property
    def ids(self) -> list[str]:
        """The ids of its rows.

        Raises:
            UserError: the file is of other rows: two builds of different texts at one place, or a copy of a part.
        """
        place = f"{self.location}/ids.txt"
        data = _read(place)
        if "ids" in self.meta and hashlib.sha256(data).hexdigest() != self.meta["ids"]:
            raise UserError(f"'{place}' names other rows than the store has vectors of.", "Encode again.")
        return [parse_json(line, f"'{place}'") for line in data.decode().split("\n")[:-1]]

    def chunks(self) -> list[NDArray[Any]]:
        """Its shards, memory-mapped where they are local."""
        return self._check([self._shard(name) for name in self.meta["shards"]])

    def vectors(self) -> NDArray[np.float32]:
        """All of them in memory, [N, H] in fp32."""
        chunks = self.chunks()
        if not chunks:
            return np.zeros((0, self.meta["dim"]), np.float32)
        return np.concatenate([np.asarray(chunk, np.float32) for chunk in chunks])

    @reads("a store of vectors")
    def _shard(self, name: str) -> NDArray[Any]:
        place = f"{self.location}/{name}"
        if is_url(self.location):
            return np.load(io.BytesIO(_read(place)), allow_pickle=False)
        found: NDArray[Any] = np.load(place, mmap_mode="r", allow_pickle=False)
        return found

    def _check(self, chunks: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Shards, if they are of the width and together of the number of rows that the store says."""
        width, rows = self.meta["dim"], self.meta["rows"]
        odd = [
            name
            for name, chunk in zip(self.meta["shards"], chunks, strict=True)
            if chunk.ndim != 2 or chunk.shape[1] != width
        ]
        if odd or sum(map(len, chunks)) != rows:
            what = f"the shard '{odd[0]}' is not" if odd else "its shards do not hold"
            raise UserError(
                f"The store '{self.location}' is damaged: {what} {counted(rows, 'vectors')} of {width} dimensions.",
                "Remove it, and encode again.",
            )
        return chunks


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _exists(location: str) -> bool:
    if not is_url(location):
        return Path(location).exists()
    system, path = file_system(location)
    return bool(system.exists(path))


def _read(location: str) -> bytes:
    if not is_url(location):
        return Path(location).read_bytes()
    system, path = file_system(location)
    data: bytes = system.cat_file(path)
    return data


def _write(location: str, data: bytes) -> None:
    """Write a file whole: by renaming here, in one upload elsewhere."""
    if not is_url(location):
        with atomic_file(Path(location)) as file:
            file.write(data)
        return
    system, path = file_system(location)
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, data)


def _remove_others(location: str, kept: set[str]) -> None:
    """Remove shards of texts that are no longer there."""
    if not is_url(location):
        for path in Path(location).glob("*.npy"):
            if path.name not in kept:
                path.unlink()
        return
    system, root = file_system(location)
    for path in system.glob(f"{root}/*.npy"):
        if path.rpartition("/")[2] not in kept:
            system.rm_file(path)
