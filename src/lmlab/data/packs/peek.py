"""Samples of token data as text, with the borders of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lmlab.data.packs.read import TokenSource
from lmlab.data.sources.mds import MDSShard, read_mds_index
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError


@dataclass(frozen=True)
class Peeked:
    """One document within a sample.

    Attributes:
        where: the number of the sample, and of the document in it.
        start, stop: where it stands in the sample.
        learned: its tokens that are learned.
        begin, end: the first and the last of its text.
    """

    where: str
    domain: str
    start: int
    stop: int
    learned: int
    begin: str
    end: str


def peek(place: str, samples: int, tokenizer: Tokenizer | None = None, shown: int = 24) -> Iterator[Peeked]:
    """The documents of the first samples of token data.

    Arguments:
        tokenizer: by default that which is stored with the data; without any, ids are shown.
        shown: tokens shown of the beginning and of the end.

    Raises:
        UserError: no token data are there.
    """
    source = TokenSource(place)
    words = tokenizer or source.tokenizer
    for number, (tokens, domain, mask, borders) in enumerate(islice(_samples(source), samples)):
        if words is not None and len(tokens) and int(tokens.max()) >= words.vocab_size:
            raise UserError(
                f"'{place}', sample {number} has the token {int(tokens.max())}; the tokenizer has {words.vocab_size}.",
                "Name the tokenizer that made the data.",
            )
        for document, (start, stop) in enumerate(borders):
            ids = tokens[start:stop].tolist()
            learned = stop - start if mask is None else int(np.count_nonzero(mask[start:stop]))
            parts = (ids[:shown], ids[-shown:])
            begin, end = (words.decode(part) if words else " ".join(map(str, part)) for part in parts)
            yield Peeked(f"{number}.{document}", domain, start, stop, learned, begin, end)


def _samples(source: TokenSource) -> Iterator[tuple[np.ndarray, str, np.ndarray | None, list[tuple[int, int]]]]:
    if source.kind != "mds":
        for document in source:
            yield document.tokens, document.domain, document.mask, [(0, len(document.tokens))]
        return
    for folder, entry in read_mds_index(source.place):
        shard = MDSShard(entry, folder)
        for number in range(len(shard)):
            sample = shard[number]
            tokens = sample["input_ids"]
            borders = np.asarray(sample.get("indices", [[0, len(tokens)]])).reshape(-1, 2).tolist()
            yield tokens, str(sample.get("domain") or ""), sample.get("mask"), [(a, b) for a, b in borders]
