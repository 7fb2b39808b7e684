"""What a task is: items, a way to measure a model on them, and figures from the rows that this leaves.

A kind of tasks is a class derived from `Task`, found by an entry point, so that a method or another package adds one:

    [project.entry-points."lmlab.tasks"]
    mine = "mypackage.task:MyTask"

or, in a method's manifest, `tasks={"mine": "lmlab.methods.NAME.task:MyTask"}`. The evaluator knows no kind: rows,
resuming, workers, reports, comparisons of two runs, decontamination and measurement during training work for all.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from pydantic import Field, field_validator

from lmlab.config import Config, influences
from lmlab.errors import UserError
from lmlab.evals.config import TooLong
from lmlab.evals.measurement import Measurement
from lmlab.evals.rows import Row
from lmlab.files import sha256_file, sha256_json

if TYPE_CHECKING:
    from lmlab.evals.evaluator import Evaluator
    from lmlab.reports import Block

T = TypeVar("T")
_LABEL = re.compile(r"^\s*[\w ]{1,20}:\s*")


class Item(Protocol):
    """One question, prompt, ... of a task."""

    @property
    def id(self) -> str:
        """Unique in its task."""


@dataclass(frozen=True)
class Metric:
    """A figure by which a task can be known.

    Attributes:
        title: for readers.
        is_share: a part of 1, shown in percent.
        lower_is_better: such as bits per byte.
    """

    title: str
    is_share: bool = True
    lower_is_better: bool = False


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        limit: the most items of a task, spread evenly over all.
        too_long: what is done with what does not fit the model's window.
        unconditional: score options without their question too; done in any case where a task is normalized so.
    """

    limit: int | None = None
    too_long: TooLong = "error"
    unconditional: bool = False


@dataclass(frozen=True)
class Asked:
    """The text of an item, for finding it in training text.

    Attributes:
        lines: of the question, as the model is shown them; what all items of a domain begin with is left out.
        answers: right ones.
    """

    id: str
    domain: str
    lines: Sequence[str]
    answers: Sequence[str]


class Task(Config):
    """A task, whose kind is the class that derives from this one and declares `kind: Literal["NAME"] = "NAME"`.

    A row is JSON with `id` and `domain`; one that was left out has `skipped: true`, one that was cut `tokens_cut`.

    Attributes:
        name: unique; file names are made of it.
        requests: a file or folder, relative to the task's own file.
        metric: the figure by which the task is known; by default the kind says.
        split, shots, chance, license: for the reader.

    Class attributes:
        metrics: all figures by which tasks of the kind can be known, by name; the first is the default.
        figure_fields: fields on which figures depend besides the rows; they are recorded with the results, so that two
            runs can be compared whatever the task's file says now.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    requests: str
    kind: str
    metric: str | None = None
    split: str | None = None
    shots: int | None = None
    chance: float | None = None
    license: str = "unknown"

    metrics: ClassVar[Mapping[str, Metric]]
    figure_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items.

        Raises:
            UserError: a request is not one, with its line.
        """

    @abstractmethod
    def rows(self, evaluator: Evaluator, items: Sequence[Any], settings: Settings) -> Iterator[Row]:
        """The row of each item, in any order, as they come: it is on the disk before the next one is asked for.

        Raises:
            UserError: the model cannot do it, or an item is too long and `settings.too_long` is `error`.
        """

    @abstractmethod
    def figures(self, rows: Sequence[Row]) -> dict[str, Measurement]:
        """All figures by name, of rows of which none was skipped; there is one at least."""

    @abstractmethod
    def values(self, rows: Sequence[Row], metric: str) -> list[float]:
        """A figure of each row, for comparing two models item by item."""

    @abstractmethod
    def asked(self) -> Iterable[Asked]:
        """The text of each item, for finding it in training text; nothing where there is none to find."""

    def main_metric(self, rows: Sequence[Row] = ()) -> str:
        """The figure by which the task is known."""
        return self.metric or next(iter(self.metrics))

    def compared_metrics(self, rows: Sequence[Row]) -> list[str]:
        """The figures by which two models are compared."""
        return [self.main_metric(rows)]

    def metric_text(self) -> str:
        """The metric for a list of tasks, with what else tells how it is computed."""
        return self.main_metric()

    def chance_level(self, rows: Sequence[Row]) -> float | None:
        """The main figure of guessing; None where that is not known."""
        return self.chance

    def further(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What else is kept of the rows with the results, as JSON, for `blocks`."""
        return {}

    @classmethod
    def blocks(cls, found: Mapping[str, Any]) -> list[Block]:
        """What a report shows of a task's results (`task_summary`) below the table of all tasks."""
        return []

    @classmethod
    def catalog(cls) -> Iterable[Mapping[str, Any]]:
        """Tasks of the kind that can be named without a file, each as its fields."""
        return ()

    @classmethod
    def groups(cls) -> Mapping[str, Sequence[str]]:
        """Short names of several tasks of `catalog`."""
        return {}

    def located(self, folder: str | Path) -> Self:
        """The task with its requests found from the folder of its file.

        Raises:
            UserError: they are not there.
        """
        folder = Path(folder)
        path = folder / self.requests
        if not path.exists():
            raise UserError(f"Task '{self.name}': the requests '{path}' do not exist.")
        return self.model_copy(update={"requests": str(path)})

    def source(self) -> Any:
        """What identifies the content of the requests, for the fingerprint."""
        path = Path(self.requests)
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        digests = [sha256_file(each) for each in files]
        return digests[0] if path.is_file() else [[str(each.relative_to(path)) for each in files], digests]

    def fingerprint(self) -> str:
        """Changes when the requests do, or what is done with them."""
        told = {"requests", "title", "split", "shots", "chance", "license"}
        fields = {name: value for name, value in influences(self).items() if name not in told}
        return sha256_json([self.source(), fields])

    @field_validator("metric")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in cls.metrics:
            kind = cls.model_fields["kind"].default
            raise ValueError(f"'{value}' does not go with kind '{kind}', which has {', '.join(cls.metrics)}.")
        return value


def spread(found: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of them, evenly spread: files are often sorted by subject."""
    if limit is None or limit >= len(found):
        return found
    return [found[number * len(found) // limit] for number in range(limit)]


def own_texts(task: Task) -> Iterator[tuple[str, str]]:
    """What is each item's own, as pairs of `TASK/ID` and a text: its lines without instruction, examples and labels,
    and the right answers.
    """
    asked = list(task.asked())
    by_domain = defaultdict(list)
    for each in asked:
        by_domain[each.domain].append(each.lines)
    shared = {domain: _shared_lines(found) for domain, found in by_domain.items()}
    for each in asked:
        *own, last = each.lines[shared[each.domain] :]
        for line in [*own, *each.answers, last]:
            if text := _LABEL.sub("", line).strip():
                yield f"{task.name}/{each.id}", text


def _shared_lines(texts: Sequence[Sequence[str]]) -> int:
    """How many lines all texts begin with, less the last line of any; 0 for a text alone."""
    if len(texts) < 2:
        return 0
    return sum(
        1 for _ in takewhile(lambda lines: len(set(lines)) == 1, zip(*(lines[:-1] for lines in texts), strict=False))
    )
