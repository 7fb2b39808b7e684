"""Settings of packing."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from lmlab.config import Config


class PackFiles(Config):
    """How sequences are stored.

    Attributes:
        compression: of the shards: zstd, by default none.
    """

    compression: Literal["zstd"] | None = None


class PackConfig(Config):
    """How documents become sequences.

    Attributes:
        pack_length: tokens of every sequence.
        mode: `greedy` fills one sequence after the other; `best_fit` keeps several sequences open and puts each
            document where it leaves the least room; `split` cuts documents into pieces of given lengths and packs each
            length by itself.
        min_doc_length: shorter documents are dropped, before special tokens are added.
        min_chunk_length: what is left of a document that was cut goes on in the next sequence if it has so many tokens,
            with its special token; else it is dropped.
        overlap: last tokens of a sequence that are repeated at the start of the next one.
        intact: every document begins at its start: what does not fit a sequence is dropped.
        bins: best_fit: open sequences.
        lengths: split: the lengths of pieces; the longest that fits is cut first, and what is shorter than all of them
            is dropped.
        bos: token before a document that does not begin with it.
        eos: token after a document that does not end with it.
        middle: token before what goes on in another sequence, unless it begins with it.
        by_domain: documents of each domain are packed by themselves.
    """

    pack_length: PositiveInt
    mode: Literal["greedy", "best_fit", "split"] = "greedy"
    min_doc_length: PositiveInt = 1
    min_chunk_length: PositiveInt = 1
    overlap: NonNegativeInt = 0
    intact: bool = False
    bins: PositiveInt = 50
    lengths: tuple[PositiveInt, ...] = ()
    bos: NonNegativeInt | None = None
    eos: NonNegativeInt | None = None
    middle: NonNegativeInt | None = None
    by_domain: bool = False

    @model_validator(mode="after")
    def _check(self) -> PackConfig:
        if (self.mode == "split") != bool(self.lengths):
            raise ValueError("lengths belongs to the mode split, which needs it.")
        shortest = min((self.pack_length, *self.lengths))
        if self.overlap + (self.middle is not None) >= shortest:
            raise ValueError(
                f"overlap {self.overlap} leaves no room for new tokens in {shortest}; lower it, or lengthen the"
                " sequences."
            )
        if any(length > self.pack_length for length in self.lengths):
            raise ValueError(f"lengths holds {max(self.lengths)}, which is longer than pack_length {self.pack_length}.")
        if self.intact and self.overlap:
            raise ValueError("overlap repeats what intact drops; give one of them.")
        return self
