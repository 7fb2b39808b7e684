"""A batch of continuations under way: prompts join it and rows leave it between steps (continuous batching, Yu et al.
2022).

Every row has its own settings. What it becomes does not depend on the rows beside it, apart from rounding.

Shapes: R rows, T tokens, V vocabulary, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import LmlabError, UserError
from lmlab.hardware.gemm import fast_inference
from lmlab.hardware.threads import beat
from lmlab.models.attention.cache import KVCache
from lmlab.models.generation.config import DecodingConfig, Guide
from lmlab.models.generation.lean import LeanStep, can_be_lean
from lmlab.models.generation.lookup import Lookup
from lmlab.models.generation.sampling import draw, keep_likely, penalize
from lmlab.models.generation.static import StaticStep, can_be_static
from lmlab.models.memory.memory import Memory
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer

Decode = Callable[[Sequence[int]], str]
FinishReason = Literal["stop", "length", "repetition"]
TopTokens = list[tuple[int, float]]
_LONGEST_BLOCK = 64  # tokens: longer loops than a paragraph are text
_STATIC_AFTER = 6  # to record a step takes as long as about four steps: a short answer is done before it would pay
_SCORED_AT_ONCE = 64  # places of a prompt whose logits over the whole vocabulary are in memory together


@dataclass(frozen=True)
class PromptScores:
    """What the model says of a prompt.

    Attributes:
        log_probs: natural-log probability of each token after those before it; None for the first, which follows
            nothing.
        top: the likeliest tokens at each place with their log-probabilities, best first; none for the first.
    """

    log_probs: list[float | None]
    top: list[TopTokens]


@dataclass(eq=False)
class Continuation:
    """One row: what was added to a prompt so far.

    Attributes:
        sample: which of the prompt's continuations it is.
        ids: the new tokens, without an end token.
        log_probs: natural-log probability of each under the model itself, that is at temperature 1, unfiltered and
            without bias.
        top: for each new token the likeliest ones at its place, best first; none unless they were asked for.
        finish_reason: None as long as it goes on.
        failure: why it cannot go on.
    """

    prompt: Sequence[int]
    config: DecodingConfig
    sample: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    failure: LmlabError | None = None
    prompt_scores: PromptScores | None = None
    last: int = -1
    dropped: bool = False
    _draws: np.random.Generator | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if self.config.guide is not None:
            self.guide = self.config.guide()
        seed = self.config.seed
        if self.config.temperature > 0:
            self._draws = np.random.default_rng([abs(seed), int(seed < 0), self.sample, *self.prompt])

    @property
    def done(self) -> bool:
        """Whether it will not grow any more."""
        return self.dropped or self.finish_reason is not None or self.failure is not None

    @property
    def remaining(self) -> int:
        """How many tokens may still come."""
        return 0 if self.done else self.config.max_new_tokens - len(self.ids)

    def uniform(self) -> float:
        """The number in [0, 1) behind the next draw."""
        return 0.0 if self._draws is None else self._draws.random()

    def append(self, token: int, log_prob: float, top: TopTokens, decode: Decode | None) -> None:
        """Take a token, and see whether the continuation ends with it."""
        config, self.last = self.config, token
        if token in config.eos_ids:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if config.top_log_probs:
            self.top.append(top)
        if self.guide is not None:
            self.guide.take(token)
            if self.guide.done:
                self.finish_reason = "length" if self.guide.failed else "stop"
                return
        if config.stop and decode is not None:
            tail = self.ids[
                -max(len(stop.encode()) for stop in config.stop) - 8 :
            ]  # a token holds at least a byte, a special one none
            text = decode(tail)
            if any(stop in text for stop in config.stop):
                self.finish_reason = "stop"
                return
        if config.max_repetitions is not None and _repeats(self.ids, config.max_repetitions):
            self.finish_reason = "repetition"
        elif len(self.ids) == config.max_new_tokens:
            self.finish_reason = "length"


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
            (`lmlab.models.generation.static`); None for never. By default 6 on CUDA, and never elsewhere.
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
            scores.top.extend(_top(log_probs_TV, [top] * len(expected)))
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


def choose_tokens(rows: Sequence[Continuation], logits_RV: Tensor, decode: Decode | None, raises: bool = True) -> None:
    """Choose a token for every row that is not done.

    Arguments:
        raises: raise what fails a row; else it is kept as the row's `failure`.

    Raises:
        LmlabError: the logits of such a row are not numbers.
    """
    chosen_R = _sample(rows, logits_RV)
    log_z_R = logits_RV.logsumexp(-1)
    log_probs_R = logits_RV.gather(1, chosen_R[:, None])[:, 0] - log_z_R
    # one transfer from the device for both: fp32 holds every id below 16 million exactly
    chosen, log_probs = torch.stack((chosen_R.float(), log_probs_R)).tolist()
    tops = (
        _top(logits_RV - log_z_R[:, None], wanted)
        if any(wanted := [row.config.top_log_probs for row in rows])
        else [[] for _ in rows]
    )
    for row, token, log_prob, top in zip(rows, map(int, chosen), log_probs, tops, strict=True):
        if row.config.max_new_tokens == 0:
            row.finish_reason = "length"
        elif not row.done:
            if math.isnan(log_prob):
                row.failure = not_numbers()
            else:
                row.append(token, log_prob, top, decode)
    if raises and (failed := next((row.failure for row in rows if row.failure is not None), None)):
        raise failed


def not_numbers() -> LmlabError:
    """What is said where logits are none."""
    return LmlabError(
        "The model's logits are not numbers (NaN).",
        "Its weights may be damaged, or too large for this precision: try fp32.",
    )


def check_prompts(
    model: Transformer,
    asked: Sequence[tuple[Sequence[int], DecodingConfig]],
    decode: Decode | None,
    soft_prompt: SoftPrompt | None = None,
    memory: Memory | None = None,
) -> None:
    """Refuse what cannot be continued.

    Raises:
        UserError: as `Decoding.add`.
    """
    check_asked(model, asked, decode)
    _check_reach(model, asked)
    limit = model.config.max_seq_len
    longest, new = max(((len(prompt), config.max_new_tokens) for prompt, config in asked), key=sum)
    before, behind = 0, ""
    if soft_prompt is not None and (before := soft_prompt.positions_taken):
        behind = f" behind a soft prompt of {before} {'vectors' if soft_prompt.budget is None else 'positions'}"
    if memory is not None and (before := int(memory.next_position.max())):
        behind = f" behind a memory of {before} positions"
    if before + longest + new > limit:
        raise UserError(
            f"The longest prompt has {longest} tokens{behind}; with {new} new ones it exceeds the model's {limit}.",
            "Shorten the prompt or lower max_new_tokens.",
        )


def check_asked(
    model: Transformer, asked: Sequence[tuple[Sequence[int], DecodingConfig]], decode: Decode | None
) -> None:
    """Refuse prompts that are none, whatever their lengths.

    Raises:
        UserError: an empty prompt, ids beyond the vocabulary, or stop strings without `decode`.
    """
    if not asked or min(len(prompt) for prompt, _ in asked) == 0:
        raise UserError("Every prompt needs at least one token.")
    if any(config.stop and (decode is None or "" in config.stop) for _, config in asked):
        raise UserError("Stop strings must not be empty, and they need a way to decode tokens.")
    vocabulary = model.config.vocab_size
    if not all(0 <= min(prompt) <= max(prompt) < vocabulary for prompt, _ in asked):
        raise UserError(f"A prompt has token ids beyond the model's vocabulary of {vocabulary}.")


def _check_reach(model: Transformer, asked: Sequence[tuple[Sequence[int], DecodingConfig]]) -> None:
    """Refuse continuations that would cross the length at which LongRoPE rotates all tokens in another way."""
    scaling = model.config.rope_scaling
    if scaling is None or scaling.type != "longrope":
        return
    border = scaling.original_max_seq_len or 0
    for prompt, config in asked:
        if len(prompt) <= border < len(prompt) + config.max_new_tokens:
            raise UserError(
                f"A prompt of {len(prompt)} tokens with {config.max_new_tokens} new ones crosses {border} tokens, where"
                " the model's rotary positions change for the whole text (longrope).",
                f"Lower max_new_tokens to {border - len(prompt)}, or give a prompt of more than {border} tokens.",
            )


def _sample(rows: Sequence[Continuation], logits_RV: Tensor) -> Tensor:
    """One id a row, [R]. Rows with the same settings are drawn together."""
    if any(row.config.logit_bias or row.config.repetition_penalty != 1 or row.guide is not None for row in rows):
        logits_RV = logits_RV.clone()
        for place, row in enumerate(rows):
            for token, bias in row.config.logit_bias:
                logits_RV[place, token] += bias
            if row.config.repetition_penalty != 1:
                held = torch.tensor([*row.prompt, *row.ids], device=logits_RV.device)
                penalize(logits_RV[place], held, row.config.repetition_penalty)
            if row.guide is not None and not row.done:
                logits_RV[place].masked_fill_(~row.guide.allowed().to(logits_RV.device), float("-inf"))
    groups: dict[tuple[float, int | None, float | None, float | None], list[int]] = {}
    for place, row in enumerate(rows):
        if row.config.temperature > 0 and not row.done:
            config = row.config
            groups.setdefault((config.temperature, config.top_k, config.top_p, config.min_p), []).append(place)
    chosen_R = logits_RV.argmax(-1)
    for (temperature, top_k, top_p, min_p), places in groups.items():
        own = logits_RV if len(places) == len(rows) else logits_RV[places]
        uniforms = torch.tensor([rows[place].uniform() for place in places], dtype=torch.float64, device=own.device)
        chosen_R[places] = draw(keep_likely(own / temperature, top_k, top_p, min_p), uniforms)
    return chosen_R


def _top(log_probs_RV: Tensor, wanted: Sequence[int]) -> list[TopTokens]:
    """The likeliest ids of each row, as many as it wants, with their log-probabilities."""
    most = min(max(wanted, default=0), log_probs_RV.shape[1])
    found = log_probs_RV.topk(most, dim=-1)
    return [
        list(zip(ids[:k], values[:k], strict=True))
        for k, ids, values in zip(wanted, found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _repeats(ids: list[int], times: int) -> bool:
    """Whether the tail is a block of at most 64 tokens, `times` times."""
    sizes = range(1, min(_LONGEST_BLOCK, len(ids) // times) + 1)
    return any(ids[-size * times : -size] == ids[-size * (times - 1) :] for size in sizes)


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
