"""Judges of answers by name. Any installed package adds one, by an entry point in the group `lmlab.graders`:

    [project.entry-points."lmlab.graders"]
    mine = "mypackage.judge:make"

`make(text, config, cache)` gets the whole text that names the judge, such as `mine:ARGUMENT`, the `AnswerJudgeConfig`
and the file of replies, and returns an `AnswerJudge`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from lmlab import plugins
from lmlab.errors import UserError
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.judging.answers.grades import AnswerJudge
from lmlab.judging.answers.panel import PanelJudge

_JOINED = re.compile(r"\+(?=(?:coverage|contrast|likelihood|onnx-nli)(?:[:+]|$))")


class AnswerJudgeMaker(Protocol):
    """What an entry point names."""

    def __call__(self, text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> AnswerJudge:
        """The judge of this name.

        Raises:
            UserError: the text lacks something, or a setting is wrong.
        """


def make_answer_judge(config: AnswerJudgeConfig, cache: str | Path | None = None) -> AnswerJudge:
    """The judge that a configuration names; of several the panel.

    Arguments:
        cache: file of the replies of an endpoint: nothing is paid for twice.

    Raises:
        UserError: no such judge, or a wrong setting.
    """
    if not config.judge:
        raise UserError("No judge is named.", "Name one, such as coverage or openai:MODEL.")
    place = None if cache is None else Path(cache)
    judges = [_one(text, config, place) for text in config.judge]
    return judges[0] if len(judges) == 1 else PanelJudge(judges, config.disagreement)


def _one(text: str, config: AnswerJudgeConfig, cache: Path | None) -> AnswerJudge:
    parts = _JOINED.split(text)
    if len(parts) > 1:
        from lmlab.judging.offline.make import joined

        return joined(parts, config)
    kind, has = text.partition(":")[0], ("name", "criteria", "judge")
    made: AnswerJudge = plugins.make(
        "graders", kind, "judge of answers", f"'{text}'", "lmlab.judging.AnswerJudge", has, text, config, cache
    )
    return made
