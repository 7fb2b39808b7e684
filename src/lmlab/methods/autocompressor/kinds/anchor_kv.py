"""Semantic anchors (SAC, ICLR 2026): the keys and values of every r-th token stand for the text.

Shapes: B texts, T tokens of a text, M anchors, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmlab.data import Tokenizer
from lmlab.methods.autocompressor.kinds.base import register
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.trained import Trained, TrainedConfig, groups_of
from lmlab.models import Memory, Transformer, read_rows


class AnchorConfig(TrainedConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        causal: tokens see earlier ones alone; without, all of the text.
    """

    causal: bool = False


@register("anchor_kv")
class AnchorKV(Trained):
    """The last token of each run of r gets one learned vector, and all layers keep its keys and values alone, at its
    own position; what follows goes on behind the whole text.
    """

    Config = AnchorConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config, tokenizer)
        # zero at first: an anchor is the token that it was
        self.anchor_D = nn.Parameter(torch.zeros(model.config.d_model, device=model.embedding.weight.device))

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        assert isinstance(self.config, AnchorConfig)
        x_BTD = self.model.embed(ids_BT)
        groups_T = groups_of(ids_BT.shape[1], ratio, ids_BT.device)
        last_T = torch.cat((groups_T[1:] != groups_T[:-1], groups_T.new_ones(1, dtype=torch.bool)))
        x_BTD = x_BTD + last_T[:, None] * self.anchor_D.to(x_BTD.dtype)
        named = {"inputs_embeds_BTD": x_BTD}
        rows = read_rows(self.model, **(named if self.config.causal else self.read_both_ways(**named)))
        index = last_T.nonzero()[:, 0].expand(*rows.positions_LBKM.shape[:3], -1)
        return Memory(rows.gather(index))
