"""The compressor: a language model with summary tokens (Chevalier et al. 2023, section 3).

Shapes: B batch, T tokens, M tokens of a segment, N summary tokens of a segment, P vectors, D model width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.methods.autocompressor.compressor.checks import fitting_vectors, require_compressible, require_texts
from lmlab.methods.autocompressor.compressor.output import CompressorOutput, SegmentLoss, next_tokens
from lmlab.methods.autocompressor.compressor.router_losses import RouterLossesWithin
from lmlab.methods.autocompressor.compressor.segmenting import lengths_of, longest_segment
from lmlab.methods.autocompressor.compressor.starting import NOISE, first_summary_tokens, scale_to_embeddings
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.methods.autocompressor.config import CompressorConfig, SummaryInit
from lmlab.models import (
    IGNORE,
    GenerationConfig,
    SoftPrompt,
    TokenLoss,
    Transformer,
    fused_cross_entropy,
    segment_forward,
)
from lmlab.models.internals.parts import part

if TYPE_CHECKING:
    from lmlab.methods.autocompressor.compressor.generate import Generated

_log = logging.getLogger(__name__)


class AutoCompressor(nn.Module):
    """A language model that writes summary vectors for segments of text, and reads them in their place.

    Arguments:
        model: any decoder of lmlab.
        config: what belongs to the compressor.

    Attributes:
        summary_embedding_ND: the summary tokens' own table, in fp32 at least whatever the type of the model.
    """

    def __init__(self, model: Transformer, config: CompressorConfig) -> None:
        super().__init__()
        require_compressible(model.config, config)
        self.model, self.config = model, config
        weight = model.embedding.weight
        self.summary_embedding_ND = nn.Parameter(
            torch.zeros(
                config.summary_length,
                model.config.d_model,
                dtype=torch.promote_types(weight.dtype, torch.float32),
                device=weight.device,
            )
        )

    @classmethod
    def from_base(
        cls,
        model: Transformer | str | Path,
        summary_length: int = 50,
        accumulate: bool = True,
        init: SummaryInit = "eos",
        *,
        noise: float = NOISE,
        eos_id: int | None = None,
        seed: int = 0,
        **config: Any,
    ) -> AutoCompressor:
        """A compressor on a trained model, with fresh summary tokens.

        Arguments:
            model: the model, or where `Model.find` finds one.
            init, noise: as in `CompressTrainConfig`. The tokens are set after the weights are there, so that nothing
                loses them.
            eos_id: the end mark; by default that of the model's directory.
            seed: of the noise, or of the drawn tokens.
            config: further fields of `CompressorConfig`.

        Raises:
            UserError: nobody knows the end mark, or a setting is impossible.
        """
        if not isinstance(model, Transformer):
            from lmlab.runs import Model

            found = Model.find(model)
            if init == "eos" and eos_id is None:
                eos_id = next(iter(found.end_token_ids()), None)
                tokenizer = found.tokenizer_if_any() if eos_id is None else None
                eos_id = eos_id if tokenizer is None else tokenizer.eos_id
            model = found.load()
        named = {"summary_length": summary_length, "accumulate": accumulate, "summary_init": f"{init} {noise:g}"}
        settings = validate(CompressorConfig, named | config, "the settings of the compressor")
        compressor = cls(model, settings)
        compressor.initialize_summary(init, noise, eos_id, seed)
        return compressor.eval()

    @classmethod
    def load(
        cls, place: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> AutoCompressor:
        """Read a compressor; see `load_compressor`."""
        from lmlab.methods.autocompressor.compressor.files import load_compressor

        return load_compressor(place, device, dtype)

    def save(self, directory: str | Path, *, companions: str | Path | None = None) -> None:
        """Write its directory; see `save_compressor`."""
        from lmlab.methods.autocompressor.compressor.files import save_compressor

        save_compressor(self, directory, companions=companions)

    @torch.no_grad()
    def initialize_summary(self, init: SummaryInit, noise: float, eos_id: int | None, seed: int) -> None:
        """Set the summary tokens, once the weights are there; see `first_summary_tokens`. A scale that follows from the
        weights becomes its number.
        """
        rows_ND = first_summary_tokens(self.model, self.summary_length, init, noise, eos_id, seed)
        self.summary_embedding_ND.copy_(rows_ND)
        if self.config.vector_scale == "embedding":
            self.config = self.config.model_copy(update={"vector_scale": scale_to_embeddings(self.model)})

    @property
    def summary_length(self) -> int:
        """Kappa."""
        return self.config.summary_length

    @property
    def positions(self) -> bool:
        """Whether vectors take positions: not with learned ones, whose table belongs to the text alone."""
        return self.model.config.positions == "rotary"

    def nothing(self, rows: int = 1) -> SummaryVectors:
        """What stands before a text of which nothing was read."""
        table = self.summary_embedding_ND
        empty = self.model.embedding.weight.new_zeros(rows, 0, self.model.config.d_model)
        none = torch.zeros(0, dtype=torch.long, device=table.device)
        return SummaryVectors(
            empty,
            none,
            torch.zeros(rows, dtype=torch.long, device=table.device),
            positions=self.positions,
            budget=self.config.position_budget,
        )

    def vectors(self, given: SummaryVectors | SoftPrompt | Tensor | None, rows: int) -> SummaryVectors:
        """What was given as a soft prompt, for so many texts.

        Raises:
            UserError: it has another width or number of rows than the model and the texts, or is not finite.
        """
        return fitting_vectors(given, self.nothing(rows))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        segment_lengths: int | Sequence[int] | None = None,
        soft_prompt: SummaryVectors | SoftPrompt | Tensor | None = None,
        labels: Tensor | None = None,
        targets_BT: Tensor | None = None,
        output_summary: bool = False,
        summary_length: int | None = None,
        logits: bool | None = None,
        checkpointed: int = 0,
    ) -> CompressorOutput:
        """Read a text in segments, each after the summaries of those before it.

        Arguments:
            input_ids: [B, T]; or `inputs_embeds`, [B, T, D].
            attention_mask: False (or 0) for padding, on either side.
            segment_lengths: of all segments; or of each, with a shorter last one; by default the text is one segment.
            soft_prompt: vectors of what came before.
            labels: tokens to be predicted, at their own places as in `transformers`: the first one of a text is
                predicted by nothing, and the first of a later segment by the last state of the one before it.
            targets_BT: labels at the places that predict them, in place of `labels`.
            output_summary: summarize the last segment too.
            summary_length: fewer vectors for each segment than kappa, of a compressor that was trained so.
            logits: give those of all positions; by default where there are no labels.
            checkpointed: so many of the first segments keep nothing but their input for the backward pass.

        Raises:
            SegmentError: the segments do not fit the text or the window.
            UserError: the soft prompt does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        assert given is not None
        vocabulary = self.model.config.vocab_size
        require_texts(
            given,
            vocabulary,
            input_ids is not None,
            attention_mask=attention_mask,
            labels=labels,
            targets_BT=targets_BT,
        )
        embeds_BTD = self.model.embed(input_ids) if input_ids is not None else inputs_embeds
        assert embeds_BTD is not None
        rows, total = embeds_BTD.shape[:2]
        lengths = lengths_of(total, segment_lengths, total)
        if labels is not None:
            targets_BT = next_tokens(labels)
        summary = self.vectors(soft_prompt, rows)
        hidden, losses, start = [], list[SegmentLoss](), 0
        wants_logits = targets_BT is None if logits is None else logits
        for number, length in enumerate(lengths):
            span = slice(start, start + length)
            start += length
            writes = output_summary or number + 1 < len(lengths)
            token_hidden_BMD, summary, own = self.segment(
                embeds_BTD[:, span],
                None if attention_mask is None else attention_mask[:, span],
                summary,
                writes,
                summary_length,
                None if targets_BT is None else targets_BT[:, span],
                number < checkpointed,
            )
            if wants_logits:
                hidden.append(token_hidden_BMD)
            if own is not None:
                losses.append(own)
        loss = None
        if losses:
            count = torch.stack([each.loss.count for each in losses]).sum()
            loss = torch.stack([each.loss.sum for each in losses]).sum() / count.clamp(min=1)
        logits_BTV = self.model.logits_of(torch.cat(hidden, 1)) if wants_logits else None
        return CompressorOutput(summary, logits_BTV, loss, losses)

    def segment(
        self,
        embeds_BMD: Tensor,
        mask_BM: Tensor | None,
        before: SummaryVectors,
        writes: bool,
        summary_length: int | None = None,
        targets_BM: Tensor | None = None,
        checkpointed: bool = False,
    ) -> tuple[Tensor, SummaryVectors, SegmentLoss | None]:
        """One segment: final hidden states of its tokens, the vectors after it, and the loss of the labels.

        Arguments:
            before: vectors that stand before it.
            writes: whether it is summarized.
        """
        table_ND = self._summary_tokens(summary_length) if writes else self.summary_embedding_ND[:0]
        rows, text = embeds_BMD.shape[:2]
        mask_BM = None if mask_BM is None or bool(mask_BM.all()) else mask_BM.bool()
        tokens_BN = table_ND.to(embeds_BMD.dtype).expand(rows, -1, -1)
        if before.vectors_BPD.dtype != embeds_BMD.dtype:
            before = replace(before, vectors_BPD=before.vectors_BPD.to(embeds_BMD.dtype))
        accounts = self.model.router_accounts
        counted = accounts.counts_of_step

        def run(vectors_BPD: Tensor, embeds_BTD: Tensor, again: bool) -> tuple[Tensor, ...]:
            held, accounts.counts_of_step = accounts.counts_of_step, counted
            prompt = replace(before, vectors_BPD=vectors_BPD).soft_prompt if before.length else None
            try:
                with RouterLossesWithin(self.model) as routers:
                    out = segment_forward(self.model, prompt, embeds_BTD, mask_BM, len(table_ND))
            finally:  # a second pass ends as soon as it has what is needed
                if again:  # what is computed twice counts once
                    accounts.counts_of_step = held
            found = (out.token_hidden_BMD, out.summary_BND)
            return found + ((routers[0].total, routers[0].counts_LE) if routers else ())

        embeds_BTD = torch.cat((embeds_BMD, tokens_BN), 1) if len(table_ND) else embeds_BMD
        if checkpointed and torch.is_grad_enabled():
            calls = iter(range(1 << 30))
            token_hidden_BMD, summary_BND, *router = checkpoint(
                lambda v, e: run(v, e, next(calls) > 0), before.vectors_BPD, embeds_BTD, use_reentrant=False
            )
        else:
            token_hidden_BMD, summary_BND, *router = run(before.vectors_BPD, embeds_BTD, False)
        tokens_B = torch.full((rows,), text, device=embeds_BMD.device) if mask_BM is None else mask_BM.sum(1)
        after = before
        if len(table_ND):
            real_B = None if mask_BM is None else mask_BM.any(1)
            real_B = None if real_B is None or bool(real_B.all()) else real_B
            after = before.after(self.as_vectors(summary_BND), real_B, tokens_B, self.config.accumulate)
        loss = None
        if targets_BM is not None:
            if mask_BM is not None:
                targets_BM = targets_BM.masked_fill(~mask_BM, IGNORE)
            loss = SegmentLoss(self.loss_of(token_hidden_BMD, targets_BM), text, *router)
        return token_hidden_BMD, after, loss

    @part
    def loss_of(self, hidden_BMD: Tensor, targets_BM: Tensor) -> TokenLoss:
        """The summed cross-entropy of labels at the places that predict them, a slice of logits at a time."""
        shape, model = self.model.config, self.model
        weight_VD = model.embedding.weight if model.head is None else model.head.weight
        return fused_cross_entropy(
            hidden_BMD,
            weight_VD,
            targets_BM,
            vocab_size=shape.vocab_size,
            soft_cap=shape.logit_soft_cap,
            bias_V=model.head_bias,
        )

    def as_vectors(self, summary_BND: Tensor) -> Tensor:
        """What final hidden states of summary tokens are as inputs: the same, times the compressor's scale."""
        scale = self.config.vector_scale
        if scale == "embedding":
            raise ValueError("vector_scale embedding is decided by initialize_summary, which has not run")
        return summary_BND if scale == 1 else summary_BND * scale

    @torch.no_grad()
    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_lengths: int | Sequence[int] | None = None,
        soft_prompt: SummaryVectors | SoftPrompt | Tensor | None = None,
        *,
        summary_length: int | None = None,
    ) -> SummaryVectors:
        """The vectors that stand for texts, behind those that were given.

        Arguments:
            input_ids: [B, T] or [T].
            segment_lengths: of all segments, or of each; by default as long ones as the window allows.

        Raises:
            SegmentError: the segments do not fit the text or the window.
            UserError: the compressor has no summary tokens, or the soft prompt does not fit.
        """
        if not self.summary_length:
            raise UserError("The model has no summary tokens (summary_length 0): it cannot compress.")
        input_ids = input_ids[None] if input_ids.dim() == 1 else input_ids
        if attention_mask is not None and attention_mask.dim() == 1:
            attention_mask = attention_mask[None]
        require_texts(input_ids, self.model.config.vocab_size, True, attention_mask=attention_mask)
        before = self.vectors(soft_prompt, len(input_ids))
        if not input_ids.shape[1]:
            lengths_of(0, segment_lengths, 1)
        if segment_lengths is None:
            segment_lengths = longest_segment(
                self.model.config,
                self.summary_length,
                input_ids.shape[1],
                before.length,
                self.config.position_budget,
                self.config.accumulate,
            )
        self._warn_of_many(before, input_ids.shape[1], segment_lengths)
        was_training = self.training
        self.eval()
        try:
            return self(
                input_ids,
                attention_mask,
                segment_lengths=segment_lengths,
                soft_prompt=before,
                output_summary=True,
                summary_length=summary_length,
                logits=False,
            ).summary
        finally:
            self.train(was_training)

    def _warn_of_many(self, before: SummaryVectors, total: int, segment_lengths: int | Sequence[int]) -> None:
        """Say that rotary positions reach beyond what was trained."""
        known, segments = self.config.trained_segments, before.segments + len(lengths_of(total, segment_lengths, total))
        if self.positions and self.config.accumulate and known is not None and segments > 2 * known:
            _log.warning(
                "The text has %d segments, and the compressor was trained on %d: with rotary positions, vectors of more"
                " than twice as many are read at places that it has not learned.",
                segments,
                known,
            )

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        soft_prompt: SummaryVectors | SoftPrompt | Tensor | None = None,
        compress_every: int | None = None,
        config: GenerationConfig | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        **settings: Any,
    ) -> list[list[Generated]]:
        """Continue prompts.

        Arguments:
            input_ids: [B, T] with `attention_mask` for padding, or a list of ids for each prompt.
            soft_prompt: vectors before the prompts, one row for all or one for each.
            compress_every: compress the text behind the vectors whenever it has so many tokens, prompt included; each
                continuation then says how often that was.
            config: how, or its fields as `settings` (`max_new_tokens`, `temperature`, ...).

        Returns:
            for each prompt its `num_samples` continuations.
        """
        from lmlab.methods.autocompressor.compressor.generate import generate

        if isinstance(input_ids, Tensor):
            rows = input_ids[None] if input_ids.dim() == 1 else input_ids
            mask = torch.ones_like(rows) if attention_mask is None else attention_mask
            mask = mask[None] if mask.dim() == 1 else mask
            require_texts(rows, self.model.config.vocab_size, True, attention_mask=mask)
            input_ids = [ids[real.bool()].tolist() for ids, real in zip(rows, mask, strict=True)]
        if settings:
            config = validate(GenerationConfig, settings, "the settings of the generation")
        return generate(self, input_ids, config, soft_prompt=soft_prompt, compress_every=compress_every, decode=decode)

    def _summary_tokens(self, summary_length: int | None) -> Tensor:
        """The table's first rows: a causal summary's first vectors do not depend on later ones."""
        if summary_length is None or summary_length == self.summary_length:
            return self.summary_embedding_ND
        if not 1 <= summary_length <= self.summary_length:
            raise UserError(f"A summary of {summary_length} vectors: the compressor has 1 to {self.summary_length}.")
        if not self.config.nested and not self.training:
            raise UserError(
                f"A summary of {summary_length} of {self.summary_length} vectors: the compressor was not trained to be"
                " read in part.",
                "Train it with compressor.nested: true, or take whole summaries.",
            )
        return self.summary_embedding_ND[:summary_length]
