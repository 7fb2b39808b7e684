"""Settings of the comparison; they load nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from lmlab.config import Config, Flag

DEFAULT_KINDS = (
    "none",
    "full",
    "truncate",
    "prune:random",
    "prune:norm",
    "prune:recent",
    "prune:snap",
    "prune:expected",
    "prune:kvzip",
    "prune:snap+prune:norm",
    "prune:kvzip+prune:expected",
)


class CompareConfig(Config):
    """What is compared, and on what.

    Attributes:
        kinds: kinds of compression by name; with + between two, the second narrows what the first has kept. Kinds that
            learn need a trained compressor.
        ratios: tokens of a context to each key-value position that is kept.
        tasks: of the long-context suite, such as json_kv and niah; arithmetic is sums in words of the context.
        lengths: of contexts, in tokens.
        contexts: of each task and length.
        questions: about each context.
        aware: show each kind the question before it compresses, where it looks at one.
        share: who shares the budget of prune:kvzip: the heads of a layer, of the model, or nobody (head).
        sinks: first tokens that pruning always keeps.
        seed: other contexts of the same kind.
    """

    kinds: Annotated[list[str], Flag(("--kind",))] = list(DEFAULT_KINDS)
    ratios: Annotated[list[Annotated[float, Field(ge=1)]], Flag(("--ratio",))] = [2.0, 4.0, 8.0, 16.0]
    tasks: Annotated[list[str], Flag(("--task",))] = ["json_kv", "niah", "arithmetic"]
    lengths: Annotated[list[PositiveInt], Flag(("--length",))] = [512]
    contexts: PositiveInt = 8
    questions: int = Field(default=4, ge=1, le=128)
    aware: bool = False
    share: Literal["head", "layer", "model"] = "layer"
    sinks: NonNegativeInt = 4
    seed: int = 0

    @field_validator("kinds", "ratios", "tasks", "lengths")
    @classmethod
    def _some(cls, value: list[object]) -> list[object]:
        if not value:
            raise ValueError("give at least one")
        return value
