"""Packing: documents to rows of equal length, with their boundaries kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.data.shards import TokenizedCorpus
from lmlab.errors import UserError, did_you_mean

IGNORE = -100  # what PyTorch's cross_entropy leaves out by default

Row = dict[str, NDArray[np.int64]]
Packing = Literal["concat", "best_fit", "single"]
Ints = NDArray[np.int64]


class RowSource(Protocol):
    """Rows of equal length by number, as mixtures take them (see `PackedRows` for what a row holds).

    Attributes:
        seq_len: tokens of a row.
        domains: names of the numbers in `domain_ids`.
        shortened, left_out: conversations that lose answers, or have no row.
    """

    seq_len: int
    domains: list[str]
    shortened: int
    left_out: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class PackedRows:
    """Rows of `seq_len` tokens over a tokenized corpus, by number: `rows[i]`.

    A row is a dictionary of int64 arrays [seq_len]: `input_ids`, `labels` (the next token; -100 where the next token
    belongs to another document or is not learned), `document_ids` (counted within the row; -1 for padding, which is at
    the end) and `domain_ids`. Every token but the first of a document is a label once.

    Arguments:
        packing: `concat` lays documents end to end and cuts them to rows; the last tokens that do not fill one are left
            out. `best_fit` cuts only what is longer than a row and fits the pieces whole into rows, longest first, each
            where it leaves the least room (Ding et al. 2024). `single` has one document, or piece of one, in a row.
            None is `concat` for documents and `best_fit` for conversations, which are never cut so that an answer is
            learned without its prompt: one that is longer than a row loses its last answers, each as a whole.
        domains: take only the documents of these.

    Attributes:
        domains: names of all domains.
        shortened: conversations that lose answers.
        left_out: conversations whose first answer does not fit.

    Raises:
        UserError: the corpus is shorter than one row, has not one of the domains, or holds conversations, which cannot
            be laid end to end.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        seq_len: int,
        packing: Packing | None = None,
        domains: Sequence[str] | None = None,
    ) -> None:
        chats = corpus.kind == "examples"
        packing = packing or ("best_fit" if chats else "concat")
        if chats and packing == "concat":
            raise UserError(
                f"'{corpus.directory}' holds conversations, which packing: concat would cut between prompt and answer.",
                "Set packing: best_fit, or single.",
            )
        self.corpus, self.seq_len, self.packing = corpus, seq_len, packing
        self.domains = corpus.domains
        self.shortened = self.left_out = 0
        self._documents = _index(corpus, domains)
        lengths = self._documents[:, 2]
        self.num_tokens = int(lengths.sum())
        if packing == "concat":
            self._ends = np.cumsum(lengths)
            self._num_rows = max(0, self.num_tokens - 1) // seq_len
        else:
            self._pieces = self._whole_answers() if chats else _cut(lengths, seq_len)
            rows = best_fit(self._pieces[:, 2], seq_len) if packing == "best_fit" else np.arange(len(self._pieces))
            self._pieces = self._pieces[np.argsort(rows, kind="stable")]
            self._num_rows = int(rows.max(initial=-1)) + 1
            self._first = np.searchsorted(np.sort(rows), np.arange(self._num_rows + 1))
        if self._num_rows == 0 and self.left_out:
            raise UserError(
                f"No conversation of '{corpus.directory}' has its first answer within a row of seq_len {seq_len}.",
                "Raise seq_len.",
            )
        if self._num_rows == 0:
            raise UserError(
                f"The corpus '{corpus.directory}' has {self.num_tokens} tokens, less than one row of seq_len"
                f" {seq_len}.",
                "Lower seq_len or add text.",
            )

    def __len__(self) -> int:
        return self._num_rows

    def _whole_answers(self) -> Ints:
        """Document, offset and length of every conversation up to its last answer that fits a row, [pieces, 3]."""
        lengths = np.maximum(self._documents[:, 2] - 1, 0)  # the last token predicts nothing
        for number in np.flatnonzero(lengths > self.seq_len).tolist():
            shard, start, total, _ = self._documents[number].tolist()
            mask = self.corpus.shards[shard].mask
            learned = np.ones(total, bool) if mask is None else mask[start : start + total] != 0
            ends = np.flatnonzero(learned & ~np.append(learned[1:], False))  # the last token of each answer
            ends = ends[(ends > 0) & (ends <= self.seq_len)]
            lengths[number] = ends[-1] if len(ends) else 0
            self.shortened += len(ends) > 0
            self.left_out += len(ends) == 0
        kept = np.flatnonzero(lengths)
        return np.stack([kept, np.zeros_like(kept), lengths[kept]], 1)

    @property
    def padding_fraction(self) -> float:
        """Share of the rows' places that hold no token."""
        return (
            0.0 if self.packing == "concat" else 1 - float(self._pieces[:, 2].sum()) / (self._num_rows * self.seq_len)
        )

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._num_rows:
            raise IndexError(index)
        row: Row = {
            "input_ids": np.zeros(self.seq_len, np.int64),
            "labels": np.full(self.seq_len, IGNORE),
            "document_ids": np.empty(self.seq_len, np.int64),
            "domain_ids": np.zeros(self.seq_len, np.int64),
        }
        place = 0
        for number, (document, offset, length) in enumerate(self._pieces_of(index)):
            span = slice(place, place + length)
            shard_number, start, total, domain = self._documents[document]
            shard, first = self.corpus.shards[shard_number], start + offset
            following = min(
                length, total - offset - 1
            )  # tokens of the piece that are followed by one of the same document
            row["input_ids"][span] = shard.tokens[first : first + length]
            labels = row["labels"][place : place + following]
            labels[:] = shard.tokens[first + 1 : first + 1 + following]
            if shard.mask is not None:
                labels[shard.mask[first + 1 : first + 1 + following] == 0] = IGNORE
            row["document_ids"][span] = number
            row["domain_ids"][span] = domain
            place += length
        row["document_ids"][place:] = -1
        return row

    def _pieces_of(self, index: int) -> list[tuple[int, int, int]]:
        """Document, offset within it and length of each piece of a row."""
        if self.packing != "concat":
            return [tuple(piece) for piece in self._pieces[self._first[index] : self._first[index + 1]].tolist()]
        start, stop = index * self.seq_len, (index + 1) * self.seq_len
        pieces = []
        document = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end, length = int(self._ends[document]), int(self._documents[document, 2])
            taken = min(end, stop) - start
            if taken:
                pieces.append((document, start - (end - length), taken))
            start, document = start + taken, document + 1
        return pieces


