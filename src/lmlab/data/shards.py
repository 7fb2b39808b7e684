"""Tokenized text on disk: memory-mapped shards with a manifest that says what they are.

A directory holds, for each shard, `NNNNN.tokens.npy` (one flat array of ids), `NNNNN.documents.npy` (int64 [documents,
3]: the end of the document in tokens, its domain's number in the shard, its size in UTF-8 bytes), where not every token
is learned `NNNNN.mask.npy` (uint8, 1 for those that are), and `NNNNN.json`, which describes the shard; and for all of
them `manifest.json` and the tokenizer, in `tokenizer/`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.data.documents import Document, Reject
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import atomic_file, read_mapping, sha256_file, write_json

FORMAT = 2
Kind = Literal["documents", "examples"]


@dataclass(frozen=True)
class TokenizedItem:
    """A document as tokens.

    Attributes:
        ids: with its begin and end marks.
        domain: its kind of text.
        size: UTF-8 bytes of its text.
        mask: for each token whether it is learned; None for all.
    """

    ids: Sequence[int]
    domain: str
    size: int
    mask: Sequence[int] | None = None


class ShardBuilder:
    """Collects the documents of one shard and writes it."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype, self.length = dtype, 0
        self._domains: list[str] = []
        self._counts: dict[str, Counter[str]] = {}
        self._parts: dict[str, list[NDArray[Any]]] = {"tokens": [], "mask": []}
        self._index: list[tuple[int, int, int]] = []

    def add(self, item: TokenizedItem) -> None:
        """Append a document."""
        self._parts["tokens"].append(np.array(item.ids, self.dtype))
        if item.mask is not None:
            self._parts["mask"].append(np.array(item.mask, np.uint8))
        self.length += len(item.ids)
        if item.domain not in self._counts:
            self._domains.append(item.domain)
            self._counts[item.domain] = Counter()
        learned = len(item.ids) if item.mask is None else sum(item.mask)
        self._counts[item.domain].update(documents=1, tokens=len(item.ids), bytes=item.size, learned_tokens=learned)
        self._index.append((self.length, self._domains.index(item.domain), item.size))

    def write(self, directory: Path, name: str, description: dict[str, Any]) -> dict[str, Any]:
        """Write the files of the shard, last its `NAME.json` with `description`; return what that holds."""
        arrays = {part: np.concatenate(values) for part, values in self._parts.items() if values}
        arrays.setdefault("tokens", np.empty(0, self.dtype))
        arrays["documents"] = np.array(self._index, np.int64).reshape(-1, 3)
        entry: dict[str, Any] = {
            "name": name,
            "tokens": self.length,
            "documents": len(self._index),
            "domains": self._domains,
            "counts": self._counts,
        }
        entry["sha256"] = {}
        for part, array in arrays.items():
            path = directory / f"{name}.{part}.npy"
            with atomic_file(path) as file:
                np.save(file, array, allow_pickle=False)
            entry["sha256"][part] = sha256_file(path)
        entry |= description
        write_json(directory / f"{name}.json", entry)
        return entry


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds all ids."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def write_manifest(
    directory: Path,
    tokenizer: Tokenizer,
    entries: Sequence[dict[str, Any]],
    kind: Kind = "documents",
    source: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe all shards of a directory; return the manifest."""
    kept = [entry for entry in entries if entry["documents"]]
    counts: dict[str, Counter[str]] = {}
    for entry in kept:
        for domain, each in entry["counts"].items():
            counts.setdefault(domain, Counter()).update(each)
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "dtype": token_dtype(tokenizer).name,
        "source": source,
        "domains": sorted(counts),
        "counts": {domain: dict(counts[domain]) for domain in sorted(counts)},
        "shards": kept,
    }
    write_json(directory / "manifest.json", manifest)
    return manifest


def write_shards(
    items: Iterable[TokenizedItem],
    tokenizer: Tokenizer,
    directory: Path | str,
    shard_tokens: int = 2**26,
    kind: Kind = "documents",
) -> dict[str, Any]:
    """Write tokenized documents to shards of about `shard_tokens` tokens; return the manifest."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory / "tokenizer")
    builder, entries = ShardBuilder(token_dtype(tokenizer)), list[dict[str, Any]]()
    for item in items:
        builder.add(item)
        if builder.length >= shard_tokens:
            entries.append(builder.write(directory, f"{len(entries):05d}", {}))
            builder = ShardBuilder(builder.dtype)
    if builder.length:
        entries.append(builder.write(directory, f"{len(entries):05d}", {}))
    return write_manifest(directory, tokenizer, entries, kind)


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped: `tokens` [n], `mask` [n] or None, and for each document its end, domain (number in the
    corpus) and bytes.
    """

    name: str
    tokens: NDArray[Any]
    mask: NDArray[np.uint8] | None
    ends: NDArray[np.int64]
    domains: NDArray[np.int64]
    sizes: NDArray[np.int64]


class TokenizedCorpus:
    """The shards of a directory.

    Arguments:
        directory: where they were written.
        verify: compare every file with its hash in the manifest.

    Attributes:
        kind: documents, or examples with a mask of what is learned.
        domains: names of all domains.
        tokenizer_fingerprint: of the tokenizer that made the ids.

    Raises:
        UserError: no manifest, another format, a missing, truncated or altered shard; the message names the file.
    """

    def __init__(self, directory: Path | str, verify: bool = False) -> None:
        directory = Path(directory)
        path = directory / "manifest.json"
        if not path.exists():
            raise UserError(
                f"'{directory}' holds no tokenized corpus (manifest.json is missing).",
                "Write one with: lmlab tokenize --help",
            )
        self.manifest = read_mapping(path)
        found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if found != FORMAT:
            raise UserError(f"'{path}' has format {found}; this version reads format {FORMAT}.", "Tokenize it again.")
        self.directory = directory
        try:
            self.kind: Kind = self.manifest["kind"]
            self.domains: list[str] = self.manifest["domains"]
            self.tokenizer_fingerprint = str(self.manifest["tokenizer"]["fingerprint"])
            self.shards = [self._open(entry, verify) for entry in self.manifest["shards"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"'{path}' is damaged ({type(error).__name__}: {error}).", "Tokenize the corpus again."
            ) from None

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, begin and end marks included."""
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return sum(len(shard.ends) for shard in self.shards)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids.

        Raises:
            UserError: the one in the directory is another.
        """
        tokenizer = Tokenizer.load(self.directory / "tokenizer")
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Make sure that a tokenizer is the one that made the ids.

        Raises:
            UserError: it is another.
        """
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise UserError(
                f"The corpus '{self.directory}' was made with another tokenizer.", "Tokenize it again with this one."
            )

    def check_source(self, path: Path | str) -> None:
        """Make sure that the file the corpus was made from has not changed.

        Raises:
            UserError: it has, or it is another; the message names it.
        """
        path = Path(path)
        source = self.manifest["source"]
        for entry in self.manifest["shards"] if source else ():
            start, end = entry["source"]["range"]
            if path.stat().st_size != source["bytes"] or hash_range(path, start, end) != entry["source"]["sha256"]:
                raise UserError(
                    f"'{path}' is not the file that shard {entry['name']} of '{self.directory}' was made from.",
                    "Tokenize it again.",
                )

    def documents(self) -> Iterator[Document | Reject]:
        """Every document as text again, with the id `SHARD:NUMBER`; one whose text the tokenizer did not keep is a
        `Reject`.
        """
        tokenizer = self.tokenizer
        for shard in self.shards:
            start = 0
            for number, end in enumerate(shard.ends):
                where, ids = f"{shard.name}:{number}", shard.tokens[start:end].tolist()
                text, start = tokenizer.decode(ids), int(end)
                if len(text.encode()) != shard.sizes[number]:
                    yield Reject(f"{self.directory}/{where}", "the tokenizer does not give the text back")
                else:
                    yield Document(where, text, self.domains[shard.domains[number]], where)

    def _open(self, entry: dict[str, Any], verify: bool) -> Shard:
        arrays = {}
        for part in entry["sha256"]:
            path = self.directory / f"{entry['name']}.{part}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise UserError(f"The shard file '{path}' is missing.", "Tokenize the corpus again.") from None
            except Exception as error:  # a damaged header of NumPy is parsed as Python, and can fail in any way
                raise UserError(
                    f"The shard file '{path}' is damaged ({type(error).__name__}: {error}).",
                    "Tokenize the corpus again.",
                ) from None
            if len(array) != entry["documents" if part == "documents" else "tokens"] or (
                verify and sha256_file(path) != entry["sha256"][part]
            ):
                raise UserError(
                    f"The shard file '{path}' is not the one that the manifest describes.", "Tokenize the corpus again."
                )
            arrays[part] = array
        index = np.asarray(arrays["documents"])
        if not _is_index(index, len(arrays["tokens"]), len(entry["domains"])):
            raise UserError(
                f"The shard file '{self.directory / entry['name']}.documents.npy' is damaged.",
                "Tokenize the corpus again.",
            )
        numbers = np.array([self.domains.index(domain) for domain in entry["domains"]], np.int64)
        return Shard(
            entry["name"],
            arrays["tokens"],
            arrays.get("mask"),
            index[:, 0].copy(),
            numbers[index[:, 1]],
            index[:, 2].copy(),
        )


def _is_index(index: NDArray[Any], num_tokens: int, num_domains: int) -> bool:
    """Whether an array can be the ends, domains and sizes of the documents of a shard."""
    if index.ndim != 2 or index.shape[1] != 3 or index.dtype != np.int64:
        return False
    ends, domains, sizes = index.T
    steps = np.diff(ends, prepend=0)
    return bool(
        (steps >= 0).all()
        and steps.sum() == num_tokens
        and ((domains >= 0) & (domains < num_domains)).all()
        and (sizes >= 0).all()
    )


def hash_range(path: Path, start: int, end: int) -> str:
    """The hexadecimal SHA-256 of the bytes from `start` to `end` of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while start < end and (data := file.read(min(2**20, end - start))):
            digest.update(data)
            start += len(data)
    return digest.hexdigest()
