"""The transformer. One class for every family; what differs is configuration.

- pre-norm residual blocks; RMSNorm or LayerNorm
- rotary, learned or no positions, restarting at every packed document
- grouped key-value heads, optional QK-norm; gated or plain feed-forward
- token ids or embeddings in; hidden states, logits or a fused loss out
- packed documents do not see each other

Shapes: B batch, T tokens, S keys, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lmlab.models.attention import Attention, AttentionContext
from lmlab.models.cache import KVCache
from lmlab.models.config import ModelConfig
from lmlab.models.feed_forward import FeedForward
from lmlab.models.loss import TokenLoss, fused_cross_entropy
from lmlab.models.norm import make_norm
from lmlab.models.rope import rotary_table


@dataclass(frozen=True)
class TransformerOutput:
    """What a forward pass gives.

    Attributes:
        hidden_BTD: final hidden states, after the last norm.
        logits_BTV: next-token logits if asked for, [B, T, V], or [B, 1, V] for the last position only.
        loss: summed cross-entropy of the labels if labels were given.
    """

    hidden_BTD: Tensor
    logits_BTV: Tensor | None = None
    loss: TokenLoss | None = None


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config, config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        """Map the residual stream [B, T, D] to the next layer's."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Transformer(nn.Module):
    """A decoder-only transformer language model.

    Construct it under `torch.device("meta")` to get shapes without memory; `initialize` then fills the weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config, config.d_model)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    @property
    def head_weight_VD(self) -> Tensor:
        """The output matrix: the embedding's if tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def initialize(self, seed: int) -> Transformer:
        """Draw all weights afresh from one seed, the same on every device; return the model.

        Matrices are normal with `init_std`; with `init: depth_scaled`, the two matrices of a layer that write to the residual stream are
        scaled by 1/sqrt(2 num_layers) (Radford et al. 2019, section 2.3). Biases are zero, norm weights one.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = self.config.init_std
            if self.config.init == "depth_scaled" and name.endswith(("attention.output.weight", "ffn.down.weight")):
                std /= math.sqrt(2 * self.config.num_layers)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self

    def forward(
        self,
        input_ids_BT: Tensor | None = None,
        *,
        inputs_embeds_BTD: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        cache: KVCache | None = None,
        labels_BT: Tensor | None = None,
        logits: Literal["all", "last", "none"] | None = None,
    ) -> TransformerOutput:
        """Run the network on token ids or on embeddings.

        Arguments:
            input_ids_BT: token ids, [B, T].
            inputs_embeds_BTD: embeddings in place of ids, [B, T, D].
            position_ids_BT: explicit positions; by default they count from 0 in every document, or go on from the cache.
            document_ids_BT: for packed rows, which document each token belongs to; tokens see only their own document.
            attention_mask_BT: False (or 0) marks padding that no token may see.
            cache: keys and values of earlier tokens; the new tokens are appended to it.
            labels_BT: the target of each position (already shifted: the next token), -100 to ignore.
            logits: which positions get logits; by default all, or none when labels are given.

        Raises:
            ValueError: neither or both inputs given, or boundaries combined with a cache.
        """
        if (input_ids_BT is None) == (inputs_embeds_BTD is None):
            raise ValueError("give either input_ids_BT or inputs_embeds_BTD")
        x_BTD = self.embedding(input_ids_BT) if inputs_embeds_BTD is None else inputs_embeds_BTD
        context, position_ids_BT = self._context(x_BTD, position_ids_BT, document_ids_BT, attention_mask_BT, cache)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(position_ids_BT)
        x_BTD = x_BTD.to(_compute_dtype(x_BTD))
        for block in self.blocks:
            x_BTD = block(x_BTD, context)
        hidden_BTD = self.final_norm(x_BTD)
        if labels_BT is not None:
            loss = fused_cross_entropy(hidden_BTD, self.head_weight_VD, labels_BT)
            return TransformerOutput(hidden_BTD, self._logits(hidden_BTD, logits or "none"), loss)
        return TransformerOutput(hidden_BTD, self._logits(hidden_BTD, logits or "all"))

    def _logits(self, hidden_BTD: Tensor, which: Literal["all", "last", "none"]) -> Tensor | None:
        if which == "none":
            return None
        hidden = hidden_BTD[:, -1:] if which == "last" else hidden_BTD
        return hidden @ self.head_weight_VD.to(hidden.dtype).T

    def _context(
        self, x_BTD: Tensor, position_ids: Tensor | None, document_ids: Tensor | None, padding_mask: Tensor | None, cache: KVCache | None
    ) -> tuple[AttentionContext, Tensor]:
        batch, length = x_BTD.shape[:2]
        mask = None
        if cache is not None:
            if document_ids is not None:
                raise ValueError("a cache holds one document a row; document_ids_BT cannot be combined with it")
            new = torch.ones(batch, length, dtype=torch.bool, device=x_BTD.device) if padding_mask is None else padding_mask.bool()
            cache.extend(new)
            mask = cache.attention_mask(length)
            position_ids = cache.positions(length) if position_ids is None else position_ids
        elif document_ids is not None or padding_mask is not None:
            mask = _causal_mask(x_BTD, document_ids, padding_mask)
        if position_ids is None:
            position_ids = _positions(x_BTD, document_ids, padding_mask)
        rotary = None
        if self.config.positions == "rotary":
            rotary = rotary_table(position_ids, self.config.head_dim, self.config.rope_theta, _compute_dtype(x_BTD))
        return AttentionContext(mask, rotary, cache), position_ids


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def _causal_mask(x_BTD: Tensor, document_ids: Tensor | None, padding_mask: Tensor | None) -> Tensor:
    length = x_BTD.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).tril()[None]
    if document_ids is not None:
        mask = mask & (document_ids[:, :, None] == document_ids[:, None, :])
    if padding_mask is not None:  # a padded query sees itself, so that no softmax is empty
        mask = mask & (padding_mask.bool()[:, None, :] | torch.eye(length, dtype=torch.bool, device=x_BTD.device))
    return mask[:, None]


def _positions(x_BTD: Tensor, document_ids: Tensor | None, padding_mask: Tensor | None) -> Tensor:
    batch, length = x_BTD.shape[:2]
    index = torch.arange(length, device=x_BTD.device).expand(batch, length)
    if document_ids is not None:
        starts = torch.zeros_like(index)
        starts[:, 1:] = torch.where(document_ids[:, 1:] != document_ids[:, :-1], index[:, 1:], 0)
        index = index - starts.cummax(1).values
    elif padding_mask is not None:
        index = (padding_mask.long().cumsum(1) - 1).clamp(min=0)
    return index
