"""A batch of continuations under way: prompts join it and rows leave it between steps (continuous batching, Yu et al.
2022).

Every row has its own settings. What it becomes does not depend on the rows beside it, apart from rounding.

Shapes: R rows, T tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.hardware.gemm import fast_inference
from lmlab.hardware.threads import beat
from lmlab.models.attention.cache import KVCache
from lmlab.models.generation.checks import check_prompts
from lmlab.models.generation.choosing import choose_tokens, likeliest
from lmlab.models.generation.config import DecodingConfig
from lmlab.models.generation.continuation import Continuation, Decode, PromptScores
from lmlab.models.generation.lookup import Lookup
from lmlab.models.generation.steps.lean import LeanStep, can_be_lean
from lmlab.models.generation.steps.static import StaticStep, can_be_static
from lmlab.models.memory.memory import Memory
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer

_STATIC_AFTER = 6  # to record a step takes as long as about four steps: a short answer is done before it would pay
_SCORED_AT_ONCE = 64  # places of a prompt whose logits over the whole vocabulary are in memory together


@dataclass(frozen=True)
class Beginning:
    """What stands before all tokens of the prompts."""

    soft_prompt: SoftPrompt | None
    memory: Memory | None

    @property
    def is_nothing(self) -> bool:
        return self.soft_prompt is None and self.memory is None

    @property
    def length(self) -> int:
        """Slots that a cache needs for it; for keys and values it makes room itself."""
        pieces = () if self.memory is None else self.memory.pieces
        return (0 if self.soft_prompt is None else self.soft_prompt.length) + sum(each.x.shape[1] for each in pieces)


class Decoding:
    """A batch under way.

    Arguments:
        model: of which no copy is made; it is left in the mode that it was in.
        decode: ids to text, for stop strings.
        keep: called with each prompt that was read, the cache that its keys and values end in, and its row there.
        static_after: steps on the same rows after which one is recorded and replayed from then on
            (`lmlab.models.generation.steps.static`); None for never. By default 6 on CUDA, and never elsewhere.
        raises: raise what fails a row, instead of ending this row by its `failure` and going on with the others.

    Attributes:
        rows: what stands in each row of the cache; some may be done.
    """

    def __init__(
        self,
        model: Transformer,
        decode: Decode | None = None,
        keep: Callable[[Sequence[int], KVCache, int], None] | None = None,
        static_after: int | Literal["auto"] | None = "auto",
        raises: bool = True,
    ) -> None:
        self._model, self._decode, self._keep, self._raises = model, decode, keep, raises
        if static_after == "auto":
            static_after = _STATIC_AFTER if self._device.type == "cuda" else None
        self._static_after = static_after
        self._static: StaticStep | None = None
        self._lean: LeanStep | None = None
        self._lookup: tuple[Continuation, Lookup] | None = None
        scaling = model.config.rope_scaling
        self._drafts = scaling is None or not scaling.depends_on_length  # else a draft would turn what comes before it
        self._steps = 0  # on the rows as they are now
        self._cache: KVCache | None = None
        self.rows: list[Continuation] = []

    @property
    def live(self) -> list[Continuation]:
        """The rows that go on."""
        return [row for row in self.rows if not row.done]

    @property
    def length(self) -> int:
        """Tokens that each row takes room for: as many as the longest has."""
        return 0 if self._cache is None else self._cache.length

    def add(
        self,
        asked: Sequence[tuple[Sequence[int], DecodingConfig]],
        cache: KVCache | None = None,
        soft_prompt: SoftPrompt | None = None,
        memory: Memory | None = None,
    ) -> list[list[Continuation]]:
        """Read prompts together, choose the first token of each continuation, and let those that are not done join the
        batch.

        Arguments:
            asked: prompts and what to do with each.
            cache: keys and values of the first tokens of a single prompt, with room for the rest; in an empty batch
                also for what is added. Behind a soft prompt it is empty, or holds the vectors too.
            soft_prompt: vectors before the prompts, one row for all or one for each.
            memory: what stands for a text before the prompts, one for all or one for each; in an empty batch, not with
                a cache or a soft prompt.

        Returns:
            for each prompt its `num_samples` continuations, which grow with every `step`.

        Raises:
            UserError: an empty prompt, one that exceeds the model's `max_seq_len` with its continuation, stop strings
                without `decode`, or a memory in a batch under way.
            LmlabError: the logits of a row are not numbers.
        """
        self._check(asked, soft_prompt, memory)
        if memory is not None and self.live:
            raise UserError("What goes on from a memory cannot join a batch that is under way.", "Start another batch.")
        found = [
            [Continuation(prompt, config, sample) for sample in range(config.num_samples)] for prompt, config in asked
        ]
        if all(config.max_new_tokens == 0 and not config.score_prompt for _, config in asked):
            for row in (row for samples in found for row in samples):
                row.finish_reason = "length"
            return found
        if not self.live:
            self._empty()
        with evaluating(self._model):
            before = Beginning(soft_prompt, memory)
            logits, read = self._read([prompt for prompt, _ in asked], found, cache, before)
            if self._keep is not None and before.is_nothing:  # keys after such do not belong to the ids alone
                for number, (prompt, _) in enumerate(asked):
                    self._keep(prompt, read, number)
            new = [row for samples in found for row in samples]
            parents = [number for number, samples in enumerate(found) for _ in samples]
            self._choose(new, logits if parents == list(range(len(found))) else logits[parents])
            self._join(read, new, parents)
        return found

    def _check(
        self,
        asked: Sequence[tuple[Sequence[int], DecodingConfig]],
        soft_prompt: SoftPrompt | None,
        memory: Memory | None,
    ) -> None:
        check_prompts(self._model, asked, self._decode, soft_prompt, memory)

    def read(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Read tokens of a prompt into the cache that `add` will get, so that a long prompt can be read in pieces with
        steps between them.
        """
        with evaluating(self._model):
            self._model(torch.tensor([tokens], device=self._device), cache=cache, logits="none")

    def step(self) -> None:
        """Give every live row a further token, or several where a draft of them holds (`draft_tokens`)."""
        beat()
        if self._cache is None or not self.live:
            self._empty()
            return
        with evaluating(self._model):
            if draft := self._draft(self._cache):
                self._check_draft(draft, self._cache)
            else:
                self._choose(self.rows, self._next_logits(self._cache))
            going = [place for place, row in enumerate(self.rows) if not row.done]
            if not going:
                self._empty()
            elif len(going) <= 0.75 * len(self.rows):  # narrower steps are worth a copy of the cache
                self._forget_step()
                self._cache.select(going)
                self.rows = [self.rows[place] for place in going]

    def _draft(self, cache: KVCache) -> list[int]:
        """What may come next in the only text of the batch."""
        row = self.rows[0]
        if len(self.rows) > 1 or not row.config.draft_tokens or self._static is not None or not self._drafts:
            return []
        if self._lookup is None or self._lookup[0] is not row:
            self._lookup = row, Lookup(row.prompt, row.config.draft_tokens)
        # the last of the tokens that may come is drawn after the draft, and each takes a slot
        return self._lookup[1].draft(row.ids, min(row.remaining, cache.max_length - cache.length) - 1)

    def _check_draft(self, draft: list[int], cache: KVCache) -> None:
        """Read the newest token and a draft together, and choose after each as if it were read alone: the draft holds
        as far as the choices are its tokens. So what is drawn, and from what, is the same as without.
        """
        assert self._lookup is not None
        row, before = self.rows[0], cache.length
        ids_1T = torch.tensor([[row.last, *draft]], device=self._device)
        logits_TV = self._model(ids_1T, cache=cache).logits_BTV[0].float()
        held = 0
        for place in range(len(draft) + 1):
            self._choose([row], logits_TV[place : place + 1])
            if row.done or place == len(draft) or row.last != draft[place]:
                break
            held += 1
        cache.crop(before + 1 + held)
        self._lookup[1].judge(held)

    def _next_logits(self, cache: KVCache) -> Tensor:
        """The logits [R, V] after the newest token of each row."""
        ids_R1 = torch.tensor([[row.last] for row in self.rows], device=self._device)
        self._steps += 1
        if self._static is None and self._is_worth_recording(cache):
            self._static = StaticStep(self._model, cache)
        if self._static is not None:
            return self._static.run(ids_R1)
        if self._steps == 1:
            lean = can_be_lean(self._model, cache)
            self._lean = (self._lean or LeanStep(self._model)) if lean else None
        if self._lean is not None:
            return self._lean.run(ids_R1, cache)
        logits_RTV: Tensor = self._model(ids_R1, cache=cache, logits="last").logits_BTV
        return logits_RTV[:, 0].float()

    def _is_worth_recording(self, cache: KVCache) -> bool:
        after = self._static_after
        if after is None or self._steps <= after or not can_be_static(self._model, cache):
            return False
        return max(row.remaining for row in self.rows) >= after

    def _forget_step(self) -> None:
        """The rows are others from now on."""
        self._static, self._steps = None, 0

    def _empty(self) -> None:
        """Nothing goes on: the weights may be others when something does."""
        self._cache, self.rows, self._lean = None, [], None
        self._forget_step()

    @property
    def _device(self) -> torch.device:
        return self._model.embedding.weight.device

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        found: list[list[Continuation]],
        cache: KVCache | None,
        before: Beginning,
    ) -> tuple[Tensor, KVCache]:
        """Run the prompts through the model: the logits after each, and their keys and values."""
        if cache is None:
            room = 0 if self.rows else self._room(found)
            longest, weight = max(map(len, prompts)), self._model.embedding.weight
            longest += before.length
            cache = KVCache(self._model.config, len(prompts), longest + room, weight.dtype, weight.device)
        held = cache.length
        if held and before.soft_prompt is not None:  # its vectors were read with the first tokens
            held, before = held - before.length, Beginning(None, before.memory)
            assert held >= 0, "a cache behind a soft prompt holds all of its vectors"
        ids_RT, valid_RT = left_pad([prompt[held:] for prompt in prompts], self._device)
        scored = [samples for samples in found if samples[0].config.score_prompt]
        if not scored:
            return self._run(ids_RT, valid_RT, cache, before, "last").logits_BTV[:, 0].float(), cache
        hidden_RTD = self._run(ids_RT, valid_RT, cache, before, "none").hidden_BTD
        for number, samples in enumerate(found):
            if samples[0].config.score_prompt:
                scores = self._score(
                    hidden_RTD[number, ids_RT.shape[1] - len(prompts[number]) :],
                    prompts[number],
                    samples[0].config.top_log_probs,
                )
                for row in samples:
                    row.prompt_scores = scores
        return self._logits(hidden_RTD[:, -1]), cache

    def _room(self, found: list[list[Continuation]]) -> int:
        """Slots for tokens to come."""
        return max(samples[0].config.max_new_tokens for samples in found)

    def _run(
        self,
        ids_RT: Tensor,
        valid_RT: Tensor | None,
        cache: KVCache,
        before: Beginning,
        logits: Literal["last", "none"],
    ) -> Any:
        return self._model(
            ids_RT,
            attention_mask_BT=valid_RT,
            cache=cache,
            soft_prompt=before.soft_prompt,
            memory=before.memory,
            logits=logits,
        )

    def _score(self, hidden_TD: Tensor, prompt: Sequence[int], top: int) -> PromptScores:
        scores = PromptScores([None], [[]])
        targets = torch.tensor(prompt[1:], device=self._device)
        for start in range(0, len(targets), _SCORED_AT_ONCE):
            expected = targets[start : start + _SCORED_AT_ONCE]
            log_probs_TV = self._logits(hidden_TD[start : start + len(expected)]).log_softmax(-1)
            scores.log_probs.extend(log_probs_TV.gather(1, expected[:, None])[:, 0].tolist())
            scores.top.extend(likeliest(log_probs_TV, [top] * len(expected)))
        return scores

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits_of(hidden).float()

    def _choose(self, rows: Sequence[Continuation], logits_RV: Tensor) -> None:
        choose_tokens(rows, logits_RV, self._decode, self._raises)

    def _join(self, read: KVCache, new: list[Continuation], parents: list[int]) -> None:
        going = [place for place, row in enumerate(new) if not row.done]
        if not going:
            return
        rows, sources = [new[place] for place in going], [parents[place] for place in going]
        if not self.rows:
            if sources != list(range(read.batch_size)):
                read.select(sources)
            self._cache, self.rows = read, rows
            self._forget_step()
            return
        assert self._cache is not None
        self._forget_step()
        live = [place for place, row in enumerate(self.rows) if not row.done]
        self.rows = [self.rows[place] for place in live] + rows
        room = max(row.remaining for row in self.rows)
        self._cache = KVCache.side_by_side([(self._cache, live), (read, sources)], room)


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    valid = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        valid[row, length - len(prompt) :] = True
    return ids.to(device), None if bool(valid.all()) else valid.to(device)


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Evaluation mode, no gradients, and the faster products."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode(), fast_inference():
            yield
    finally:
        if was_training:
            model.train()
