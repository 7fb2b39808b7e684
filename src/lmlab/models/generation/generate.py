"""Generation with a key-value cache: batches of unequal prompts, greedy or sampled, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lmlab.models.attention.cache import KVCache
from lmlab.models.generation.config import DecodingConfig, GenerationConfig
from lmlab.models.generation.continuation import Continuation, Decode, FinishReason, PromptScores, TopTokens
from lmlab.models.generation.decoding import Decoding
from lmlab.models.memory.memory import Memory
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer

_UNFINISHED = "\ufffd"  # what decoders write for the bytes of half a character


@dataclass(frozen=True)
class Completion:
    """One continuation.

    Attributes:
        ids: the new tokens, without the one of `eos_ids` that ended it.
        log_probs: natural-log probability of each under the model itself, that is at temperature 1 and unfiltered.
        finish_reason: `stop` (an end token or a stop string), `length`, or `repetition`.
        text: the decoded tokens up to a stop string, if `decode` was given.
        top: for each token the likeliest ones at its place, if they were asked for.
        prompt_scores: what the model says of the prompt, if that was asked for.
    """

    ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    text: str | None = None
    top: list[TopTokens] = field(default_factory=list)
    prompt_scores: PromptScores | None = None

    @classmethod
    def of(cls, row: Continuation, decode: Decode | None) -> Completion:
        """What a continuation that is done has become."""
        assert row.finish_reason is not None
        text = None if decode is None else _cut(decode(row.ids), row.config.stop)
        return cls(row.ids, row.log_probs, row.finish_reason, text, row.top, row.prompt_scores)


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    *,
    decode: Decode | None = None,
    soft_prompt: SoftPrompt | None = None,
    memory: Memory | None = None,
) -> list[list[Completion]]:
    """Continue prompts of token ids.

    Arguments:
        prompts: one list of ids each, of any lengths, none empty.
        config: how, for all prompts or for each one.
        decode: ids to text, for stop strings and for `Completion.text`.
        soft_prompt: vectors before the prompts, one row for all or one for each.
        memory: what stands for a text before the prompts, one for all or one for each; not with a soft prompt.

    Returns:
        for each prompt its `num_samples` completions.

    Raises:
        UserError: an empty prompt, a prompt and its continuation that exceed the model's `max_seq_len`, or stop strings
            without `decode`.
    """
    config = config or GenerationConfig()
    configs = [config] * len(prompts) if isinstance(config, GenerationConfig) else config
    decoding = Decoding(model, decode)
    asked = [(prompt, _for_decoding(each)) for prompt, each in zip(prompts, configs, strict=True)]
    found = decoding.add(asked, soft_prompt=soft_prompt, memory=memory)
    while decoding.live:
        decoding.step()
    return [[Completion.of(row, decode) for row in samples] for samples in found]


def stream(
    model: Transformer,
    prompt: Sequence[int],
    config: GenerationConfig,
    decode: Decode,
    cache: KVCache | None = None,
    *,
    soft_prompt: SoftPrompt | None = None,
    memory: Memory | None = None,
) -> Iterator[str]:
    """Continue one prompt and yield its text as it grows; half a character or what may begin a stop string is held
    back.

    Arguments:
        cache: keys and values of the first tokens of the prompt, to which those of the others are added; one row, with
            room for all; behind a soft prompt, of its vectors too, unless it is empty.
        soft_prompt: vectors before the prompt.
        memory: what stands for a text before the prompt; not with a cache or a soft prompt.
    """
    decoding = Decoding(model, decode)
    ((row,),) = decoding.add(
        [(prompt, _for_decoding(config.model_copy(update={"num_samples": 1})))], cache, soft_prompt, memory
    )
    text = GrowingText(row, decode)
    while True:
        if piece := text.grow():
            yield piece
        if row.done:
            return
        decoding.step()


class GrowingText:
    """The text of a continuation as far as it is certain: half a character or what may begin a stop string is held back
    until it is done.

    Attributes:
        given: number of characters given so far.
    """

    def __init__(self, row: Continuation, decode: Decode) -> None:
        self._row, self._decode = row, decode
        self.given = 0

    def grow(self) -> str:
        """What has been added since the last call."""
        stops = self._row.config.stop
        text = _cut(self._decode(self._row.ids), stops)
        if not self._row.done:
            text = text.rstrip(_UNFINISHED)
            held = max((size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)
            text = text[: len(text) - held]
        piece = text[self.given :]
        self.given = max(self.given, len(text))
        return piece


def _for_decoding(config: GenerationConfig) -> DecodingConfig:
    return (
        config
        if isinstance(config, DecodingConfig)
        else DecodingConfig.model_construct(**config.model_dump(include=set(GenerationConfig.model_fields)))
    )


def _cut(text: str, stop: Sequence[str]) -> str:
    found = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(found)] if found else text
