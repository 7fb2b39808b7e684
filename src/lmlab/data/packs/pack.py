"""The ways to pack documents of any length into sequences of one length.

All of them read documents once, in order, and hold no more than what waits to be filled up. With no special tokens, no
overlap and `min_doc_length` 1 they give the same sequences as the public packer of ProLong (Gao et al. 2024), whose
`best_fit` fails before it packs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data.packs.account import PackAccount
from lmlab.data.packs.config import PackConfig
from lmlab.words import counted

Array = NDArray[Any]


@dataclass(frozen=True)
class TokenDocument:
    """A document as tokens.

    Attributes:
        tokens: [n] ids.
        domain: its kind of text.
        mask: [n], 1 for tokens that are learned; None for all.
    """

    tokens: Array
    domain: str = ""
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Packed:
    """One sequence.

    Attributes:
        tokens: [pack_length], uint32.
        indices: [documents, 2], uint32: where each document, or piece of one, starts and ends; together they cover the
            sequence.
        mask: [pack_length], 1 for tokens that are learned; None for all.
        subset: its part of the output: the domain, with the lengths of pieces if documents were split.
    """

    tokens: NDArray[np.uint32]
    indices: NDArray[np.uint32]
    mask: NDArray[np.uint8] | None = None
    subset: str = ""


class _Piece:
    """Tokens that stand in several arrays, so that special tokens are added and beginnings cut without a copy."""

    __slots__ = ("goes_on", "length", "parts")

    def __init__(self, parts: list[tuple[Array, Array | None]]) -> None:
        self.parts = parts
        self.goes_on = False  # whether the document began in another sequence
        self.length = sum(len(tokens) for tokens, _ in parts)

    @property
    def first(self) -> int:
        return int(self.parts[0][0][0])

    @property
    def last(self) -> int:
        return int(self.parts[-1][0][-1])

    def take(self, start: int, stop: int) -> _Piece:
        """The tokens from `start` to `stop`."""
        if len(self.parts) == 1:
            tokens, mask = self.parts[0]
            return _Piece([(tokens[start:stop], None if mask is None else mask[start:stop])])
        found, place = [], 0
        for tokens, mask in self.parts:
            a, b = max(0, start - place), min(len(tokens), stop - place)
            if a < b:
                found.append((tokens[a:b], None if mask is None else mask[a:b]))
            place += len(tokens)
        return _Piece(found)

    def before(self, token: int | None, learned: int = 0) -> _Piece:
        """The same with a token before it, unless it begins with that."""
        if token is None or self.length == 0 or self.first == token:
            return self
        return _Piece([_special(token, learned), *self.parts])

    def after(self, token: int | None) -> _Piece:
        """The same with a token after it, unless it ends with that."""
        if token is None or self.last == token:
            return self
        return _Piece([*self.parts, _special(token, 1)])


def _special(token: int, learned: int) -> tuple[Array, Array | None]:
    return np.array([token], np.uint32), np.array([learned], np.uint8)


@dataclass
class _Buffer:
    """A sequence that is being filled."""

    config: PackConfig
    account: PackAccount
    subset: str
    pieces: list[_Piece] = field(default_factory=list)
    count: int = 0

    @property
    def room(self) -> int:
        return self.config.pack_length - self.count

    def add(self, piece: _Piece) -> Iterator[Packed]:
        """Append a piece; whatever is full comes out."""
        self.pieces.append(piece)
        self.count += piece.length
        while self.count >= self.config.pack_length:
            yield self._emit()

    def _emit(self) -> Packed:
        length, overlap = self.config.pack_length, self.config.overlap
        tokens = np.empty(length, np.uint32)
        masked = any(mask is not None for piece in self.pieces for _, mask in piece.parts)
        mask = np.ones(length, np.uint8) if masked else None
        borders, place = [], 0
        for piece in self.pieces:
            borders.append((place, min(place + piece.length, length)))
            for part, learned in piece.parts:
                size = min(len(part), length - place)
                tokens[place : place + size] = part[:size]
                if mask is not None and learned is not None:
                    mask[place : place + size] = learned[:size]
                place += size
        last = self.pieces[-1]
        used = borders[-1][1] - borders[-1][0]
        self.pieces, self.count = [], 0
        self.account.wrote(borders)
        self.account.cut += last.length > used and not last.goes_on
        if self.config.intact:
            self.account.drop("intact", last.length - used)
        else:
            self._go_on(last, used, tokens, mask, overlap)
        return Packed(tokens, np.array(borders, np.uint32), mask, self.subset)

    def _go_on(self, last: _Piece, used: int, tokens: Array, mask: Array | None, overlap: int) -> None:
        """Begin the next sequence with what did not fit, after the overlap."""
        if overlap <= used:  # no copy of a long rest
            rest = last.take(used - overlap, last.length)
        else:
            shared = tokens[-overlap:], None if mask is None else mask[-overlap:]
            rest = _Piece([shared, *last.take(used, last.length).parts])
        rest = rest.before(self.config.middle)
        if rest.length >= max(1, self.config.min_chunk_length):
            rest.goes_on = True
            self.pieces, self.count = [rest], rest.length
            self.account.repeats += rest.length - (last.length - used)
        else:
            self.account.drop("chunk", last.length - used)

    def close(self) -> None:
        """Account for what is left when there are no more documents."""
        self.account.drop("left_over", self.count)
        self.pieces, self.count = [], 0


class _Bins:
    """Several open sequences; a document goes to the fullest that has room for it, else to the emptiest, whose rest it
    overflows (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", for an input in any order).
    """

    def __init__(self, config: PackConfig, account: PackAccount, subset: str) -> None:
        self.buffers = [_Buffer(config, account, subset) for _ in range(config.bins)]

    def add(self, piece: _Piece) -> Iterator[Packed]:
        fits = [buffer for buffer in self.buffers if buffer.room >= piece.length]
        chosen = min(fits, key=_room) if fits else max(self.buffers, key=_room)
        yield from chosen.add(piece)

    def close(self) -> None:
        for buffer in self.buffers:
            buffer.close()


def _room(buffer: _Buffer) -> int:
    return buffer.room


def pack(
    documents: Iterable[TokenDocument], config: PackConfig, account: PackAccount | None = None
) -> Iterator[Packed]:
    """Pack documents; sequences come out as they fill.

    Arguments:
        account: is told of everything that is kept, cut and dropped.

    Raises:
        ValueError: a mask is not as long as its document.
    """
    account = account or PackAccount()
    buffers: dict[str, _Buffer | _Bins] = {}
    make = _Bins if config.mode == "best_fit" else _Buffer
    lengths = sorted(config.lengths, reverse=True)

    def into(subset: str) -> _Buffer | _Bins:
        if subset not in buffers:
            buffers[subset] = make(config, account, subset)
        return buffers[subset]

    for document in documents:
        size, mask = len(document.tokens), document.mask
        if mask is not None and len(mask) != size:
            raise ValueError(f"a mask of {counted(len(mask), 'entries')} for a document of {size} tokens")
        account.read(size)
        if size < config.min_doc_length or size == 0:
            account.drop("document", size)
            continue
        piece = _Piece([(document.tokens, mask)]).before(config.bos).after(config.eos)
        account.special += piece.length - size
        subset = document.domain if config.by_domain else ""
        if config.mode != "split":
            yield from into(subset).add(piece)
            continue
        yield from _split(piece, lengths, subset, config, account, into)
    for buffer in buffers.values():
        buffer.close()


def _split(
    piece: _Piece,
    lengths: Sequence[int],
    subset: str,
    config: PackConfig,
    account: PackAccount,
    into: Callable[[str], _Buffer | _Bins],
) -> Iterator[Packed]:
    """Cut a document into pieces of the longest lengths that fit, each for the sequences of its length."""
    new, pieces = piece.length, 0  # `new` is what has not been in a piece yet
    while new and piece.length >= lengths[-1]:
        length = next(each for each in lengths if each <= piece.length)
        part = f"{length}-{config.pack_length}"
        pieces += 1
        taken = piece.take(0, length)
        taken.goes_on = pieces > 1 or piece.length > length  # that the document was cut is counted here
        yield from into(f"{subset}/{part}" if subset else part).add(taken)
        new = piece.length - length
        if config.intact:
            account.cut += new > 0
            account.drop("intact", new)
            return
        piece = piece.take(length - config.overlap, piece.length).before(config.middle)
        if new and piece.length >= lengths[-1]:
            account.repeats += piece.length - new
    account.cut += pieces > 1 or (pieces == 1 and new > 0)
    account.drop("chunk", new)
