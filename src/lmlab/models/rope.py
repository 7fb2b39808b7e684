"""Rotary position embeddings (Su et al. 2021), in the half-split layout of Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(position_ids_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles.

    Arguments:
        position_ids_BT: positions, integers [B, T].
        head_dim: width of a head, even.
        theta: base of the frequencies.
        dtype: type of the result; the angles themselves are computed in fp32.

    Returns:
        cosines and sines, each [B, 1, T, head_dim], to be used with `apply_rotary`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids_BT.device) / head_dim
    angles = position_ids_BT[:, None, :, None].float() * theta**-exponents
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def apply_rotary(x_BNTH: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + H/2) of every head by its position's angle; shapes [B, heads, T, H] in and out."""
    cos, signed_sin = table
    first, second = x_BNTH.chunk(2, -1)
    return x_BNTH * cos + torch.cat((second, first), -1) * signed_sin
