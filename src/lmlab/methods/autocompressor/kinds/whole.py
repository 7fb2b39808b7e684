"""The ends of every table: nothing of the text, all of it, and its last tokens as they are.

Shapes: T tokens of a text, Q tokens of a query.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lmlab.methods.autocompressor.kinds.base import Compressor, read_once, register, slots_for
from lmlab.models import Memory, Piece


@register("none")
class Nothing(Compressor):
    """Nothing: what the model knows without the text."""

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        return Memory()


@register("full")
class Whole(Compressor):
    """The keys and values of all tokens: what a prefix cache holds."""

    keeps_all: ClassVar[bool] = True

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        return Memory(read_once(self.model, ids_1T))


@register("truncate")
class Truncated(Compressor):
    """The text's last tokens, read as a text of their own: what equal cost buys without any method."""

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        return Memory(pieces=(Piece(ids_1T[:, -slots_for(ids_1T.shape[1], ratio) :]),))
