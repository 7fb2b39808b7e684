"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, FloatPrecision
from lmlab.evals.long.config import LongPPLConfig, LongSettings, Mode, known_tasks
from lmlab.hardware.settings import OnDevice
from lmlab.runs import ModelInput
from lmlab.runs.loading import Loading


class MeasuringSettings(Loading):
    """How a model is measured on instances.

    Attributes:
        mode: generate lets the model write; forced reads off how probable the right answer is, in one pass.
        chat: ask by the model's chat template; its tokens count.
        share: read what questions have in common once.
        controls: also ask without the context, and with the one passage that answers alone.
        short_tasks: tasks of `lmlab eval` with short prompts, measured beside, to see what a longer window costs.
        short_limit: most questions of each of them.
        gate: end with an error where short tasks were lost against the model that was extended.
    """

    mode: Mode = "generate"
    chat: bool = False
    share: Annotated[bool, NO_INFLUENCE] = True
    controls: bool = True
    short_tasks: Annotated[list[str], Flag(("--short-task",))] = []
    short_limit: PositiveInt | None = 200
    gate: bool = False


class LongEvaluateConfig(LongSettings, MeasuringSettings):
    """A stage that builds instances for a model and measures it on them.

    Attributes:
        model: what is measured.
        base: the model that it was extended from, whose short tasks are measured too, and the difference told.
    """

    model: ModelInput
    base: ModelInput | None = None

    @model_validator(mode="after")
    def _compared(self) -> LongEvaluateConfig:
        if self.base is not None and not self.short_tasks:
            raise ValueError("base is compared in short_tasks; name some.")
        if self.gate and self.base is None:
            raise ValueError("gate needs base, the model that was extended.")
        return self


class PerplexitySettings(LongPPLConfig):
    """On which texts LongPPL is measured, where no file says which of their tokens count.

    Attributes:
        length: tokens of each text.
        texts: how many: research papers, the longest first.
    """

    length: int = Field(default=8192, ge=16)
    texts: PositiveInt = 8


class LongerWindow(Config):
    """Which window a model is to have.

    Attributes:
        to: the new window, in tokens.
    """

    to: PositiveInt


class RopeSettings(LongerWindow):
    """How a model is written with that window, untrained.

    Attributes:
        rope_theta: base of the rotary frequencies: auto, auto-ntk, keep, or a number; by default auto.
        yarn: scale the frequencies by YaRN in place of another base.
    """

    rope_theta: Literal["auto", "auto-ntk", "keep"] | PositiveFloat | None = None
    yarn: bool = False


class FactorSettings(LongerWindow):
    """A search for factors of rotary frequencies.

    Attributes:
        candidates: how many are tried; the first are what the rules give.
        tasks: of the suite, whose right answers must become probable.
        contexts: of each task, at the new length; as many others tell how well what was found does elsewhere.
        questions: about each context, where a task has as many.
        seed: of the search and of its contexts.
    """

    candidates: int = Field(default=64, ge=5)
    tasks: Annotated[list[str], Flag(("--task",))] = ["json_kv", "niah"]
    contexts: PositiveInt = 4
    questions: int = Field(default=8, ge=1, le=128)
    seed: NonNegativeInt = 0

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return known_tasks(value)


class ProbeSettings(OnDevice):
    """A short extension that is the same for every checkpoint, and what recall is measured on after it.

    Attributes:
        times: the new window, in old ones.
        tokens: that are learned from: the budget of each checkpoint.
        rope_theta: the rule for the base of the rotary frequencies, as in `window.rope_theta` of a stage train; `keep`
            leaves it.
        learning_rate: at its peak.
        long_share: of the rows, those of one context as long as the new window; the others hold contexts of the old
            one.
        batch_tokens: of a step, at least one row.
        tasks: of the suite: what is learned, and what is asked of other contexts.
        contexts: of each task and length.
        questions: about each context, where a task has as many.
        precision: of the arithmetic.
        seed: of contexts and their order.
    """

    times: int = Field(default=4, ge=2, le=64)
    tokens: PositiveInt = 262_144
    rope_theta: Literal["auto", "auto-ntk", "keep"] = "auto"
    learning_rate: PositiveFloat = 3e-4
    long_share: float = Field(default=0.6, gt=0, le=1)
    batch_tokens: PositiveInt = 16_384
    tasks: Annotated[list[str], Flag(("--task",))] = ["json_kv", "niah_multikey"]
    contexts: PositiveInt = 8
    questions: int = Field(default=8, ge=1, le=128)
    precision: FloatPrecision = "fp32"
    seed: NonNegativeInt = 0

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if "all" in value or "ppl_gain" in value:
            raise ValueError("name tasks with answers to recall, such as json_kv.")
        return list(dict.fromkeys(known_tasks(value)))


class ProbeConfig(ProbeSettings):
    """A stage that probes how well a checkpoint's window can be extended.

    Attributes:
        model: the checkpoint.
    """

    model: ModelInput


class FactorConfig(FactorSettings, Loading):
    """A stage that searches factors for a model.

    Attributes:
        model: whose window is to grow.
    """

    model: ModelInput
