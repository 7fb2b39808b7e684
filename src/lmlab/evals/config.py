"""How models are measured: the settings that the stage and the command share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, Precision
from lmlab.distributed import Backend
from lmlab.runs import DocumentsInput, QuestionsInput

TooLong = Literal["error", "truncate", "skip"]


class MeasuredOn(Config):
    """What a model is measured on, beside tasks by name.

    Attributes:
        documents: documents to measure bits per byte on.
        task: a file of questions, JSON lines.
    """

    documents: DocumentsInput | None = None
    task: QuestionsInput | None = None


class MeasuringOptions(Config):
    """How tasks and documents are measured.

    Attributes:
        limit: the most questions of each task, spread evenly over all.
        too_long: what is done with what is longer than the model's window: an `error`, `truncate` its beginning, or
            `skip` it.
        unconditional: also score the options of tasks without their question.
        window: the most tokens the model sees at once in scoring documents.
        stride: how far that window slides, by default half of it.
        begin: whether the begin mark stands before the `first` window of a document or before `every` one; `auto` is
            what the model needs: Gemma every one, others the first.
        precision: of the model: fp32, bf16, auto (the faster one here), or int8 or int4 on a CPU, which change figures
            a little.
        workers: processes over which the tasks are spread, each with its own copy of the model.
        backend: where they run: processes of this machine, or ray: of the cluster of RAY_ADDRESS.
    """

    limit: PositiveInt | None = None
    too_long: TooLong = "error"
    unconditional: Annotated[bool, Flag(("--unconditional",))] = False
    window: int = Field(default=256, ge=2)
    stride: PositiveInt | None = None
    begin: Literal["auto", "first", "every"] = "auto"
    precision: Precision = "auto"
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"

    @model_validator(mode="after")
    def _slides(self) -> MeasuringOptions:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is longer than window {self.window}: tokens between two windows would not be"
                " scored."
            )
        return self
