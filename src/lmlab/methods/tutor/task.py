"""Kinds of tasks for the evaluator: a model is asked about chapters, and a judge grades what it writes.

```yaml
name: my-textbook
kind: tutoreval           # or tutoreval_closedbook: the questions that stand alone, without their chapters
requests: questions.jsonl # TutorEval, or questions of one's own in its columns
judge: [coverage]
```

`lmlab eval --tasks tutoreval:FILE` needs no such file.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.measurement import Measurement, mean
from lmlab.evals.rows import Row
from lmlab.evals.tasks.task import Asked, Metric, Settings, Task
from lmlab.judging import AnswerJudge, AnswerJudgeConfig, make_answer_judge
from lmlab.judging.rubrics.forms import Reading
from lmlab.methods.tutor.answering.local import LocalTutor
from lmlab.methods.tutor.answering.run import answer_row, told_of
from lmlab.methods.tutor.answering.window import prompts_for
from lmlab.methods.tutor.config import AnswerConfig, Book, Overflow
from lmlab.methods.tutor.endpoints import refuse_secrets
from lmlab.methods.tutor.items.item import TutorItem, load_items
from lmlab.methods.tutor.scoring.grade import judge_block
from lmlab.methods.tutor.scoring.score import GRADED, breakdowns
from lmlab.models import weights_fingerprint
from lmlab.stats import resampled_means

if TYPE_CHECKING:
    from lmlab.reports import Block

_AT_ONCE = 16  # answers that a judge sees together; a killed run loses no more than these
_OVERFLOW: Mapping[str, Overflow] = {"error": "error", "truncate": "truncate_middle", "skip": "skip"}


class TutorEval(Task):
    """A tutor with the chapter before it. A row is one of `lmlab tutor grade`; an answer without a grade is skipped,
    and never a bad one.

    Attributes:
        requests: a set of questions, relative to the task's own file.
        book: open shows the chapter; closed asks those alone that stand without it.
        format: of the prompts: the tokenizer's chat template, or plain.
        max_new_tokens: longest answer.
        judge, rubric, reading, samples, calibration: who grades, and how (`AnswerJudgeConfig`).
        endpoint: how a judge that is asked is reached.
    """

    kind: Literal["tutoreval"] = "tutoreval"
    book: Book = "open"
    format: Literal["template", "plain"] = "template"
    max_new_tokens: PositiveInt = 800
    judge: tuple[str, ...] = ("coverage",)
    rubric: str = "tutoreval-v1"
    reading: Reading = "text"
    samples: PositiveInt = 1
    calibration: Path | None = None
    endpoint: EndpointSettings = EndpointSettings()

    metrics: ClassVar[Mapping[str, Metric]] = {"score": Metric("score by a judge")}
    figure_fields: ClassVar[tuple[str, ...]] = ("book", "judge", "rubric", "reading", "samples")

    def items(self) -> list[TutorItem]:
        """The questions, equal ones once."""
        return list({item.id: item for item in load_items(self.requests, self.book)}.values())

    def rows(self, evaluator: Evaluator, items: Sequence[TutorItem], settings: Settings) -> Iterator[Row]:
        """Answers with their grades, chapter by chapter."""
        if evaluator.model is None:
            raise UserError(
                f"Task '{self.name}' needs a model that writes, and this one runs by {evaluator.scorer.description}.",
                "Leave the task out.",
            )
        judge = self._judge()
        config = AnswerConfig(
            book=self.book,
            format=self.format,
            max_new_tokens=self.max_new_tokens,
            overflow=_OVERFLOW[settings.too_long],
        )
        tutor = LocalTutor(evaluator, config, "the model")
        about = told_of(tutor, weights_fingerprint(tutor.model))
        chapters = {name: n for n, name in enumerate(dict.fromkeys(item.cluster for item in items))}
        ordered = sorted(items, key=lambda item: chapters[item.cluster])
        prompts = prompts_for(tutor.asking, ordered, self.book, tutor.limit, self.max_new_tokens, config.overflow)
        known, waiting, owed = {item.id: item for item in items}, list[Row](), 0
        for prompt in prompts:
            if not prompt.ids:
                yield answer_row(prompt.item, about, None, "skipped") | {"skipped": True, "status": "skipped"}
        for prompt, found in tutor.answer(prompts):
            cut = {"tokens_cut": prompt.cut} if prompt.cut else {}
            waiting.append(answer_row(prompt.item, about, found, "ok", prompt.cut) | cut)
            if len(waiting) == _AT_ONCE:
                owed += yield from self._graded(waiting, known, judge)
                waiting = []
        owed += yield from self._graded(waiting, known, judge)
        if owed:
            raise UserError(
                f"Task '{self.name}': {owed} {'answer has' if owed == 1 else 'answers have'} no grade, as the judge's"
                " endpoint failed.",
                "Run the same command again: what is graded is kept.",
            )

    def _judge(self) -> AnswerJudge:
        refuse_secrets(self.endpoint.base_url)
        fields = {name: getattr(self, name) for name in ("judge", "rubric", "reading", "samples", "calibration")}
        given = {name: getattr(self.endpoint, name) for name in EndpointSettings.model_fields}
        return make_answer_judge(AnswerJudgeConfig(**fields, **given))

    def _graded(
        self, rows: Sequence[Row], items: Mapping[str, TutorItem], judge: AnswerJudge
    ) -> Generator[Row, None, int]:
        """The graded rows; returns how many an endpoint still owes."""
        owed = 0
        for row in judge_block(rows, items, judge, self.book == "closed") if rows else ():
            if row["status"] == "endpoint_error":
                owed += 1
                continue
            graded = row["status"] in GRADED and row["grades"].get(judge.headline) is not None
            yield row if graded else row | {"skipped": True}
        return owed

    def figures(self, rows: Sequence[Row]) -> dict[str, Measurement]:
        """The mean grade as a share of the best one, and of each criterion; errors are over chapters."""
        found = {"score": _over_chapters(self.values(rows, "score"), rows)}
        for name in rows[0]["judge"]["criteria"]:
            chosen = [row for row in rows if row["grades"].get(name) is not None]
            if chosen:
                found[name] = _over_chapters([_share(row, name) for row in chosen], chosen)
        return found

    def values(self, rows: Sequence[Row], metric: str) -> list[float]:
        """The grade of each answer as a share of the best one."""
        return [_share(row, row["judge"]["headline"]) for row in rows]

    def chance_level(self, rows: Sequence[Row]) -> float | None:
        """There is none."""
        return None

    def further(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Who graded, and the score by kinds of questions, in percent with intervals over chapters."""
        if not rows:
            return {}
        return {
            "judge": rows[0]["judge"]["name"],
            "prompt_hash": rows[0]["judge"]["prompt_hash"],
            "breakdowns": breakdowns(rows),
        }

    @classmethod
    def blocks(cls, found: Mapping[str, Any]) -> list[Block]:
        """The score by kinds of questions."""
        from lmlab.methods.tutor.report import figure_text
        from lmlab.reports import Paragraph, Table

        told = found.get("further") or {}
        rows: list[list[Any]] = [
            [f"{column}: {value}", figure_text(figure), figure["n"]]
            for column, values in told.get("breakdowns", {}).items()
            for value, figure in values.items()
        ]
        graded = f"Graded by {told.get('judge')}; grades of other judges do not compare."
        return [Paragraph(graded), Table(["questions", "score", "graded"], rows)] if rows else []

    def asked(self) -> Iterator[Asked]:
        """The question, and what experts expect of its answer."""
        for each in self.items():
            yield Asked(each.id, each.domain, each.question.split("\n"), each.key_points)


class TutorEvalClosedBook(TutorEval):
    """Without the chapter: the questions that can be understood so."""

    kind: Literal["tutoreval_closedbook"] = "tutoreval_closedbook"  # type: ignore[assignment]
    book: Book = "closed"


def _share(row: Row, name: str) -> float:
    return float(row["grades"][name]) / float(row["judge"]["maximum"])


def _over_chapters(values: Sequence[float], rows: Sequence[Row]) -> Measurement:
    """A mean whose error is that of a bootstrap over chapters; none for a single chapter."""
    clusters = [row["cluster"] for row in rows]
    error = float(np.std(resampled_means(values, 2000, 0, clusters), ddof=1)) if len(set(clusters)) > 1 else None
    return Measurement(mean(values).value, error, len(values))
