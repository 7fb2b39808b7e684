"""Which floating-point type a computation runs in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products of x run in: autocast's where it is on, else its own."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The type that sums and exponentials of x are computed in: fp32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
