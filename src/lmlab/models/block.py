"""One layer of the transformer.

Shapes: B batch, T tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from lmlab.models.attention.attention import Attention, AttentionContext
from lmlab.models.config import ModelConfig, NormPosition
from lmlab.models.layers.feed_forward import FeedForward
from lmlab.models.layers.norm import make_norm
from lmlab.models.moe.experts import Experts
from lmlab.models.moe.layer import MoE
from lmlab.models.moe.router import RouterOutput


class Block(nn.Module):
    """Attention, then a feed-forward network, each with a norm before, on the way out, both, or after
    (`norm_position`).

    Arguments:
        layer: its number, from 0.
        experts: those of another layer that serve this one too.
    """

    def __init__(self, config: ModelConfig, layer: int, experts: Experts | None = None) -> None:
        super().__init__()
        self.layer, self.norm_position = layer, config.norm_position
        self.parallel, self.multiplier = config.parallel_residual, config.residual_multiplier
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.ffn_norm = None if config.shared_norm else make_norm(config, config.d_model)
        self.ffn = MoE(config, layer, experts) if config.ffn_kinds[layer] == "moe" else FeedForward(config)
        both = config.norm_position == "both"
        self.attention_out_norm = make_norm(config, config.d_model) if both else None
        self.ffn_out_norm = make_norm(config, config.d_model) if both else None

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
        """Map the residual stream [B, T, D] to the next layer's; also give what a router decided."""
        x_BTD = entered_BTD = context.tap(self.layer, "input", x_BTD)
        read_BTD = context.tap(self.layer, "attention.input", self.read(self.attention_norm, x_BTD))
        written_BTD = self.attention(read_BTD, context)
        written_BTD = self.written(written_BTD, self.attention_norm, self.attention_out_norm)
        x_BTD = x_BTD + context.tap(self.layer, "attention.output", written_BTD)
        x_BTD = context.tap(self.layer, "middle", self.norm_if("post", self.attention_norm, x_BTD))

        ffn_norm = self.norm_of_ffn
        read_BTD = self.read(ffn_norm, entered_BTD if self.parallel else x_BTD)
        written_BTD, routed = self.feed_forward(context.tap(self.layer, "ffn.input", read_BTD), context)
        written_BTD = self.written(written_BTD, ffn_norm, self.ffn_out_norm)
        x_BTD = x_BTD + context.tap(self.layer, "ffn.output", written_BTD)
        return context.tap(self.layer, "output", self.norm_if("post", ffn_norm, x_BTD)), routed

    @property
    def norm_of_ffn(self) -> nn.Module:
        """The feed-forward network's norm, which may be the attention's."""
        return self.attention_norm if self.ffn_norm is None else self.ffn_norm

    def norm_if(self, position: NormPosition, norm: nn.Module, x_BTD: Tensor) -> Tensor:
        """The normalized x if norms stand at this position, else x."""
        return norm(x_BTD) if self.norm_position == position else x_BTD

    def read(self, norm: nn.Module, x_BTD: Tensor) -> Tensor:
        """What a sub-layer reads of the residual stream."""
        return norm(x_BTD) if self.norm_position in ("pre", "both") else x_BTD

    def written(self, x_BTD: Tensor, norm: nn.Module, out_norm: nn.Module | None) -> Tensor:
        """What a sub-layer adds to the residual stream, given what its last matrix makes."""
        x_BTD = self.norm_if("reordered", norm, x_BTD) if out_norm is None else out_norm(x_BTD)
        return x_BTD if self.multiplier == 1 else x_BTD * self.multiplier

    def feed_forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
        """What the feed-forward network makes of what it reads, before a norm on the way out; and what a router
        decided.
        """
        if isinstance(self.ffn, MoE):
            out: tuple[Tensor, RouterOutput] = self.ffn(x_BTD)
            return out
        if context.wants(self.layer, "ffn.hidden"):
            return self.ffn.down(context.tap(self.layer, "ffn.hidden", self.ffn.hidden(x_BTD))), None
        # unless somebody looks, the inner activations need not be kept for the backward pass
        return self.ffn(x_BTD), None
