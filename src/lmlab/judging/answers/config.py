"""Who grades answers, and how: the settings of a recipe's section or of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lmlab.config import Flag
from lmlab.endpoints.settings import EndpointSettings
from lmlab.judging.rubrics.forms import Reading


class AnswerJudgeConfig(EndpointSettings):
    """Who grades answers, and how.

    Attributes:
        judge: entry points of the group `lmlab.graders`, each with what it needs: `coverage` (or `coverage:ENCODER`),
            `contrast:MODEL`, `likelihood:MODEL`, `onnx-nli:FILE`, several of these joined by +, `offline:MODEL`
            (coverage and contrast), or a model that is asked: `openai:NAME`, `local:DIRECTORY`. Several make a panel.
        rubric: name of a rubric that comes with lmlab, or a YAML file; for judges that are asked.
        reading: `text` (an explanation, then a grade), `json` (by a schema) or `labels` (the expected grade under the
            probabilities of labels).
        samples: replies to each question, whose grades are averaged.
        temperature: of the replies; by default 0, and 0.7 for several samples.
        max_tokens: of a reply.
        reasks: how often an unreadable reply is asked for again, at most.
        redact: regular expressions; what they find in an item is not shown to a judge that is asked.
        disagreement: of a panel, in grade points, from which an answer is flagged for people.
        calibration: file of a calibration (`lmlab judge calibrate`) for the judges by key points.
    """

    judge: Annotated[tuple[str, ...], Flag(("--judge", "-j"))] = ("coverage",)
    rubric: str = "tutoreval-v1"
    reading: Reading = "text"
    samples: PositiveInt = 1
    temperature: NonNegativeFloat | None = None
    max_tokens: PositiveInt = 800
    reasks: NonNegativeInt = 2
    redact: tuple[str, ...] = ()
    disagreement: PositiveFloat = 1.0
    calibration: Path | None = None