class JoinedRows:
    """Rows whose documents see each other, and the first token of each is learned from the one before it: what packing
    is without masks (an ablation; ProLong's `single_seq`).

    Attributes:
        seq_len, domains, shortened, left_out: those of `rows`.
    """

    def __init__(self, rows: RowSource) -> None:
        self.rows, self.seq_len, self.domains = rows, rows.seq_len, rows.domains
        self.shortened, self.left_out = rows.shortened, rows.left_out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = dict(self.rows[index])
        documents, ids = row["document_ids"], row["input_ids"]
        border = np.flatnonzero((documents[1:] != documents[:-1]) & (documents[1:] >= 0))
        row["labels"] = row["labels"].copy()
        row["labels"][border] = ids[border + 1]
        row["document_ids"] = np.where(documents >= 0, 0, -1)
        return row


class WindowSchedule(Config):
    """How far tokens see while a training goes on (SkyLadder, Zhu et al. 2025): documents count as pieces of so many
    tokens, and the pieces grow.

    Attributes:
        start: tokens of a piece at the first step.
        end: at most; by default a whole row.
        rate: tokens by which pieces grow at each step; 0.125 in the paper, for a billion tokens.
    """

    start: int = Field(default=32, ge=2)
    end: PositiveInt | None = None
    rate: PositiveFloat = 0.125

    @model_validator(mode="after")
    def _check(self) -> WindowSchedule:
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end {self.end} is below start {self.start}; pieces only grow.")
        return self

    def at(self, step: int, seq_len: int) -> int:
        """Tokens of a piece at a step, the first of which is 0."""
        return min(self.end or seq_len, seq_len, self.start + int(self.rate * step))


