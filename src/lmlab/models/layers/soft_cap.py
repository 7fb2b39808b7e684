"""Scores and logits bent so that none exceeds a bound (Gemma 2)."""

from __future__ import annotations

from torch import Tensor


def cap(x: Tensor, soft_cap: float | None) -> Tensor:
    """c tanh(x / c); x as it is if there is no c."""
    return x if soft_cap is None else (x / soft_cap).tanh() * soft_cap
