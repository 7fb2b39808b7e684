"""A longer window for learned positions, by repeating the table: the baseline of full attention (Chevalier et al. 2023,
section 4.1).
"""

from __future__ import annotations

import torch

from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer


def tile_positions(model: Transformer, max_seq_len: int) -> Transformer:
    """A copy of a model whose table of positions is repeated up to a longer window; the rows that no position uses stay
    at its start. It is to be trained on, and compared with.

    Raises:
        UserError: the model has no such table, or the window is not longer.
    """
    old = model.config
    if old.positions != "learned" or model.position_embedding is None:
        raise UserError(
            f"The model has {old.positions} positions, and no table to repeat.",
            "A rotary window is extended by the key 'window' of a stage train.",
        )
    if max_seq_len <= old.max_seq_len:
        raise UserError(f"A window of {max_seq_len} is not longer than the model's {old.max_seq_len}.")
    longer = Transformer(ModelConfig.model_validate(old.model_dump() | {"max_seq_len": max_seq_len}))
    state = model.state_dict()
    table = state["position_embedding.weight"]
    trained = table[old.position_offset :]
    repeated = trained.repeat(-(-max_seq_len // len(trained)), 1)[:max_seq_len]
    state["position_embedding.weight"] = torch.cat((table[: old.position_offset], repeated))
    longer.load_state_dict(state)
    longer.read_as = model.read_as
    return longer.to(table.dtype).eval()