class WholeTraining(Protocol):
    """The rows of a whole training in their order, such as a `Mixture`."""

    seq_len: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def begins_as(self, num_rows: int, count: int) -> bool:
        """Whether the first `count` rows would be the same if there were `num_rows` in all."""
        ...


class GrowingRows:
    """The rows of a training whose documents are cut into pieces that do not see each other, longer ones from step to
    step. Every label stays: the first token of a piece is learned from the one before it, at the end of its piece.

    What a row is depends on its number alone, so that a training goes on exactly, on any number of processes.

    Arguments:
        rows: of the whole training, in order.
        batch_size: rows of a step.
        schedule: how the pieces grow.
    """

    def __init__(self, rows: WholeTraining, batch_size: int, schedule: WindowSchedule) -> None:
        self.rows, self.batch_size, self.schedule = rows, batch_size, schedule

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = dict(self.rows[index])
        row["document_ids"] = pieces(row["document_ids"], self.schedule.at(index // self.batch_size, self.rows.seq_len))
        return row

    def begins_as(self, num_rows: int, count: int) -> bool:
        """Whether the first `count` rows would be the same in a training of `num_rows` rows."""
        return self.rows.begins_as(num_rows, count)


def pieces(document_ids: NDArray[Any], size: int) -> Ints:
    """Numbers of documents with every document cut into pieces of `size` tokens, [T]; padding stays -1."""
    if not len(document_ids):
        return document_ids.astype(np.int64)
    begins = np.append(True, document_ids[1:] != document_ids[:-1])
    places = np.arange(len(document_ids))
    since = places - np.maximum.accumulate(np.where(begins, places, 0))  # tokens of the same document before
    found: Ints = np.cumsum(begins | (since % size == 0)) - 1
    found[document_ids < 0] = -1
    return found


def _index(corpus: TokenizedCorpus, domains: Sequence[str] | None) -> Ints:
    """For each document its shard, start, length and domain, [documents, 4]."""
    for domain in domains or ():
        if domain not in corpus.domains:
            raise UserError(
                f"The corpus '{corpus.directory}' has no domain '{domain}'. {did_you_mean(domain, corpus.domains)}"
            )
    parts = [np.empty((0, 4), np.int64)]
    for number, shard in enumerate(corpus.shards):
        starts = np.concatenate([[0], shard.ends[:-1]])
        parts.append(np.stack([np.full(len(starts), number), starts, shard.ends - starts, shard.domains], 1))
    index = np.concatenate(parts)
    return (
        index if domains is None else index[np.isin(index[:, 3], [corpus.domains.index(domain) for domain in domains])]
    )


def _cut(lengths: Ints, seq_len: int) -> Ints:
    """Document, offset and length of pieces of at most `seq_len` tokens, [pieces, 3]; a document's last token predicts
    nothing and is left out.
    """
    inputs = np.maximum(lengths - 1, 0)
    counts = -(-inputs // seq_len)
    documents = np.repeat(np.arange(len(lengths)), counts)
    offsets = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * seq_len
    return np.stack([documents, offsets, np.minimum(seq_len, inputs[documents] - offsets)], 1)


def best_fit(lengths: Ints, seq_len: int) -> Ints:
    """The row of each piece of at most `seq_len` tokens, by best-fit decreasing.

    The bits of one integer say which amounts of room some row has; the row with the least that suffices is found by a
    shift.
    """
    rows = np.empty(len(lengths), np.int64)
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    room_bits, num_rows = 0, 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        suffices = room_bits >> length
        if suffices:
            room = length + (suffices & -suffices).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                room_bits ^= 1 << room
        else:
            row, room, num_rows = num_rows, seq_len, num_rows + 1
        rows[piece] = row
        left = room - length
        if left:
            with_room[left].append(row)
            room_bits |= 1 << left
    return rows
