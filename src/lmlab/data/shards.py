"""Tokenised documents on disk: memory-mapped shards with a manifest that says what they are.

A directory holds, for each shard, `NNNNN.tokens.npy` (one flat array of ids) and `NNNNN.documents.npy` (int64 [documents, 3]: the
end of the document in tokens, its domain's number, its size in UTF-8 bytes), and `manifest.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data.documents import Document
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import atomic_file, read_json, sha256_file, write_json
from lmlab.progress import progress

FORMAT = 1
_BATCH_DOCUMENTS = 256


def write_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, directory: Path, shard_tokens: int = 2**26, num_documents: int | None = None
) -> dict[str, Any]:
    """Tokenise documents as [begin] text [end] and write shards of about `shard_tokens` tokens.

    Arguments:
        num_documents: how many documents there are, for the progress.

    Returns:
        the manifest.
    """
    directory.mkdir(parents=True, exist_ok=True)
    writer = _ShardWriter(directory, np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32), shard_tokens)
    with progress("tokenise", num_documents, "documents") as advance:
        batch: list[Document] = []
        for document in documents:
            batch.append(document)
            if len(batch) == _BATCH_DOCUMENTS:
                writer.add(batch, tokenizer)
                advance(len(batch), note=f"{writer.total_tokens:,} tokens")
                batch = []
        writer.add(batch, tokenizer)
        advance(len(batch))
    writer.flush()
    if not writer.shards:
        raise UserError("There is no document to tokenise.")
    manifest = {
        "format": FORMAT,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "dtype": writer.dtype.name,
        "domains": writer.domains,
        "counts": writer.counts,
        "shards": writer.shards,
    }
    write_json(directory / "manifest.json", manifest)
    return manifest


class _ShardWriter:
    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.directory, self.dtype, self.shard_tokens = directory, dtype, shard_tokens
        self.domains: list[str] = []
        self.counts: dict[str, Counter[str]] = {}
        self.shards: list[dict[str, Any]] = []
        self.total_tokens = 0
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[NDArray[Any]] = []
        self._index: list[tuple[int, int, int]] = []
        self._length = 0

    def add(self, documents: Sequence[Document], tokenizer: Tokenizer) -> None:
        for document, ids in zip(documents, tokenizer.encode_batch([document.text for document in documents]), strict=True):
            self._tokens.append(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], self.dtype))
            self._length += len(ids) + 2
            self.total_tokens += len(ids) + 2
            if document.domain not in self.counts:
                self.domains.append(document.domain)
                self.counts[document.domain] = Counter()
            size = len(document.text.encode())
            self.counts[document.domain].update(documents=1, tokens=len(ids) + 2, bytes=size)
            self._index.append((self._length, self.domains.index(document.domain), size))
            if self._length >= self.shard_tokens:
                self.flush()

    def flush(self) -> None:
        if not self._tokens:
            return
        name = f"{len(self.shards):05d}"
        arrays = {"tokens": np.concatenate(self._tokens), "documents": np.array(self._index, np.int64)}
        entry: dict[str, Any] = {"name": name, "tokens": self._length, "documents": len(self._index), "sha256": {}}
        for part, array in arrays.items():
            path = self.directory / f"{name}.{part}.npy"
            with atomic_file(path) as file:
                np.save(file, array, allow_pickle=False)
            entry["sha256"][part] = sha256_file(path)
        self.shards.append(entry)
        self._clear()


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped: `tokens` [n], and for each document its end, domain number and bytes."""

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    domains: NDArray[np.int64]
    sizes: NDArray[np.int64]


class TokenizedCorpus:
    """The shards of a directory.

    Arguments:
        directory: where `write_shards` wrote.
        verify: compare every file with its hash in the manifest.

    Raises:
        UserError: no manifest, another format, a missing, truncated or altered shard; the message names the file.
    """

    def __init__(self, directory: Path, verify: bool = False) -> None:
        path = directory / "manifest.json"
        if not path.exists():
            raise UserError(f"'{directory}' holds no tokenised corpus (manifest.json is missing).", "Write one with: lmlab tokenize --help")
        self.manifest = read_json(path)
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"'{path}' has format {self.manifest.get('format')}; this version reads format {FORMAT}.", "Tokenise it again.")
        self.directory = directory
        self.domains: list[str] = self.manifest["domains"]
        self.shards = [self._open(entry, verify) for entry in self.manifest["shards"]]

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, begin and end marks included."""
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def tokenizer_fingerprint(self) -> str:
        """The tokenizer that made the ids."""
        return str(self.manifest["tokenizer"]["fingerprint"])

    def _open(self, entry: dict[str, Any], verify: bool) -> Shard:
        arrays = {}
        for part, expected in (("tokens", entry["tokens"]), ("documents", entry["documents"])):
            path = self.directory / f"{entry['name']}.{part}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise UserError(f"The shard file '{path}' is missing.", "Tokenise the corpus again.") from None
            except ValueError as error:
                raise UserError(f"The shard file '{path}' is damaged ({error}).", "Tokenise the corpus again.") from None
            if len(array) != expected or (verify and sha256_file(path) != entry["sha256"][part]):
                raise UserError(f"The shard file '{path}' is not the one that the manifest describes.", "Tokenise the corpus again.")
            arrays[part] = array
        index = np.asarray(arrays["documents"])
        return Shard(arrays["tokens"], index[:, 0].copy(), index[:, 1].copy(), index[:, 2].copy())
