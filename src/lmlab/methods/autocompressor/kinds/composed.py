"""Several kinds one after the other: what the first has kept, the next narrows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import Compressor, KindConfig
from lmlab.methods.autocompressor.kinds.prune import Pruning
from lmlab.models import Memory, Transformer


class Composed(Compressor):
    """The ratio of the whole is the product of the parts', each of which takes the same root of it.

    Raises:
        UserError: a later part does not narrow rows.
    """

    def __init__(self, model: Transformer, parts: Sequence[Compressor], config: KindConfig) -> None:
        super().__init__(model, config)
        for part in parts[1:]:
            if not isinstance(part, Pruning):
                raise UserError(f"'{part.kind}' cannot follow another kind: only pruning narrows what is there.")
        self.parts = nn.ModuleList(parts)
        self.kind = "+".join(part.kind for part in parts)  # type: ignore[misc]

    def forget(self) -> None:
        super().forget()
        for part in self.parts:
            assert isinstance(part, Compressor)
            part.forget()

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        each = ratio ** (1 / len(self.parts))
        first = self.parts[0]
        assert isinstance(first, Compressor)
        memory = first.memory(ids_1T, query_1Q, each)
        for part in self.parts[1:]:
            assert isinstance(part, Pruning)
            if memory.rows is None:
                raise UserError(f"'{first.kind}' gives no keys and values that '{part.kind}' could narrow.")
            memory = replace(memory, rows=part.narrow(memory.rows, ids_1T, query_1Q, each))
        return memory
