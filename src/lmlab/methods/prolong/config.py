"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Annotated

from lmlab.config import NO_INFLUENCE
from lmlab.evals.long.config import LongSettings, Mode
from lmlab.runs import ModelInput


class LongEvaluateConfig(LongSettings):
    """A stage that builds instances for a model and measures it on them.

    Attributes:
        model: what is measured.
        mode: generate lets the model write; forced reads off how probable the right answer is, in one pass.
        chat: ask by the model's chat template.
        controls: also ask without the context, and with the one passage that answers alone.
        short_tasks: tasks of `lmlab eval` with short prompts, measured beside, to see what a longer window costs.
        short_limit: most questions of each of them.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16, or auto, the faster one here.
    """

    model: ModelInput
    mode: Mode = "generate"
    chat: bool = False
    controls: bool = True
    short_tasks: list[str] = []
    short_limit: int | None = 200
    device: Annotated[str, NO_INFLUENCE] = "auto"
    precision: str = "fp32"
