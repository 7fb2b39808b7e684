"""The transformer. One class for every family; what differs is configuration.

- residual blocks with RMSNorm or LayerNorm before, after, or on the way out of each sub-layer
- rotary (scaled or not), learned or no positions, restarting at every packed document
- causal, or every token sees its whole text (encoders); packed documents do not see each other
- grouped key-value heads, optional QK-norm; dense or mixture-of-experts feed-forward, gated or plain
- token ids or embeddings in, after a soft prompt or a memory if there is one
- hidden states, logits, a fused loss or k scalars out

Shapes: B batch, T tokens, S keys, D model width, V vocabulary, C scalars.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.errors import UserError
from lmlab.hardware.gemm import linear
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.attention.backends import Backend, Spread
from lmlab.models.attention.cache import KVCache
from lmlab.models.block import Block
from lmlab.models.config import ModelConfig, RopeScaling
from lmlab.models.dtypes import compute_dtype
from lmlab.models.forward.context import behind, check_before_text, context_of, look_around
from lmlab.models.forward.output import TransformerOutput, Wanted, at_first_real, at_last_real, at_positions
from lmlab.models.forward.tokens import Tokens
from lmlab.models.initialize import draw
from lmlab.models.internals.parts import part
from lmlab.models.internals.taps import Taps
from lmlab.models.layers.linear import Embedding, Linear, has_dropout
from lmlab.models.layers.norm import frozen_norm, make_norm
from lmlab.models.layers.packed import PackedLinear
from lmlab.models.layers.soft_cap import cap
from lmlab.models.layers.tied_embedding import SharedGradient, embed_tied
from lmlab.models.loss import Targets, TokenLoss, fused_cross_entropy, score_targets, token_log_probs
from lmlab.models.memory.memory import Memory
from lmlab.models.memory.rows import KVRows
from lmlab.models.moe.experts import Experts
from lmlab.models.moe.layer import MoE
from lmlab.models.moe.losses import RouterAccounts
from lmlab.models.moe.router import RouterOutput
from lmlab.models.prompts.soft_prompt import SoftPrompt


class Transformer(nn.Module):
    """A transformer: a language model, with `num_labels` a model that gives k scalars, without `lm_head` an encoder.

    Construct it under `torch.device("meta")` to get shapes without memory; `to_empty` and `initialize` then fill the
    weights.

    Attributes:
        attention_backend: how attention is computed; `auto` takes the fastest that fits.
        spread: how queries meet keys where the tokens of a pass are a part of their texts; set from outside.
        recompute_blocks: every so many blocks, one keeps nothing but its input for the backward pass and is computed
            again there (Chen et al. 2016): 1 for all of them, 0 for none.
        read_as: the family (`model_type`) of the directory it was read from, in whose form it and its adapters are
            written again.
        router_accounts: the losses of routers, and what they need to know of the step so far.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend: Backend = "auto"
        self.spread: Spread | None = None
        self.recompute_blocks = 0
        self.read_as: str | None = None
        self.embedding = Embedding(config.padded_vocab_size, config.d_model)
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len + config.position_offset, config.d_model)
        self.token_type_embedding = Embedding(config.token_types, config.d_model) if config.token_types else None
        self.embedding_norm = make_norm(config, config.d_model) if config.embedding_norm else None
        self.blocks = nn.ModuleList()
        for layer in range(config.num_layers):
            self.blocks.append(Block(config, layer, self._experts_for_all_layers()))
        self.router_accounts = RouterAccounts(config.moe)
        self.final_norm = None if config.norm_position == "post" else make_norm(config, config.d_model)
        self.head = Linear(config.d_model, config.padded_vocab_size, bias=False) if config.has_own_head else None
        self.head_bias = nn.Parameter(torch.zeros(config.padded_vocab_size)) if config.has_head_bias else None
        self.score = None if config.num_labels is None else Linear(config.d_model, config.num_labels, bias=False)
        self.pooler = Linear(config.d_model, config.d_model) if config.pooler else None

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

    @property
    def head_bias_V(self) -> Tensor | None:
        """The bias of the logits, [V], where they have one; without the rows that only pad the vocabulary."""
        return None if self.head_bias is None else self.head_bias[: self.config.vocab_size]

    @torch.no_grad()
    def initialize(self, seed: int) -> Transformer:
        """Draw all weights afresh from one seed, the same on every device; return the model.

        Matrices follow `init`, `init_std` and `output_init`. Biases are zero, norm weights one.

        Raises:
            ValueError: weights are packed, and none to be drawn.
        """
        if packed := next((name for name, each in self.named_modules() if isinstance(each, PackedLinear)), None):
            raise ValueError(f"the weights of {packed} are packed: build a new model to draw fresh ones")
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            draw(name, parameter, self.config, generator)
        for buffer in self.buffers():
            buffer.zero_()
        return self

    @torch.no_grad()
    def initialize_parameter(self, name: str, seed: int) -> None:
        """Draw one parameter afresh, as `initialize` does, and leave the others: for a new head on a trained model."""
        draw(name, self.get_parameter(name), self.config, torch.Generator().manual_seed(seed))

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
        soft_prompt: SoftPrompt | None = None,
        memory: Memory | None = None,
        token_type_ids_BT: Tensor | None = None,
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
            soft_prompt: vectors before each text. Everything that is given or returned by position speaks of the text
                alone, except taps and `routers`, which see the prompt too. A cache must be empty: it takes the prompt
                in, and what follows goes on without it.
            memory: what stands for a text before this one: vectors, keys and values of every layer, or both; as with a
                soft prompt, a cache takes it in. Positions of the text are counted from its end.
            token_type_ids_BT: rows of the table of token types; by default 0 everywhere.
            position_ids_BT: explicit positions of the text; by default they count from 0 in every document, or go on
                from the cache, or follow those of the soft prompt. -1 gives a token no position: nothing is added from
                a learned table, nothing is rotated.
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
            taps: listeners on intermediates (`lmlab.models.internals.taps`).

        Raises:
            ValueError: neither or both inputs given, boundaries combined with a cache or with `visible_BTS`, more
                tokens than a learned table has, a soft prompt or a memory that does not fit or would stand within the
                text, or both of them.
            UserError: the memory was made for other weights.
        """
        if (input_ids_BT is None) == (inputs_embeds_BTD is None):
            raise ValueError("give either input_ids_BT or inputs_embeds_BTD")
        # a table that is both input and output gets one gradient; a tap may come between the lookup and the loss
        ties = labels_BT is not None and self.head is None and taps is None and not torch.compiler.is_compiling()
        # a frozen table has no gradient to share, but perhaps an adapter
        ties = ties and input_ids_BT is not None and self.embedding.weight.requires_grad
        shared = SharedGradient() if ties else None
        x_BTD = self._embed(input_ids_BT, shared) if inputs_embeds_BTD is None else inputs_embeds_BTD
        valid_BT = None if attention_mask_BT is None else attention_mask_BT.bool()
        tokens = Tokens(x_BTD, self.config.causal, document_ids_BT, valid_BT, position_ids_BT, token_type_ids_BT)
        rows, soft_prompt = (None, soft_prompt) if memory is None else self._parts_of(memory, soft_prompt, tokens)
        if rows is not None or (soft_prompt is not None and soft_prompt.length):
            check_before_text(cache, visible_BTS)
        text = None
        if soft_prompt is not None and soft_prompt.length:
            tokens, text = soft_prompt.before(tokens)
        if rows is not None:
            tokens = behind(rows, tokens, cache)
        visibility, position_ids_BT = look_around(self.config, tokens, visible_BTS, cache)
        starts_BT = None if tokens.document_ids_BT is None else visibility.starts_BT
        context = context_of(
            self.config, self.attention_backend, tokens.x_BTD, visibility, position_ids_BT, cache, taps, starts_BT, rows
        )
        if self.spread is not None:
            context = replace(context, attend=self.spread, visibility=self.spread.whole)
        x_BTD, routers = self._run_blocks(self._enter(tokens, position_ids_BT, taps), context)
        hidden_BTD = self._leave(x_BTD, taps)
        if text is not None and soft_prompt is not None:
            hidden_BTD = text.of_text(hidden_BTD)
            if cache is not None and soft_prompt.budget is not None:
                cache.go_on_from(position_ids_BT.amax(1) + 1)
        router_losses = None
        if routers and self.training and torch.is_grad_enabled():
            router_losses = self.router_accounts.losses(routers, tokens.real(), tokens.document_ids_BT)
        wanted = Wanted(labels_BT, targets, z_loss, logits, scores_at_BN)
        answer = self._answer(hidden_BTD, valid_BT, wanted, shared)
        return replace(answer, routers=routers, router_losses=router_losses)

    def _answer(
        self, hidden_BTD: Tensor, valid_BT: Tensor | None, wanted: Wanted, shared: SharedGradient | None
    ) -> TransformerOutput:
        """What is wanted of the hidden states of the text."""
        if self.score is not None:
            return TransformerOutput(
                hidden_BTD, scores_BC=self._scores(hidden_BTD, self.score, valid_BT, wanted.scores_at_BN)
            )
        labels_BT, targets = wanted.labels_BT, wanted.targets
        if not self.config.lm_head and (
            labels_BT is not None or targets is not None or wanted.logits not in (None, "none")
        ):
            raise UserError(
                "The model is an encoder: it gives hidden states, and neither next-token logits nor losses."
            )
        loss = None if labels_BT is None else self._loss(hidden_BTD, labels_BT, wanted.z_loss, shared)
        token_scores = (
            None
            if targets is None
            else score_targets(
                hidden_BTD,
                self.head_weight_VD,
                targets,
                soft_cap=self.config.logit_soft_cap,
                bias_V=self.head_bias_V,
            )
        )
        logits = wanted.logits or ("all" if labels_BT is None and targets is None and self.config.lm_head else "none")
        return TransformerOutput(
            hidden_BTD,
            None if logits == "none" else self.logits_of(hidden_BTD[:, -1:] if logits == "last" else hidden_BTD),
            loss,
            token_scores,
            pooled_BD=None if self.pooler is None else self.pool(at_first_real(hidden_BTD, valid_BT)),
        )

    def _parts_of(
        self, memory: Memory, soft_prompt: SoftPrompt | None, tokens: Tokens
    ) -> tuple[KVRows | None, SoftPrompt | None]:
        """The keys and values of a memory, and its vectors, for the texts that go on from it."""
        if soft_prompt is not None:
            raise ValueError("give a soft prompt as a piece of the memory, not beside it")
        if tokens.position_ids_BT is not None:
            raise ValueError("positions after a memory are counted, not given")
        memory.check(self)
        if memory.rows is not None and self.spread is not None:
            raise ValueError("a text that is spread over processes cannot stand after keys and values from outside")
        return memory.rows, memory.soft_prompt(self)

    @part
    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """The tokens' rows of the table, [B, T, D], as `inputs_embeds_BTD` takes them: without positions."""
        return self._embed(input_ids_BT, None)

    @part
    def pool(self, hidden: Tensor) -> Tensor:
        """What the pooler makes of hidden states of first tokens, [..., D]: `pooled_BD`, for the documents of packed
        rows.
        """
        if self.pooler is None:
            raise ValueError("the model has no pooler")
        pooled: Tensor = self.pooler(hidden)
        return pooled.tanh()

    @part
    def embeddings(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], AttentionContext]:
        """What the tables of tokens and, if there is one, of positions write, [B, T, D] each, and what all blocks share
        of the pass.

        Arguments:
            attention_mask_BT: False marks padding that no token may see.
        """
        x_BTD = self._embed(input_ids_BT, None)
        tokens = Tokens(x_BTD, self.config.causal, None, attention_mask_BT)
        visibility, position_ids_BT = look_around(self.config, tokens, None, None)
        context = context_of(self.config, self.attention_backend, x_BTD, visibility, position_ids_BT, None, None)
        if self.token_type_embedding is not None or self.embedding_norm is not None:
            raise UserError("The tables of this model do not add up to its residual stream: it normalizes their sum.")
        if self.position_embedding is None:
            return (x_BTD,), context
        return (x_BTD, self._embed_positions(position_ids_BT).to(x_BTD.dtype).expand_as(x_BTD)), context

    @part
    def read_out(self, x_BTD: Tensor, straight: bool = False) -> Tensor:
        """The logits [B, T, V] of a residual stream after the last block.

        Arguments:
            straight: with gradients as if the scale of the final norm were a constant.
        """
        return self.logits_of(self._leave(x_BTD, None, straight))

    def enter(self, input_ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
        """The residual stream [B, T, D] before the first block, of tokens at these positions."""
        tokens = Tokens(self._embed(input_ids_BT, None), self.config.causal, position_ids_BT=position_ids_BT)
        return self._enter(tokens, position_ids_BT, None)

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

    def _embed(self, input_ids_BT: Tensor | None, shared: SharedGradient | None) -> Tensor:
        """The tokens' rows of the table, [B, T, D], times `embedding_scale`, which has their type, as in Gemma."""
        assert input_ids_BT is not None
        embedded_BTD: Tensor
        if shared is not None:
            embedded_BTD = embed_tied(input_ids_BT, self.embedding.weight, shared)
        else:
            embedded_BTD = self.embedding(input_ids_BT)
        scale = self.config.embedding_scale
        return embedded_BTD if scale == 1 else embedded_BTD * torch.tensor(scale, dtype=embedded_BTD.dtype)

    def _enter(self, tokens: Tokens, position_ids_BT: Tensor, taps: Taps | None) -> Tensor:
        """The residual stream before the first block: the sum of all embeddings."""
        x_BTD = tokens.x_BTD
        if self.token_type_embedding is not None:
            types_BT = tokens.type_ids_BT
            if types_BT is None:
                types_BT = torch.zeros_like(position_ids_BT)
            x_BTD = x_BTD + self.token_type_embedding(types_BT).to(x_BTD.dtype)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self._embed_positions(position_ids_BT).to(x_BTD.dtype)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = x_BTD.to(compute_dtype(x_BTD))
        if taps is None:
            return x_BTD
        taps.bind(self.config.num_layers)
        return taps("embedding", x_BTD)

    def _embed_positions(self, position_ids_BT: Tensor) -> Tensor:
        """Rows of the table of positions, and zeros for tokens without a position."""
        assert self.position_embedding is not None
        # a look is cheap on a CPU, and would hold up another device
        if position_ids_BT.device.type == "cpu" and position_ids_BT.numel() and not torch.compiler.is_compiling():
            needed, table = int(position_ids_BT.amax()) + 1, self.config.max_seq_len
            if needed > table:
                raise ValueError(f"{needed} tokens do not fit the model's table of {table} positions")
        embedded = self.position_embedding(position_ids_BT.clamp(min=0) + self.config.position_offset)
        return embedded * (position_ids_BT >= 0)[..., None]

    def _run_blocks(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, tuple[RouterOutput, ...]]:
        """The residual stream after the last block, and what routers decided."""
        routers: list[RouterOutput] = []
        # a block that is computed again would show its intermediates, and write to the cache, twice
        twice = torch.is_grad_enabled() and context.taps is None and context.cache is None
        recompute = self.recompute_blocks if twice else 0
        # what is dropped must be dropped again, and the state of chance is copied for nothing else
        drops = bool(recompute) and self.training and has_dropout(self)
        for number, block in enumerate(self.blocks):
            if recompute and number % recompute == 0:
                x_BTD, routed = checkpoint(block, x_BTD, context, use_reentrant=False, preserve_rng_state=drops)
            else:
                x_BTD, routed = block(x_BTD, context)
            if routed is not None:
                routers.append(routed)
        return x_BTD, tuple(routers)

    def _leave(self, x_BTD: Tensor, taps: Taps | None, straight: bool = False) -> Tensor:
        """The final hidden states of the residual stream after the last block."""
        hidden_BTD = x_BTD
        if self.final_norm is not None:
            hidden_BTD = frozen_norm(self.final_norm, x_BTD) if straight else self.final_norm(x_BTD)
        if self.config.logit_scale != 1 and self.score is None:  # here, so that logits, losses and scores all have it
            hidden_BTD = hidden_BTD * self.config.logit_scale
        return hidden_BTD if taps is None else taps("final", hidden_BTD)

    def _scores(self, hidden_BTD: Tensor, score: Linear, valid_BT: Tensor | None, index_BN: Tensor | None) -> Tensor:
        """The scalars, [B, C] or [B, N, C]; in fp32, as a regression needs more digits than bf16 has."""
        read = at_last_real(hidden_BTD, valid_BT) if index_BN is None else at_positions(hidden_BTD, index_BN)
        with torch.autocast(read.device.type, enabled=False):
            return linear(read.float(), score.weight.float())

    def _loss(self, hidden_BTD: Tensor, labels_BT: Tensor, z_loss: float, shared: SharedGradient | None) -> TokenLoss:
        # the whole matrix, whose padded rows get no probability: a slice of a shared table would be another tensor
        weight_VD = self.embedding.weight if self.head is None else self.head.weight
        return fused_cross_entropy(
            hidden_BTD,
            weight_VD,
            labels_BT,
            z_loss=z_loss,
            vocab_size=self.config.vocab_size,
            shared=shared,
            soft_cap=self.config.logit_soft_cap,
            bias_V=self.head_bias,
        )

    def logits_of(self, hidden_BTD: Tensor) -> Tensor:
        """The logits [..., V] of final hidden states [..., D]."""
        bias_V = self.head_bias_V
        if isinstance(self.head, PackedLinear):
            logits_BTV = self.head(hidden_BTD)[..., : self.config.vocab_size]
        else:
            logits_BTV = linear(hidden_BTD, self.head_weight_VD.to(hidden_BTD.dtype))
        if bias_V is not None:
            logits_BTV = logits_BTV + bias_V.to(logits_BTV.dtype)
        return cap(logits_BTV, self.config.logit_soft_cap)

    def log_probs_of(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """`token_log_probs` of final hidden states [..., D] and the labels after them, [...]."""
        return token_log_probs(
            hidden, self.head_weight_VD, labels, soft_cap=self.config.logit_soft_cap, bias_V=self.head_bias_V
        )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name, those that serve in several places once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def with_scalar_head(model: Transformer, num_labels: int, seed: int) -> Transformer:
    """A model of the same body with a fresh scalar head in place of its own."""
    config = ModelConfig.model_validate(model.config.model_dump() | {"num_labels": num_labels})
    headed = Transformer(config).initialize(seed)
    body = {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.startswith(("head.", "head_bias", "score."))
    }
    missing, unexpected = headed.load_state_dict(body, strict=False)
    assert not unexpected and all(name.startswith("score.") for name in missing)
    headed.initialize_parameter("score.weight", seed)
    return headed
