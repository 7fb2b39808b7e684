"""Documents that are token ids already, from wherever they stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.data.packs.pack import TokenDocument
from lmlab.data.shards import TokenizedCorpus
from lmlab.data.sources.mds import MDSShard, read_mds_index
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import DamagedError, is_url, read_jsonl, without_compression

_MOST = 2**32  # tokens are kept in at most 32 bits


class TokenSource:
    """Documents as tokens: a tokenized corpus of lmlab, an MDS data set with a column `input_ids`, or JSON lines with
    that key (`domain` and `mask` are read where they are).

    A sample that is packed already counts as one document.

    Arguments:
        place: directory, file or URL.

    Raises:
        UserError: nothing of the kind is there.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        path = Path(place)
        if not is_url(place) and (path / "manifest.json").is_file():
            self.kind = "corpus"
            self.corpus = TokenizedCorpus(path)
        elif without_compression(path.name).endswith(".jsonl"):
            self.kind = "jsonl"
        else:
            self.kind = "mds"
            self.entries = read_mds_index(place)
            if any("input_ids" not in entry["column_names"] for _, entry in self.entries):
                raise UserError(
                    f"'{place}' holds no token ids (a column input_ids).", "Turn its text into them: lmlab tokenize"
                )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That which made the ids, where it is stored with them."""
        if self.kind == "corpus":
            return self.corpus.tokenizer
        folder = Path(self.place, "tokenizer")
        return Tokenizer.load(folder) if not is_url(self.place) and folder.is_dir() else None

    @property
    def masked(self) -> bool:
        """Whether some documents may have a mask of what is learned."""
        if self.kind == "corpus":
            return self.corpus.kind == "examples"
        return self.kind == "jsonl" or any("mask" in entry["column_names"] for _, entry in self.entries)

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Domain and tokens of every document, without reading the tokens where that can be; of samples that are packed
        already, of the documents in them.
        """
        if self.kind == "corpus":
            for shard in self.corpus.shards:
                sizes = np.diff(shard.ends, prepend=0).tolist()
                yield from zip((self.corpus.domains[each] for each in shard.domains), sizes, strict=True)
            return
        if self.kind == "mds":
            for folder, entry in self.entries:
                samples = MDSShard(entry, folder)
                for number in range(len(samples)):
                    row = samples[number]
                    domain = str(row.get("domain") or "")
                    borders = _borders(row, np.size(row["input_ids"]), f"{samples.path}:{number}")
                    yield from ((domain, stop - start) for start, stop in borders)
            return
        for document in self:
            yield document.domain, len(document.tokens)

    def __iter__(self) -> Iterator[TokenDocument]:
        """All documents, in order.

        Raises:
            UserError: a record is none; the message says which.
        """
        match self.kind:
            case "corpus":
                yield from self._of_corpus()
            case "jsonl":
                for number, row in enumerate(read_jsonl(self.place), 1):
                    yield _document(row, f"'{self.place}', line {number}")
            case _:
                for folder, entry in self.entries:
                    shard = MDSShard(entry, folder)
                    for number in range(len(shard)):
                        yield _document(shard[number], f"'{shard.path}', sample {number}")

    def documents(self) -> Iterator[tuple[str, TokenDocument]]:
        """All documents with where they stand, also those within samples that are packed already.

        Raises:
            UserError: a record is none, or its borders are none; the message says which.
        """
        if self.kind != "mds":
            for number, document in enumerate(self, 1):
                yield f"{self.place}:{number}", document
            return
        for folder, entry in self.entries:
            shard = MDSShard(entry, folder)
            for number in range(len(shard)):
                row = shard[number]
                where = f"{shard.path}:{number}"
                whole = _document(row, f"'{shard.path}', sample {number}")
                for part, (start, stop) in enumerate(_borders(row, len(whole.tokens), where)):
                    mask = None if whole.mask is None else whole.mask[start:stop]
                    name = f"{where}.{part}" if "indices" in row else where
                    yield name, TokenDocument(whole.tokens[start:stop], whole.domain, mask)

    def _of_corpus(self) -> Iterator[TokenDocument]:
        for shard in self.corpus.shards:
            start = 0
            for end, domain in zip(shard.ends.tolist(), shard.domains.tolist(), strict=True):
                mask = None if shard.mask is None else shard.mask[start:end]
                yield TokenDocument(shard.tokens[start:end], self.corpus.domains[domain], mask)
                start = end


def _borders(row: dict[str, Any], size: int, where: str) -> list[tuple[int, int]]:
    try:
        borders = np.asarray(row.get("indices", [[0, size]]))
    except ValueError:  # lists of several lengths
        borders = np.empty(0)
    if borders.ndim != 2 or borders.shape[1] != 2 or borders.dtype.kind not in "iu":
        raise DamagedError(where, "indices is no list of pairs")
    steps = borders.astype(np.int64).ravel()
    if steps.size and (steps[0] < 0 or (np.diff(steps) < 0).any() or steps[-1] > size):
        raise DamagedError(where, f"indices do not rise from 0 to its {size} tokens")
    return [(int(start), int(stop)) for start, stop in borders]


def _document(row: dict[str, Any], where: str) -> TokenDocument:
    given, mask = row.get("input_ids"), row.get("mask")
    try:
        tokens = np.asarray(given)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < _MOST:
            raise ValueError
        marks = None if mask is None else np.asarray(mask, np.uint8)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where}: input_ids must be a list of token ids, and mask of 0 and 1.") from None
    if marks is not None and marks.shape != tokens.shape:
        raise DamagedError(where.strip("'"), f"mask has {marks.size} entries for {tokens.size} tokens")
    return TokenDocument(tokens.astype(np.uint32, copy=False), str(row.get("domain") or ""), marks)
