"""Learning-rate schedules as pure functions of progress."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lmlab.config import Config


class ScheduleConfig(Config):
    """The course of the learning rate.

    Attributes:
        kind: after the warm-up, `cosine` or `linear` decay to the end, `wsd` (constant, then linear decay over the last part), or `constant`.
        warmup_fraction: share of the steps over which the rate rises linearly from zero.
        decay_fraction: share of the steps over which `wsd` decays.
        final_fraction: last learning rate as a share of the highest.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    final_fraction: float = Field(default=0.1, ge=0, le=1)


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor on the highest learning rate at `step`, counted from 0; the last step of a decay is just above `final_fraction`."""
    warmup = config.warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    match config.kind:
        case "constant":
            return 1.0
        case "wsd":
            begin = max(warmup, (1 - config.decay_fraction) * total_steps)
        case _:
            begin = warmup
    progress = min(1.0, max(0.0, (step - begin) / max(1.0, total_steps - begin)))
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * shape
