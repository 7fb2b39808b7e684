"""Settings of kinds that commands have options for; they load nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lmlab.config import Config


class KindConfig(Config):
    """How much is kept.

    Attributes:
        ratio: tokens of the text to each key-value position that is kept.
        sinks: first tokens that pruning always keeps: all later ones attend to them (Xiao et al. 2024).
        seed: of what is drawn.
    """

    ratio: float = Field(default=4.0, ge=1)
    sinks: NonNegativeInt = 4
    seed: int = 0


class CartridgeConfig(KindConfig):
    """How large a cartridge is, and how it learns.

    Attributes:
        rows: p, in place of what the ratio says.
        frozen: first rows that stay as they are; without such a sink training is unstable.
        steps: of the optimizer; 0 leaves the rows as they begin.
        learn_from: studies are texts that the model writes with the whole text before it; excerpts are cut from the
            text, which the rows then learn by heart.
        samples: studies that are written.
        excerpt: tokens of a study or an excerpt.
        batch_size: of them, in a step.
        learning_rate: of the rows.
        top: likeliest tokens of the teacher that are learned.
    """

    rows: PositiveInt | None = None
    frozen: NonNegativeInt = 1
    steps: NonNegativeInt = 200
    learn_from: Literal["studies", "excerpts"] = "studies"
    samples: PositiveInt = 128
    excerpt: PositiveInt = 64
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 5e-3
    top: PositiveInt = 20
