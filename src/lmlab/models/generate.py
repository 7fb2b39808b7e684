"""Generation with a key-value cache: batches of unequal prompts, greedy or sampled, whole or as a stream.

Shapes: R rows (each prompt as often as it has samples), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from lmlab.config import Config
from lmlab.errors import UserError
from lmlab.gemm import fast_inference
from lmlab.models.cache import KVCache
from lmlab.models.sampling import draw, keep_likely
from lmlab.models.transformer import Transformer

Decode = Callable[[Sequence[int]], str]
_LONGEST_BLOCK = 64
_UNFINISHED = "\ufffd"


class GenerationConfig(Config):
    """How to continue prompts.

    Attributes:
        max_new_tokens: most tokens to add.
        temperature: 0 is greedy.
        top_k, top_p, min_p: which tokens may be drawn (`keep_likely`).
        num_samples: continuations of each prompt.
        seed: of the draws. A draw depends on the seed, the prompt and the number of the sample, and not on the rest of the batch.
        eos_ids: tokens that end a continuation, of which they are not a part.
        stop: strings that end it; they are not part of its text.
        max_repetitions: end it when its tail is one block of up to 64 tokens so many times in a row.
    """

    max_new_tokens: NonNegativeInt = 100
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    num_samples: PositiveInt = 1
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    max_repetitions: int | None = Field(default=None, ge=2)


@dataclass(frozen=True)
class Completion:
    """One continuation.

    Attributes:
        ids: the new tokens, without the one of `eos_ids` that ended it.
        log_probs: natural-log probability of each under the model itself, that is at temperature 1 and unfiltered.
        finish_reason: `stop` (an end token or a stop string), `length`, or `repetition`.
        text: the decoded tokens up to a stop string, if `decode` was given.
    """

    ids: list[int]
    log_probs: list[float]
    finish_reason: Literal["stop", "length", "repetition"]
    text: str | None = None


@dataclass
class _Row:
    prompt: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "repetition"] | None = None


def generate(
    model: Transformer, prompts: Sequence[Sequence[int]], config: GenerationConfig | None = None, *, decode: Decode | None = None
) -> list[list[Completion]]:
    """Continue prompts of token ids.

    Arguments:
        prompts: one list of ids each, of any lengths, none empty.
        decode: ids to text, for stop strings and for `Completion.text`.

    Returns:
        for each prompt its `num_samples` completions.

    Raises:
        UserError: an empty prompt, a prompt and its continuation that exceed the model's `max_seq_len`, or stop strings without `decode`.
    """
    config = config or GenerationConfig()
    *_, rows = _run(model, prompts, config, decode)
    completions: list[list[Completion]] = [[] for _ in prompts]
    for row in rows:
        completions[row.prompt].append(_complete(row, config, decode))
    return completions


def stream(
    model: Transformer,
    prompt: Sequence[int],
    config: GenerationConfig,
    decode: Decode,
    cache: KVCache | None = None,
) -> Iterator[str]:
    """Continue one prompt and yield its text as it grows; half a character or what may begin a stop string is held back.

    Arguments:
        cache: keys and values of the first tokens of the prompt, to which those of the others are added; one row, with room for all.
    """
    given = 0
    for rows in _run(model, [prompt], config.model_copy(update={"num_samples": 1}), decode, cache):
        done = rows[0].finish_reason is not None
        text = _cut(decode(rows[0].ids), config.stop)
        if not done:
            text = text.rstrip(_UNFINISHED)
            held = max((size for stop in config.stop for size in range(len(stop)) if text.endswith(stop[:size])), default=0)
            text = text[: len(text) - held]
        if len(text) > given:
            yield text[given:]
            given = len(text)


def _run(
    model: Transformer, prompts: Sequence[Sequence[int]], config: GenerationConfig, decode: Decode | None, cache: KVCache | None = None
) -> Iterator[list[_Row]]:
    """Yield all rows after every step."""
    _check(model, prompts, config, decode)
    device, longest = model.embedding.weight.device, max(map(len, prompts))
    rows = [_Row(prompt) for prompt in range(len(prompts)) for _ in range(config.num_samples)]
    if config.max_new_tokens == 0:
        for row in rows:
            row.finish_reason = "length"
        yield rows
        return
    uniforms = _uniforms(prompts, config).to(device)
    if cache is None:
        cache = KVCache(model.config, len(prompts), longest + config.max_new_tokens, model.embedding.weight.dtype, device)
    ids, valid = _left_pad([prompt[cache.length :] for prompt in prompts], device)
    live = list(range(len(rows)))  # what stands in each row of the batch
    was_training = model.training
    model.eval()
    try:
        for step in range(config.max_new_tokens):
            with torch.inference_mode(), fast_inference():
                logits = _next_logits(model, ids, valid, cache)
                if step == 0 and config.num_samples > 1:
                    repeated = [row.prompt for row in rows]
                    cache.select(repeated)
                    logits = logits[repeated]
                chosen, log_probs = _choose(logits, config, uniforms[live, step])
            for index, token, log_prob in zip(live, chosen.tolist(), log_probs.tolist(), strict=True):
                if rows[index].finish_reason is None:
                    _append(rows[index], token, log_prob, config, decode)
            yield rows
            going = [place for place, index in enumerate(live) if rows[index].finish_reason is None]
            if not going:
                return
            if len(going) <= 0.75 * len(live):  # narrower steps are worth a copy of the cache
                cache.select(going)
                live, chosen = [live[place] for place in going], chosen[going]
            ids, valid = chosen[:, None], None
    finally:
        model.train(was_training)


def _next_logits(model: Transformer, ids_RT: Tensor, valid_RT: Tensor | None, cache: KVCache) -> Tensor:
    logits = model(ids_RT, attention_mask_BT=valid_RT, cache=cache, logits="last").logits_BTV
    return logits[:, 0].float()


def _choose(logits_RV: Tensor, config: GenerationConfig, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and their log-probabilities at temperature 1, each [R]."""
    if config.temperature == 0:
        chosen = logits_RV.argmax(-1)
    else:
        chosen = draw(keep_likely(logits_RV / config.temperature, config.top_k, config.top_p, config.min_p), uniforms_R)
    return chosen, logits_RV.gather(1, chosen[:, None])[:, 0] - logits_RV.logsumexp(-1)


