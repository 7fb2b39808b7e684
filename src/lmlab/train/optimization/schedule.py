"""Learning-rate schedules as pure functions of progress."""

from __future__ import annotations

import itertools
import math
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config


class ScheduleConfig(Config):
    """The course of the learning rate."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine",
        description="after the warm-up, cosine or linear decay to the end, wsd (constant, then linear decay over the"
        " last part), or constant",
    )
    warmup_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="share of the training over which the rate rises linearly from zero"
    )
    warmup_tokens: PositiveInt | None = Field(default=None, description="the same in tokens, in place of the fraction")
    decay_fraction: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of what has been trained by the end of a decay over which wsd decays",
    )
    decay_tokens: PositiveInt | None = Field(default=None, description="the same in tokens, in place of the fraction")
    decay_ends: tuple[float, ...] = Field(
        default=(1.0,),
        description="where wsd ends its decays, as shares of the training; after all but the last the rate is the"
        " highest again at once (WSD-S, Wen et al. 2024), and the checkpoint at each end is kept",
    )
    final_fraction: float = Field(default=0.1, ge=0, le=1, description="last learning rate as a share of the highest")
    replan: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="for a training that goes on though its rates would have been others under the new plan: from its"
        " checkpoint the rate goes, over a new warm-up, to this share of the highest, and then on as kind says over the"
        " steps that are left",
    )

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        ends = self.decay_ends
        if not ends or ends[-1] != 1.0 or ends[0] <= 0 or any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError("decay_ends must rise from above 0 to 1, such as [0.5, 1.0].")
        if len(ends) > 1 and self.kind != "wsd":
            raise ValueError(f"decay_ends belongs to the kind wsd, not to {self.kind}.")
        return self


def learning_rate_factor(
    config: ScheduleConfig,
    step: int,
    total_steps: int,
    tokens_per_step: int | None = None,
    warmup: float | None = None,
) -> float:
    """The factor on the highest learning rate at `step`, counted from 0; the last step of a decay is just above
    `final_fraction`.

    Arguments:
        tokens_per_step: needed where the schedule is given in tokens.
        warmup: steps of the warm-up, in place of what the schedule says.
    """
    if warmup is None:
        warmup = warmup_steps(config, total_steps, tokens_per_step)
    if step < warmup:  # never 0, so that the first step teaches something too
        return (step + 1) / (math.floor(warmup) + 1)
    end = float(total_steps)
    match config.kind:
        case "constant":
            return 1.0
        case "wsd":
            end = next(each for each in decay_ends(config, total_steps) if step < each or each == total_steps)
            begin = max(warmup, end - _span(config.decay_tokens, config.decay_fraction, end, tokens_per_step))
        case _:
            begin = warmup
    # of at least one step, where the warm-up leaves none
    progress = min(1.0, max(0.0, (step - begin) / max(1.0, end - begin)))
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * shape


def decay_ends(config: ScheduleConfig, total_steps: int) -> list[int]:
    """The numbers of steps after which a decay of `wsd` is complete."""
    return [max(1, round(end * total_steps)) for end in config.decay_ends]


def warmup_steps(config: ScheduleConfig, total_steps: int, tokens_per_step: int | None = None) -> float:
    """How many steps the warm-up takes."""
    return _span(config.warmup_tokens, config.warmup_fraction, total_steps, tokens_per_step)


def _span(tokens: int | None, fraction: float, steps: float, tokens_per_step: int | None) -> float:
    if tokens is None:
        return fraction * steps
    if tokens_per_step is None:
        raise ValueError("a schedule in tokens needs the number of tokens of a step")
    return min(steps, tokens / tokens_per_step)
