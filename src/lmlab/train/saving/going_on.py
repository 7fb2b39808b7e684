"""A run goes on from a checkpoint: what is computed in another way than before it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lmlab.hardware import ways
from lmlab.train.pace import dtype_name


def changes_since(state: Mapping[str, Any], dtype: torch.dtype, rows_at_once: int) -> list[str]:
    """A sentence for each change since a checkpoint's state: of precision, rows of micro-batches, ways to compute."""
    lines, since = [], f"from step {state['step']} on"
    if state["precision"] != dtype_name(dtype):
        lines.append(f"The precision is {dtype_name(dtype)} {since}; before it was {state['precision']}.")
    if state["rows_at_once"] != rows_at_once:
        lines.append(
            f"Micro-batches have {rows_at_once} rows {since}; before they had {state['rows_at_once']}."
            " Gradients are the same but for rounding, and for what is counted over a micro-batch."
        )
    if others := ways.unknown(state.get("ways") or {}):
        lines.append(
            f"What follows is computed in another way {since}, for this machine or version lacks the one before:"
            f" {', '.join(others)}. Results are the same but for rounding."
        )
    return lines
