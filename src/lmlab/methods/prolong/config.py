"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from lmlab.config import NO_INFLUENCE, Flag
from lmlab.evals.long.config import LongPPLConfig, LongSettings, Mode
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
    """

    mode: Mode = "generate"
    chat: bool = False
    share: Annotated[bool, NO_INFLUENCE] = True
    controls: bool = True
    short_tasks: Annotated[list[str], Flag(("--short-task",))] = []
    short_limit: PositiveInt | None = 200


class LongEvaluateConfig(LongSettings, MeasuringSettings):
    """A stage that builds instances for a model and measures it on them.

    Attributes:
        model: what is measured.
    """

    model: ModelInput


class PerplexitySettings(LongPPLConfig):
    """On which texts LongPPL is measured, where no file says which of their tokens count.

    Attributes:
        length: tokens of each text.
        texts: how many: research papers, the longest first.
    """

    length: int = Field(default=8192, ge=16)
    texts: PositiveInt = 8
