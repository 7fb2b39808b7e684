"""Text that grows, in a fraction of its memory: what is older than the last tokens is compressed chunk by chunk.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import Compressor
from lmlab.models import Memory, Piece


class Stream:
    """The memory of a conversation, or of any text that grows.

    The newest tokens stay as they are (at least `plain` of them once there are as many). As soon as `chunk` older ones
    have come together they are compressed, by themselves, and stand behind the memories of earlier chunks.

    Arguments:
        compressor: any kind; for kinds of vectors or plain tokens, and of keys and values that can move.
        plain: newest tokens that are never compressed.
        chunk: tokens that are compressed at once.

    Attributes:
        compressions: chunks so far.
    """

    def __init__(self, compressor: Compressor, *, plain: int, chunk: int) -> None:
        if plain < 0 or chunk < 1:
            raise UserError(f"plain is {plain} and chunk {chunk}: give at least 0 and 1 tokens.")
        self._compressor, self._plain, self._chunk = compressor, plain, chunk
        self._old: Memory | None = None
        self._tail: list[int] = []
        self.compressions = 0

    def add(self, ids: Sequence[int]) -> None:
        """Tokens that come next."""
        self._tail += map(int, ids)
        while len(self._tail) >= self._plain + self._chunk:
            new = self._compressor.compress(torch.tensor([self._tail[: self._chunk]]))
            model = self._compressor.model
            self._old = new if self._old is None else Memory.in_sequence([self._old, new], model)
            del self._tail[: self._chunk]  # once its memory is there, so that nothing is lost where it is refused
            self.compressions += 1

    @property
    def memory(self) -> Memory:
        """All that has come: what was compressed, and the newest tokens as a plain chunk."""
        parts = [] if self._old is None else [self._old]
        if self._tail:
            tail = torch.tensor([self._tail], device=self._compressor.model.embedding.weight.device)
            positions = True if self._old is None else self._old.positions
            parts.append(Memory(pieces=(Piece(tail),), positions=positions, tokens_B=(len(self._tail),)))
        return Memory.in_sequence(parts, self._compressor.model) if parts else Memory()
