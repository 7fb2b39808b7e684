"""Generation behind summary vectors, and with a text that is compressed while it grows (streaming).

Shapes: R rows, P vectors, N vectors of a summary, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.models import (
    Completion,
    Continuation,
    Decoding,
    DecodingConfig,
    GenerationConfig,
    KVCache,
    SegmentError,
    SoftPrompt,
    segment_forward,
)
from lmlab.models.generation.checks import check_asked
from lmlab.models.generation.continuation import Decode
from lmlab.models.generation.decoding import Beginning, evaluating
from lmlab.models.memory.memory import Memory


@dataclass(frozen=True)
class Generated:
    """One continuation.

    Attributes:
        completion: what was written.
        compressions: how often a segment of prompt and continuation was compressed.
        summary: the vectors at the end, which stand for all compressed segments.
    """

    completion: Completion
    compressions: int
    summary: SummaryVectors


class CompressingDecoding(Decoding):
    """A batch under way whose rows are compressed whenever `every` tokens of text stand behind the vectors: the segment
    is summarized from its keys and values, and a new cache begins with the vectors alone.

    What a row becomes is what reading its text in segments of `every` tokens gives.

    Arguments:
        compressor: the model.
        every: tokens of a segment.
        decode: ids to text, for stop strings.

    Attributes:
        summaries: of each continuation, by its identity.
        compressions: how often each was compressed.
    """

    def __init__(self, compressor: AutoCompressor, every: int, decode: Decode | None = None) -> None:
        super().__init__(compressor.model, decode, static_after=None)
        self._drafts = False  # a segment is full after so many single tokens
        self._compressor, self._every = compressor, every
        self.summaries: dict[int, SummaryVectors] = {}
        self.compressions: dict[int, int] = {}
        self._fed: dict[int, int] = {}  # tokens of the segment under way that stand in the cache
        self._begun: list[tuple[SummaryVectors, list[int], int]] = []

    def begin(
        self, asked: Sequence[tuple[Sequence[int], DecodingConfig]], before: SummaryVectors
    ) -> list[list[Continuation]]:
        """Read prompts, whose full segments are compressed, and choose the first tokens.

        Arguments:
            before: vectors before the prompts, a row each.

        Raises:
            UserError: an empty prompt, or a text that would need more vectors than the window holds.
        """
        check_asked(self._model, asked, self._decode)
        self._begun = []
        for number, (prompt, config) in enumerate(asked):
            self._check_reach(before.row(number).length, len(prompt) + config.max_new_tokens)
            cut = (len(prompt) - 1) // self._every * self._every
            own = before.row(number)
            if cut:
                ids_1T = torch.tensor([list(prompt[:cut])], device=self._device)
                own = self._compressor.compress(ids_1T, segment_lengths=self._every, soft_prompt=own)
            self._begun.append((own, list(prompt[cut:]), cut // self._every))
        prompts = [own.vectors_BPD[0] for own, _, _ in self._begun]
        soft_prompt = None
        if any(len(each) for each in prompts):
            made = SoftPrompt.of(prompts, positions=before.positions)
            soft_prompt = SoftPrompt(made.vectors_BPD, made.positions, made.valid_BP, before.budget)
        found = self.add(asked, soft_prompt=soft_prompt)
        for (own, rest, count), samples in zip(self._begun, found, strict=True):
            for row in samples:
                self.summaries[id(row)], self.compressions[id(row)], self._fed[id(row)] = own, count, len(rest)
        self._compress_full()
        return found

    def step(self) -> None:
        """Give every live row a further token."""
        for row in self.rows:
            self._fed[id(row)] += 1
        super().step()
        self._compress_full()

    def _check(
        self,
        asked: Sequence[tuple[Sequence[int], DecodingConfig]],
        soft_prompt: SoftPrompt | None,
        memory: Memory | None,
    ) -> None:
        pass  # `begin` has looked at segments, which are all that a window must hold

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        found: list[list[Continuation]],
        cache: KVCache | None,
        before: Beginning,
    ) -> tuple[Tensor, KVCache]:
        return super()._read([rest for _, rest, _ in self._begun], found, cache, before)

    def _room(self, found: list[list[Continuation]]) -> int:
        return self._every

    def _check_reach(self, before: int, tokens: int) -> None:
        compressor, shape = self._compressor, self._model.config
        if shape.positions != "rotary":
            if shape.positions == "learned" and self._every > shape.max_seq_len:
                raise SegmentError(
                    f"Segments of {self._every} tokens exceed the model's table of {shape.max_seq_len} positions.",
                    "Lower compress_every.",
                )
            return
        kappa, segments = compressor.summary_length, max(0, tokens - 1) // self._every
        held = before + kappa * segments if compressor.config.accumulate else max(before, kappa)
        held = compressor.config.position_budget or held
        if held + self._every + kappa > shape.max_seq_len:
            raise SegmentError(
                f"A text of {tokens} tokens in segments of {self._every} needs {held} positions for vectors, and"
                f" {held + self._every + kappa} in all; the model's window has {shape.max_seq_len}.",
                "Write less, or compress into fewer vectors (longer segments).",
            )

    def _compress_full(self) -> None:
        """Compress the rows whose segment is full."""
        full = [place for place, row in enumerate(self.rows) if not row.done and self._fed[id(row)] == self._every]
        if not full or self._cache is None:
            return
        with evaluating(self._model):
            fresh = [self._compressed(place) for place in full]
            others = [place for place, row in enumerate(self.rows) if place not in full and not row.done]
            parts: list[tuple[KVCache, Sequence[int]]] = [(self._cache, others)] if others else []
            self._cache = KVCache.side_by_side([*parts, *((each, [0]) for each in fresh)], self._every + 1)
            self.rows = [self.rows[place] for place in (*others, *full)]
            self._forget_step()

    def _compressed(self, place: int) -> KVCache:
        """A cache that holds what then stands for the row: its vectors alone."""
        assert self._cache is not None
        row, compressor = self.rows[place], self._compressor
        real = int(self._cache.real_lengths()[place])
        own = self._cache.copy_of(place, self._cache.length - real, self._cache.length, compressor.summary_length)
        tokens_1ND = compressor.summary_embedding_ND[None].to(self._model.embedding.weight.dtype)
        summary_BND = segment_forward(self._model, None, tokens_1ND, None, compressor.summary_length, cache=own)[1]
        read = torch.tensor([self._every], device=summary_BND.device)
        written_BND = compressor.as_vectors(summary_BND)
        summary = self.summaries[id(row)].after(written_BND, None, read, compressor.config.accumulate)
        self.summaries[id(row)] = summary
        self.compressions[id(row)] += 1
        self._fed[id(row)] = 0
        return prefilled(compressor, summary)


def prefilled(compressor: AutoCompressor, summary: SummaryVectors) -> KVCache:
    """A cache of one row that holds vectors and nothing else."""
    model, vectors_BPD = compressor.model, summary.vectors_BPD
    weight = model.embedding.weight
    cache = KVCache(model.config, 1, summary.length, weight.dtype, weight.device)
    places_1P = None
    if not summary.positions:
        places_1P = torch.full((1, summary.length), -1, device=weight.device)
    elif summary.budget is not None:
        places_1P = torch.arange(summary.length, device=weight.device)[None] % summary.budget
    model(inputs_embeds_BTD=vectors_BPD.to(weight.dtype), position_ids_BT=places_1P, cache=cache, logits="none")
    if summary.budget is not None:
        cache.go_on_from(summary.budget)
    return cache


def generate(
    compressor: AutoCompressor,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | None = None,
    *,
    soft_prompt: SummaryVectors | SoftPrompt | Tensor | None = None,
    compress_every: int | None = None,
    decode: Decode | None = None,
) -> list[list[Generated]]:
    """Continue prompts, behind vectors if they are given; see `AutoCompressor.generate`."""
    before = compressor.vectors(soft_prompt, len(prompts))
    settings = DecodingConfig.model_construct(**(config or GenerationConfig()).model_dump())
    asked = [(prompt, settings) for prompt in prompts]
    if compress_every is None:
        decoding = Decoding(compressor.model, decode)
        found = decoding.add(asked, soft_prompt=before.soft_prompt if before.length else None)
    else:
        if compress_every < 1:
            raise UserError(f"compress_every {compress_every}: a segment has at least 1 token.")
        if not compressor.summary_length:
            raise UserError("The model has no summary tokens (summary_length 0): it cannot compress.")
        decoding = CompressingDecoding(compressor, compress_every, decode)
        found = decoding.begin(asked, before)
    while decoding.live:
        decoding.step()
    summaries = decoding.summaries if isinstance(decoding, CompressingDecoding) else {}
    counts = decoding.compressions if isinstance(decoding, CompressingDecoding) else {}
    return [
        [
            Generated(Completion.of(row, decode), counts.get(id(row), 0), summaries.get(id(row), before.row(number)))
            for row in samples
        ]
        for number, samples in enumerate(found)
    ]
