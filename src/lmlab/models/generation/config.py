"""How to continue prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lmlab.config import Config


class GenerationConfig(Config):
    """How to continue prompts.

    Attributes:
        max_new_tokens: most tokens to add.
        temperature: 0 is greedy.
        top_k: draw among so many likeliest tokens (`keep_likely`).
        top_p: draw among the likeliest tokens that hold this probability together.
        min_p: draw among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: logits of tokens that the prompt or the continuation holds are divided by it where they are
            positive, and multiplied where they are negative, before anything else (Keskar et al. 2019, section 4.1).
        num_samples: continuations of each prompt.
        seed: of the draws. A draw depends on the seed, the prompt and the number of the sample, and not on the rest of
            the batch.
        eos_ids: tokens that end a continuation, of which they are not a part.
        stop: strings that end it; they are not part of its text.
        max_repetitions: end it when its tail is one block of up to 64 tokens so many times in a row.
        draft_tokens: look up so many tokens at a time that may come next, where the text repeats itself, and check them
            in one pass (prompt lookup decoding); faster for edits, extracts and summaries. For one text at a time; what
            is drawn is the same up to rounding.
    """

    max_new_tokens: NonNegativeInt = 100
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: PositiveFloat = 1.0
    num_samples: PositiveInt = 1
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    max_repetitions: int | None = Field(default=None, ge=2)
    draft_tokens: NonNegativeInt = 0


class Guide(Protocol):
    """What a continuation may be: asked before every token, and told of it.

    Attributes:
        done: nothing more may come.
        failed: it could not be followed to its end; the continuation is cut off there.
    """

    done: bool
    failed: bool

    def allowed(self) -> Any:
        """Which tokens may come next, a boolean tensor [V] on the CPU."""

    def take(self, token: int) -> None:
        """Go on with a token that was chosen."""


class DecodingConfig(GenerationConfig):
    """What may be asked of one prompt beyond that.

    Attributes:
        top_log_probs: report so many of the likeliest tokens at each place.
        score_prompt: report the log-probability of each token of the prompt too.
        logit_bias: tokens and what is added to their logits before one is chosen; reported log-probabilities do not
            have it.
        guide: makes what says which tokens may come, one for each continuation; log-probabilities do not have it.
    """

    top_log_probs: NonNegativeInt = 0
    score_prompt: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    guide: Callable[[], Any] | None = Field(default=None, exclude=True, repr=False)
