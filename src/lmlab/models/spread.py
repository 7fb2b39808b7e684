"""Tensors of which each process keeps a share (`DTensor`), told without importing what makes them.

That import takes PyTorch's compiler with it, two seconds of a processor, which nobody needs who only reads a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_spread(tensor: Any) -> TypeGuard[DTensor]:
    """Whether processes share it out."""
    return hasattr(tensor, "to_local")