def _append(row: _Row, token: int, log_prob: float, config: GenerationConfig, decode: Decode | None) -> None:
    if token in config.eos_ids:
        row.finish_reason = "stop"
        return
    row.ids.append(token)
    row.log_probs.append(log_prob)
    if config.stop and decode is not None:
        tail = row.ids[-max(len(stop.encode()) for stop in config.stop) - 8 :]  # a token holds at least a byte, a special one none
        if any(stop in decode(tail) for stop in config.stop):
            row.finish_reason = "stop"
            return
    if config.max_repetitions is not None and _repeats(row.ids, config.max_repetitions):
        row.finish_reason = "repetition"
    elif len(row.ids) == config.max_new_tokens:
        row.finish_reason = "length"


def _repeats(ids: list[int], times: int) -> bool:
    """Whether the tail is a block of at most 64 tokens, `times` times."""
    sizes = range(1, min(_LONGEST_BLOCK, len(ids) // times) + 1)
    return any(ids[-size * times : -size] == ids[-size * (times - 1) :] for size in sizes)


def _complete(row: _Row, config: GenerationConfig, decode: Decode | None) -> Completion:
    assert row.finish_reason is not None
    return Completion(row.ids, row.log_probs, row.finish_reason, None if decode is None else _cut(decode(row.ids), config.stop))


def _cut(text: str, stop: Sequence[str]) -> str:
    found = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(found)] if found else text


def _check(model: Transformer, prompts: Sequence[Sequence[int]], config: GenerationConfig, decode: Decode | None) -> None:
    if not prompts or min(map(len, prompts)) == 0:
        raise UserError("Every prompt needs at least one token.")
    if config.stop and (decode is None or "" in config.stop):
        raise UserError("Stop strings must not be empty, and they need a way to decode tokens.")
    longest, limit = max(map(len, prompts)), model.config.max_seq_len
    if longest + config.max_new_tokens > limit:
        raise UserError(
            f"The longest prompt has {longest} tokens; with {config.max_new_tokens} new ones it exceeds the model's {limit}.",
            "Shorten the prompt or lower max_new_tokens.",
        )


def _uniforms(prompts: Sequence[Sequence[int]], config: GenerationConfig) -> Tensor:
    """The numbers behind all draws, [R, max_new_tokens]."""
    if config.temperature == 0:
        return torch.zeros(len(prompts) * config.num_samples, config.max_new_tokens)
    drawn = [
        np.random.default_rng([abs(config.seed), int(config.seed < 0), sample, *prompt]).random(config.max_new_tokens)
        for prompt in prompts
        for sample in range(config.num_samples)
    ]
    return torch.from_numpy(np.stack(drawn))


def _left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    valid = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        valid[row, length - len(prompt) :] = True
    return ids.to(device), None if bool(valid.all()) else valid.to(device)
