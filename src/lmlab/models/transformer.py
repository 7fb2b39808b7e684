"""The transformer. One class for every family; what differs is configuration.

- residual blocks with RMSNorm or LayerNorm before, after, or on the way out of each sub-layer
- rotary (scaled or not), learned or no positions, restarting at every packed document
- grouped key-value heads, optional QK-norm; dense or mixture-of-experts feed-forward, gated or plain
- token ids or embeddings in; hidden states, logits, a fused loss or k scalars out
- packed documents do not see each other

Shapes: B batch, T tokens, S keys, D model width, V vocabulary, C scalars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from lmlab.errors import UserError
from lmlab.gemm import linear
from lmlab.models.attention.attention import Attention, AttentionContext
from lmlab.models.attention.backends import Backend, is_half
from lmlab.models.attention.rope import rotary_table
from lmlab.models.attention.visibility import (
    Visibility,
    document_starts,
    padding_mask,
    padding_starts,
    visibility_of_all,
)
from lmlab.models.cache import KVCache
from lmlab.models.config import ModelConfig, RopeScaling
from lmlab.models.dtypes import compute_dtype
from lmlab.models.feed_forward import FeedForward
from lmlab.models.linear import Linear
from lmlab.models.loss import Targets, TokenLoss, TokenScores, fused_cross_entropy, score_targets
from lmlab.models.moe.experts import Experts
from lmlab.models.moe.layer import MoE
from lmlab.models.moe.losses import RouterAccounts, RouterLosses
from lmlab.models.moe.router import RouterOutput
from lmlab.models.norm import make_norm
from lmlab.models.taps import Taps
from lmlab.models.tied_embedding import SharedGradient, embed_tied


@dataclass(frozen=True)
class TransformerOutput:
    """What a forward pass gives.

    Attributes:
        hidden_BTD: final hidden states, after the last norm.
        logits_BTV: next-token logits if asked for, [B, T, V], or [B, 1, V] for the last position only.
        loss: summed cross-entropy of the labels if labels were given.
        token_scores: of the targets if targets were given.
        scores_BC: the scalars at the last real token of each row, for a model with `num_labels`; [B, N, C] at chosen
            positions. In fp32.
        routers: what the router of each mixture-of-experts layer decided, in order.
        router_losses: their losses, while the model is trained (in training mode, with gradients).
    """

    hidden_BTD: Tensor
    logits_BTV: Tensor | None = None
    loss: TokenLoss | None = None
    token_scores: TokenScores | None = None
    scores_BC: Tensor | None = None
    routers: tuple[RouterOutput, ...] = ()
    router_losses: RouterLosses | None = None


class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each around the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, experts: Experts | None = None) -> None:
        super().__init__()
        self.layer, self.norm_position = layer, config.norm_position
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config, config.d_model)
        self.ffn = MoE(config, layer, experts) if config.ffn_kinds[layer] == "moe" else FeedForward(config)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
        """Map the residual stream [B, T, D] to the next layer's; also give what a router decided."""
        x_BTD = context.tap(self.layer, "input", x_BTD)
        read_BTD = self.attention_norm(x_BTD) if self.norm_position == "pre" else x_BTD
        written_BTD = self.attention(context.tap(self.layer, "attention.input", read_BTD), context)
        if self.norm_position == "reordered":
            written_BTD = self.attention_norm(written_BTD)
        x_BTD = x_BTD + context.tap(self.layer, "attention.output", written_BTD)
        if self.norm_position == "post":
            x_BTD = self.attention_norm(x_BTD)
        x_BTD = context.tap(self.layer, "middle", x_BTD)
        written_BTD, routed = self.feed_forward(x_BTD, context)
        x_BTD = x_BTD + context.tap(self.layer, "ffn.output", written_BTD)
        if self.norm_position == "post":
            x_BTD = self.ffn_norm(x_BTD)
        return context.tap(self.layer, "output", x_BTD), routed

    def heads(
        self, query: Tensor, context: AttentionContext, key: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """What each head gathers, [B, T, N, H], when it reads these in place of one residual stream; shapes as in
        `Attention.heads`.
        """
        reads = (query, key, value)
        if self.norm_position == "pre":
            reads = tuple(None if each is None else self.attention_norm(each) for each in reads)  # type: ignore[assignment]
        return self.attention.heads(reads[0], context, reads[1], reads[2])

    def write_heads(self, heads_BTNH: Tensor, bias: bool = False) -> Tensor:
        """What each head adds to the residual stream, [B, T, N, D], up to the scale of a norm that follows.

        Arguments:
            bias: give each head an equal share of the output matrix's bias.
        """
        out_BTND = self.attention.head_outputs(heads_BTNH)
        if self.norm_position == "reordered":
            assert isinstance(self.attention_norm.weight, Tensor)
            return out_BTND * self.attention_norm.weight.to(out_BTND.dtype)
        if bias and self.attention.output.bias is not None:
            return out_BTND + self.attention.output.bias / out_BTND.shape[2]
        return out_BTND

    def merge_heads(self, heads_BTNH: Tensor) -> Tensor:
        """The attention's output, [B, T, D], before a norm that follows."""
        out_BTD: Tensor = self.attention.output(heads_BTNH.flatten(2))
        return out_BTD

    def write_attention(self, heads_BTNH: Tensor) -> Tensor:
        """What the attention adds to the residual stream, [B, T, D]."""
        out_BTD = self.merge_heads(heads_BTNH)
        return self.attention_norm(out_BTD) if self.norm_position == "reordered" else out_BTD

    def feed_forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
        """What the feed-forward network adds to the residual stream when it reads x, [B, T, D], and what a router
        decided.
        """
        read_BTD = self.ffn_norm(x_BTD) if self.norm_position == "pre" else x_BTD
        written_BTD, routed = self._feed_forward(context.tap(self.layer, "ffn.input", read_BTD), context)
        return (self.ffn_norm(written_BTD) if self.norm_position == "reordered" else written_BTD), routed

    def expert_outputs(self, x_BTD: Tensor) -> Tensor:
        """As `feed_forward`, what each expert of a mixture adds, [B, T, E, D]."""
        assert isinstance(self.ffn, MoE) and self.norm_position != "reordered"
        return self.ffn.expert_outputs(self.ffn_norm(x_BTD) if self.norm_position == "pre" else x_BTD)

    def _feed_forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
        if isinstance(self.ffn, MoE):
            out: tuple[Tensor, RouterOutput] = self.ffn(x_BTD)
            return out
        if context.wants(self.layer, "ffn.hidden"):
            return self.ffn.down(context.tap(self.layer, "ffn.hidden", self.ffn.hidden(x_BTD))), None
        return self.ffn(x_BTD), None


class Transformer(nn.Module):
    """A decoder-only transformer: a language model, or with `num_labels` a model that gives k scalars.

    Construct it under `torch.device("meta")` to get shapes without memory; `to_empty` and `initialize` then fill the
    weights.

    Attributes:
        attention_backend: how attention is computed; `auto` takes the fastest that fits.
        recompute_blocks: every so many blocks, one keeps nothing but its input for the backward pass and is computed
            again there (Chen et al. 2016): 1 for all of them, 0 for none.
        router_accounts: the losses of routers, and what they need to know of the step so far.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend: Backend = "auto"
        self.recompute_blocks = 0
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_seq_len + config.position_offset, config.d_model)
        self.blocks = nn.ModuleList()
        for layer in range(config.num_layers):
            self.blocks.append(Block(config, layer, self._experts_for_all_layers()))
        self.router_accounts = RouterAccounts(config.moe)
        self.final_norm = None if config.norm_position == "post" else make_norm(config, config.d_model)
        untied = not config.tie_embeddings and config.num_labels is None
        self.head = Linear(config.d_model, config.padded_vocab_size, bias=False) if untied else None
        self.score = None if config.num_labels is None else Linear(config.d_model, config.num_labels, bias=False)

    def block(self, layer: int) -> Block:
        """One layer."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    @property
    def mixtures(self) -> list[MoE]:
        """The mixture-of-experts networks, in the order of layers."""
        return [block.ffn for block in self.blocks if isinstance(block.ffn, MoE)]

    def _experts_for_all_layers(self) -> Experts | None:
        shares = self.config.moe is not None and self.config.moe.share_across_layers
        return self.mixtures[0].experts if shares and self.mixtures else None

    @property
    def head_weight_VD(self) -> Tensor:
        """The output matrix, [V, D]: the embedding's if tied; without the rows that only pad the vocabulary."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return weight if len(weight) == self.config.vocab_size else weight[: self.config.vocab_size]

    @torch.no_grad()
    def initialize(self, seed: int) -> Transformer:
        """Draw all weights afresh from one seed, the same on every device; return the model.

        Matrices follow `init`, `init_std` and `output_init`. Biases are zero, norm weights one.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            self._draw(name, parameter, generator)
        for buffer in self.buffers():
            buffer.zero_()
        return self

    def initialize_parameter(self, name: str, seed: int) -> None:
        """Draw one parameter afresh, as `initialize` does, and leave the others: for a new head on a trained model."""
        with torch.no_grad():
            self._draw(name, self.get_parameter(name), torch.Generator().manual_seed(seed))

    def _draw(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        config, std = self.config, self.config.init_std
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            return
        if name.endswith(("attention.output.weight", "ffn.down.weight", "shared.down.weight", "experts.down")):
            if config.init == "mitchell":
                std = (2 * parameter.shape[-1] * (_layer_number(name) + 1)) ** -0.5
            elif config.output_init == "zero":
                parameter.zero_()
                return
            elif config.output_init == "depth_scaled":
                std /= math.sqrt(2 * config.num_layers)
        elif config.init == "mitchell":
            std = parameter.shape[-1] ** -0.5
        if config.init in ("truncated_normal", "mitchell"):
            drawn = torch.empty(parameter.shape)
            nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        else:
            drawn = torch.randn(parameter.shape, generator=generator) * std
        if isinstance(parameter, DTensor):  # every process draws the whole and keeps its share
            parameter.copy_(
                distribute_tensor(
                    drawn.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            )
        else:
            parameter.copy_(drawn)

    def set_rope(self, theta: float | None = None, scaling: RopeScaling | None = None) -> None:
        """Change the base of the rotary frequencies, or how they are scaled, from the next forward pass on; None leaves
        each as it is.
        """
        if self.config.positions != "rotary":
            raise ValueError(f"a model with {self.config.positions} positions has no rotary frequencies")
        changes = {"rope_theta": theta, "rope_scaling": None if scaling is None else scaling.model_dump()}
        self.config = ModelConfig.model_validate(
            self.config.model_dump() | {key: value for key, value in changes.items() if value is not None}
        )

    def forward(
        self,
        input_ids_BT: Tensor | None = None,
        *,
        inputs_embeds_BTD: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        visible_BTS: Tensor | None = None,
        cache: KVCache | None = None,
        labels_BT: Tensor | None = None,
        targets: Targets | None = None,
        z_loss: float = 0.0,
        logits: Literal["all", "last", "none"] | None = None,
        scores_at_BN: Tensor | None = None,
        taps: Taps | None = None,
    ) -> TransformerOutput:
        """Run the network on token ids or on embeddings.

        Arguments:
            input_ids_BT: token ids, [B, T].
            inputs_embeds_BTD: embeddings in place of ids, [B, T, D].
            position_ids_BT: explicit positions; by default they count from 0 in every document, or go on from the
                cache. -1 gives a token no
                position: nothing is added from a learned table, nothing is rotated.
            document_ids_BT: for packed rows, which document each token belongs to; tokens see only their own document.
                -1 marks padding, which routers' losses leave out.
            attention_mask_BT: False (or 0) marks padding that no token may see.
            visible_BTS: which tokens each token sees, True = sees, in place of causal order; [B, T, S] where S counts
                what a cache holds too. Give positions with it. So a row may be a tree: one beginning with many ends
                that do not see each other.
            cache: keys and values of earlier tokens; the new tokens are appended to it.
            labels_BT: the target of each position (already shifted: the next token), -100 to ignore.
            targets: tokens whose probabilities after chosen positions are wanted, without gradients and without the
                logits of all positions.
            z_loss: coefficient of the z-loss, which is added to the loss.
            logits: which positions get logits; by default all, or none when labels or targets are given or the model
                gives scalars.
            scores_at_BN: positions whose scalars are wanted in place of those at the last real token, such as the ends
                of packed documents.
            taps: listeners on intermediates (`lmlab.models.taps`).

        Raises:
            ValueError: neither or both inputs given, boundaries combined with a cache or with `visible_BTS`, or more
                tokens than a learned table has.
        """
        if (input_ids_BT is None) == (inputs_embeds_BTD is None):
            raise ValueError("give either input_ids_BT or inputs_embeds_BTD")
        shared = None
        if inputs_embeds_BTD is not None:
            x_BTD = inputs_embeds_BTD
        elif (
            labels_BT is not None
            and self.head is None
            and taps is None
            and self.embedding.weight.requires_grad  # a frozen table has no gradient to share, but perhaps an adapter
            and not torch.compiler.is_compiling()
        ):
            assert input_ids_BT is not None
            shared = SharedGradient()
            x_BTD = embed_tied(input_ids_BT, self.embedding.weight, shared)
        else:
            x_BTD = self.embedding(input_ids_BT)
        context, position_ids_BT = self._context(
            x_BTD, position_ids_BT, document_ids_BT, attention_mask_BT, visible_BTS, cache, taps
        )
        if self.position_embedding is not None:
            x_BTD = x_BTD + self._embed_positions(position_ids_BT).to(x_BTD.dtype)
        x_BTD = x_BTD.to(compute_dtype(x_BTD))
        if taps is not None:
            taps.bind(self.config.num_layers)
            x_BTD = taps("embedding", x_BTD)
        routers: list[RouterOutput] = []
        recompute = self.recompute_blocks if torch.is_grad_enabled() and taps is None and cache is None else 0
        for number, block in enumerate(self.blocks):
            if recompute and number % recompute == 0:
                x_BTD, routed = checkpoint(block, x_BTD, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD, routed = block(x_BTD, context)
            if routed is not None:
                routers.append(routed)
        routing: dict[str, Any] = {"routers": tuple(routers)}
        if routers and self.training and torch.is_grad_enabled():
            routing["router_losses"] = self.router_accounts.losses(
                routers, _real(attention_mask_BT, document_ids_BT), document_ids_BT
            )
        hidden_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        if taps is not None:
            hidden_BTD = taps("final", hidden_BTD)
        if self.score is not None:
            pooled = (
                _last_real(hidden_BTD, attention_mask_BT) if scores_at_BN is None else _at(hidden_BTD, scores_at_BN)
            )
            with torch.autocast(pooled.device.type, enabled=False):
                scores_BC = linear(pooled.float(), self.score.weight.float())
            return TransformerOutput(hidden_BTD, scores_BC=scores_BC, **routing)
        loss = None
        if labels_BT is not None:
            weight = self.embedding.weight if self.head is None else self.head.weight
            loss = fused_cross_entropy(
                hidden_BTD, weight, labels_BT, z_loss=z_loss, vocab_size=self.config.vocab_size, shared=shared
            )
        scores = None if targets is None else score_targets(hidden_BTD, self.head_weight_VD, targets)
        which = logits or ("all" if labels_BT is None and targets is None else "none")
        return TransformerOutput(hidden_BTD, self._logits(hidden_BTD, which), loss, scores, **routing)

    def embeddings(self, input_ids_BT: Tensor) -> tuple[tuple[Tensor, ...], AttentionContext]:
        """What the tables of tokens and, if there is one, of positions write, [B, T, D] each, and what all blocks share
        of the pass.
        """
        tokens_BTD = self.embedding(input_ids_BT)
        context, position_ids_BT = self._context(tokens_BTD, None, None, None, None, None, None)
        if self.position_embedding is None:
            return (tokens_BTD,), context
        return (tokens_BTD, self._embed_positions(position_ids_BT).to(tokens_BTD.dtype).expand_as(tokens_BTD)), context

    def read_out(self, x_BTD: Tensor) -> Tensor:
        """The logits [B, T, V] of a residual stream after the last block."""
        hidden_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        return linear(hidden_BTD, self.head_weight_VD.to(hidden_BTD.dtype))

    def end_step(self, counts_LE: Tensor) -> None:
        """What routers do after each step of the optimizer: forget the counts of the global batch, and move the biases
        that balance loads.

        Arguments:
            counts_LE: tokens of the whole step that chose each expert, over all processes.
        """
        self.router_accounts.end_step()
        for mixture, counts_E in zip(self.mixtures, counts_LE, strict=True):
            if mixture.bias_E is not None:
                mixture.update_bias(counts_E)

    def _logits(self, hidden_BTD: Tensor, which: Literal["all", "last", "none"]) -> Tensor | None:
        if which == "none":
            return None
        hidden = hidden_BTD[:, -1:] if which == "last" else hidden_BTD
        return linear(hidden, self.head_weight_VD.to(hidden.dtype))

    def _embed_positions(self, position_ids_BT: Tensor) -> Tensor:
        assert self.position_embedding is not None
        embedded = self.position_embedding(position_ids_BT.clamp(min=0) + self.config.position_offset)
        return embedded * (position_ids_BT >= 0)[..., None]

    def _context(
        self,
        x_BTD: Tensor,
        position_ids: Tensor | None,
        document_ids: Tensor | None,
        attention_mask: Tensor | None,
        visible_BTS: Tensor | None,
        cache: KVCache | None,
        taps: Taps | None,
    ) -> tuple[AttentionContext, Tensor]:
        if cache is not None and self.config.moe is not None and self.config.moe.router == "expert_choice":
            raise UserError(
                "A model with router expert_choice cannot generate: experts choose among all tokens of a text, also"
                " later ones.",
                "Generate with a model whose router is token_choice.",
            )
        if cache is not None and not self.config.causal:
            raise UserError("A model that is not causal cannot generate: every token sees the whole text.")
        length = x_BTD.shape[1]
        valid = None if attention_mask is None else attention_mask.bool()
        if cache is not None:
            if document_ids is not None:
                raise ValueError("a cache holds one document a row; document_ids_BT cannot be combined with it")
            cache.extend(length, valid)
            visibility, default_positions = cache.visibility(length), cache.positions(length)
        else:
            visibility, default_positions = _see(x_BTD, document_ids, valid)
            if not self.config.causal:
                visibility = visibility_of_all(length, document_ids, valid, x_BTD.device)
        if visible_BTS is not None:
            if document_ids is not None or valid is not None or position_ids is None:
                raise ValueError(
                    "visible_BTS takes the place of document_ids_BT and attention_mask_BT, and needs position_ids_BT"
                )
            visibility = Visibility(length, visible_BTS.shape[2], mask_BTS=visible_BTS[:, None])
        if position_ids is None:
            position_ids = default_positions
            if (
                self.config.positions == "learned"
                and cache is None
                and document_ids is None
                and length > self.config.max_seq_len
            ):
                raise ValueError(f"{length} tokens do not fit the model's table of {self.config.max_seq_len} positions")
        rotary = None
        if self.config.positions == "rotary":
            rotary = rotary_table(self.config, position_ids, compute_dtype(x_BTD))
        if self.attention_backend == "auto":
            visibility.prepare(len(x_BTD), x_BTD.device, is_half(compute_dtype(x_BTD)))
        return AttentionContext(visibility, rotary, cache, self.attention_backend, taps), position_ids


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name, those that serve in several places once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _layer_number(name: str) -> int:
    """Of a parameter; 0 for experts that all layers share."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else 0


def _real(attention_mask_BT: Tensor | None, document_ids_BT: Tensor | None) -> Tensor | None:
    """Which tokens are not padding; None if none is marked as such."""
    if document_ids_BT is None:
        return attention_mask_BT
    real_BT = document_ids_BT >= 0
    if real_BT.device.type == "cpu" and bool(real_BT.all()):
        return attention_mask_BT
    return real_BT if attention_mask_BT is None else real_BT & attention_mask_BT.bool()


def _see(x_BTD: Tensor, document_ids: Tensor | None, valid: Tensor | None) -> tuple[Visibility, Tensor]:
    """What tokens see without a cache, and their positions."""
    length = x_BTD.shape[1]
    index = torch.arange(length, device=x_BTD.device)[None]
    if document_ids is not None:
        if valid is not None:  # padding is a document of its own
            document_ids = document_ids.masked_fill(~valid, -1)
        starts = document_starts(document_ids)
        return Visibility(length, length, starts), index - starts
    if valid is None:
        return Visibility(length, length), index
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    starts_or_none = padding_starts(valid) if x_BTD.device.type == "cpu" and not torch.compiler.is_compiling() else None
    if starts_or_none is not None:
        return Visibility(length, length, starts_or_none), positions
    return Visibility(length, length, mask_BTS=padding_mask(valid, length)), positions


def _last_real(hidden_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    """The hidden state of each row's last real token, [B, D], with padding on either side."""
    if attention_mask_BT is None:
        return hidden_BTD[:, -1]
    index = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
    last = (attention_mask_BT.bool() * index).amax(1)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last]


def _at(hidden_BTD: Tensor, index_BN: Tensor) -> Tensor:
    """The hidden states at chosen positions, [B, N, D]."""
    return hidden_BTD.gather(1, index_BN[..., None].expand(-1, -1, hidden_BTD.shape[2]))
