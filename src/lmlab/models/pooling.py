"""From hidden states of tokens to one vector a text, with padding on either side.

The modes and their corner cases are those of sentence-transformers 6: sums in fp32 whatever the states' type, `cls` is
the first real token, `lasttoken` the last real one, a prompt may be left out of the pooling (attention still sees it).

Shapes: B texts, T tokens, D width of a token, H width of a vector.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[str, ...] = get_args(PoolingMode)

_LEAST = 1e-9  # what a text without tokens is divided by, so that its mean is zero and no NaN


def pool(hidden_BTD: Tensor, mask_BT: Tensor, modes: tuple[PoolingMode, ...], prompt_length: int = 0) -> Tensor:
    """The pooled vectors, [B, H] in fp32 (fp64 stays), H being D for each mode.

    Arguments:
        mask_BT: True for real tokens; padding may stand on either side.
        prompt_length: so many first tokens of each text are left out.
    """
    wide_BTD = hidden_BTD if hidden_BTD.dtype == torch.float64 else hidden_BTD.float()
    all_BT, mask_BT = mask_BT.bool(), mask_BT.bool()
    if prompt_length:
        mask_BT = all_BT & (all_BT.cumsum(1) > prompt_length)
    return torch.cat([_pool(wide_BTD, mask_BT, all_BT, mode) for mode in modes], -1)


def _pool(hidden_BTD: Tensor, mask_BT: Tensor, all_BT: Tensor, mode: PoolingMode) -> Tensor:
    rows = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    weight_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    match mode:
        case "cls":
            return hidden_BTD[rows, mask_BT.int().argmax(1)]
        case "lasttoken":
            places = torch.arange(mask_BT.shape[1], device=hidden_BTD.device)
            found_BD = hidden_BTD[rows, (mask_BT * places).amax(1)]
            return found_BD * mask_BT.any(1, keepdim=True)
        case "max":
            found_BD = hidden_BTD.masked_fill(~mask_BT[..., None], float("-inf")).amax(1)
            return torch.where(mask_BT.any(1, keepdim=True), found_BD, 0.0)
        case "weightedmean":
            weight_BT1 = weight_BT1 * all_BT.cumsum(1)[..., None]
    total_BD = (hidden_BTD * weight_BT1).sum(1)
    count_B1 = weight_BT1.sum(1).clamp(min=_LEAST)
    return total_BD / (count_B1.sqrt() if mode == "mean_sqrt_len_tokens" else count_B1)
