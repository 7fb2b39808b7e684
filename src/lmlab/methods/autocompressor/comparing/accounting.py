"""What a memory costs: bytes that are stored, bytes in use once a model reads it, and the peak while it is made.

Pieces are vectors or ids on the disk, and become keys and values of every layer when they are read.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmlab.models import Memory, Transformer, stored_tensors


def stored_bytes(memory: Memory) -> int:
    """Of the tensors of its file."""
    return sum(each.numel() * each.element_size() for each in stored_tensors(memory).values())


def bytes_in_use(memory: Memory, model: Transformer) -> int:
    """Of the keys and values that a reading model holds, empty slots of uneven heads included: 2 L K H a position."""
    config = model.config
    each = 2 * config.num_layers * config.num_kv_heads * config.head_dim * model.embedding.weight.element_size()
    slots = sum(piece.x.shape[1] for piece in memory.pieces) + (0 if memory.rows is None else memory.rows.slots)
    return each * slots * memory.batch_size


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made within it held at once. What kernels take for themselves is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._uses: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.device.type != "meta":
                place = _place(each)
                if place in self._uses or place not in given:  # views of what was there before cost nothing
                    self._count(each, place)
        return out

    def _count(self, tensor: Tensor, place: int) -> None:
        size = tensor.untyped_storage().nbytes()
        if place not in self._uses:
            self._uses[place] = 0
            self.held += size
            self.peak = max(self.peak, self.held)
        self._uses[place] += 1
        weakref.finalize(tensor, self._let_go, place, size)

    def _let_go(self, place: int, size: int) -> None:
        self._uses[place] -= 1
        if not self._uses[place]:
            del self._uses[place]
            self.held -= size


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
