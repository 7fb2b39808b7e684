"""Compression tokens behind a text: what they become, or their keys and values, stand for it.

- `icae`: their last hidden states are vectors (Ge et al. 2024)
- `kv_tokens`: their keys and values in every layer (500xCompressor, Li et al. 2025)
- `bi_tokens`: hidden states as in `icae`, of a pass in which text and tokens see each other both ways

Shapes: B texts, T tokens of a text, M compression tokens, D model width.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor

from lmlab.data import Tokenizer
from lmlab.methods.autocompressor.kinds.base import register, slots_for
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.trained import Trained, TrainedConfig, TrainedVectors, VectorsConfig
from lmlab.models import KVRows, Memory, Transformer, read_rows


class TokensConfig(TrainedConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        tokens: rows of the table of compression tokens. A text that needs more takes them in turn; with 1 all are the
            same, which is as good (PISCO).
    """

    tokens: PositiveInt = 64


class TokenVectorsConfig(TokensConfig, VectorsConfig):
    """How much is kept, what learns, and what is learned."""


class _Tokens(Trained):
    """A table of tokens, of which as many follow a text as it has slots."""

    Config = TokensConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config, tokenizer)
        assert isinstance(config, TokensConfig)
        self.table_MD = self.fresh(config.tokens, model.config.d_model)

    def behind(self, ids_BT: Tensor, ratio: float) -> tuple[Tensor, int]:
        """The embeddings [B, T + M, D] of texts with their tokens, and M."""
        x_BTD = self.model.embed(ids_BT)
        slots = slots_for(ids_BT.shape[1], ratio)
        rows_MD = self.table_MD[torch.arange(slots, device=x_BTD.device) % len(self.table_MD)]
        return torch.cat((x_BTD, rows_MD.to(x_BTD.dtype).expand(len(x_BTD), -1, -1)), 1), slots


@register("icae")
class ICAE(_Tokens, TrainedVectors):
    """Last hidden states of the tokens, in causal order."""

    Config = TokenVectorsConfig

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        x_BTD, slots = self.behind(ids_BT, ratio)
        return self.vectors(self.model(inputs_embeds_BTD=x_BTD, logits="none").hidden_BTD[:, -slots:])


@register("kv_tokens")
class KVTokens(_Tokens):
    """Keys and values of the tokens; what follows goes on behind them."""

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        x_BTD, slots = self.behind(ids_BT, ratio)
        return Memory(_last(read_rows(self.model, inputs_embeds_BTD=x_BTD), slots))


@register("bi_tokens")
class BidirectionalTokens(_Tokens, TrainedVectors):
    """Last hidden states of the tokens, where text and tokens see each other."""

    Config = TokenVectorsConfig

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        x_BTD, slots = self.behind(ids_BT, ratio)
        named = self.read_both_ways(inputs_embeds_BTD=x_BTD)
        return self.vectors(self.model(logits="none", **named).hidden_BTD[:, -slots:])


def _last(rows: KVRows, slots: int) -> KVRows:
    return KVRows(
        rows.keys_LBKMH[:, :, :, -slots:],
        rows.values_LBKMH[:, :, :, -slots:],
        rows.positions_LBKM[..., -slots:],
        rows.next_position_B,
    )
