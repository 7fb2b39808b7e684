"""Measure a model on tasks and documents: rows on the disk as they are found, figures from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lmlab.data import Document
from lmlab.distributed import from_all, wait_for_all, world
from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.generation import Prompt, TextMetric, Writing, answer_prompts, best_agreement, text_figures
from lmlab.evals.measurement import Measurement
from lmlab.evals.perplexity import measure_documents
from lmlab.evals.ranked import chance_level, rank_questions, ranked_figures, ranked_values
from lmlab.evals.rows import Row, RowFile
from lmlab.evals.scoring import ModelScorer
from lmlab.evals.tasks.questions import Question, TooLong
from lmlab.evals.tasks.task import Task
from lmlab.progress import progress
from lmlab.train import Evaluation

_IN_TRAINING = ("bits_per_byte", "soft", "log_soft")


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        limit: the most questions of a task, spread evenly over all.
        too_long: what is done with what does not fit the model's window.
        unconditional: score options without their question too; done in any case where a task is normalized so.
    """

    limit: int | None = None
    too_long: TooLong = "error"
    unconditional: bool = False


def run_task(
    evaluator: Evaluator, task: Task, settings: Settings, path: str | Path, share: tuple[int, int] | None = None
) -> list[Row] | None:
    """The rows of a task, written to a file; those that an earlier attempt wrote are kept.

    Arguments:
        path: the finished file of rows.
        share: number of this worker, and of all, where several share the task; each then writes its part, and nothing
            is returned. Under `torchrun` the processes of a job share it by themselves.

    Raises:
        UserError: an item does not fit the model's window and no policy was chosen; the model cannot write.
    """
    path = Path(path)
    items = _items(task, settings)
    if len({item.id for item in items}) < len(items):
        raise UserError(f"Task '{task.name}': two items have the same id.", "Give every item its own.")
    return collect_rows(items, lambda waiting: _rows(evaluator, task, settings, waiting), path, task.name, share)


def run_documents(
    evaluator: Evaluator, documents: Sequence[Document], window: int, stride: int | None, path: str | Path, label: str
) -> list[Row]:
    """The rows of documents, written to a file; those that an earlier attempt wrote are kept."""
    path = Path(path)
    numbered = _unique(documents)
    rows = collect_rows(
        numbered,
        lambda waiting: measure_documents(evaluator.scorer, evaluator.tokenizer, waiting, window, stride),
        path,
        label,
    )
    assert rows is not None
    return rows


def collect_rows(
    items: Sequence[Any],
    measure: Callable[[Sequence[Any]], Iterator[Row]],
    path: Path,
    label: str,
    share: tuple[int, int] | None = None,
) -> list[Row] | None:
    """Measure the items that have no row yet, this process its share of them, and write each row at once."""
    place = world()
    part, parts = share or (place.rank, place.size)
    file = RowFile(path, part)
    done = from_all(file.done())[0] if share is None else file.done()
    shared = (
        list(items) if share is not None else [item for item in items if item.id not in done]
    )  # workers begin at different times
    mine = [item for item in shared[part::parts] if item.id not in done]
    with progress(label, len(mine), "items") as advance, closing(file):
        for row in measure(mine):
            file.append(row)
            advance()
    if share is not None:
        return None
    wait_for_all()
    return from_all(file.finish(item.id for item in items) if place.is_main else None)[0]


def _items(task: Task, settings: Settings) -> Sequence[Question] | Sequence[Prompt]:
    return task.questions(settings.limit) if task.kind == "ranked" else task.prompts(settings.limit)


def _rows(evaluator: Evaluator, task: Task, settings: Settings, items: Sequence[Any]) -> Iterator[Row]:
    if task.kind == "ranked":
        unconditional = settings.unconditional or task.normalization == "unconditional"
        yield from rank_questions(evaluator.scorer, evaluator.tokenizer, items, unconditional, settings.too_long)
        return
    if evaluator.model is None:
        raise UserError(
            f"Task '{task.name}' needs a model that writes, and this one runs by {evaluator.scorer.description}.",
            "Leave the task out.",
        )
    how = Writing(max_new_tokens=task.max_new_tokens, stop=task.stop, extract=task.extract, take=task.take)
    yield from answer_prompts(evaluator.model, evaluator.tokenizer, items, how, settings.too_long)


def task_figures(task: Task, rows: Sequence[Row]) -> dict[str, Measurement]:
    """The figures of a task, that by which it is known first; none where all items were skipped.

    Raises:
        UserError: the task is known by its accuracy, and its questions have one option alone.
    """
    figures = (
        ranked_figures(rows, task.normalization)
        if task.kind == "ranked"
        else text_figures(rows, cast(TextMetric, main_metric(task)))
    )
    main = main_metric(task, rows)
    if figures and main not in figures:
        raise UserError(
            f"Task '{task.name}': its questions have one option alone, so there is no {main}.",
            "Set its metric to bits_per_byte.",
        )
    return {main: figures[main], **figures} if figures else {}


def main_metric(task: Task, rows: Sequence[Row] = ()) -> str:
    """The figure by which a task is known; of questions with one option alone, bits per byte."""
    if task.metric is not None:
        return task.metric
    if task.kind == "generation":
        return "exact_match"
    kept = [row for row in rows if not row.get("skipped")]
    return "bits_per_byte" if kept and all(len(row["log_probs"]) == 1 for row in kept) else "accuracy"


def question_values(task: Task, rows: Sequence[Row], metric: str) -> list[float]:
    """A figure of each question, for comparing models question by question; the rows hold no skipped one."""
    if task.kind == "ranked":
        return ranked_values(rows, metric, task.normalization)
    return [best_agreement(row["answer"], row["references"], cast(TextMetric, metric)) for row in rows]


def task_summary(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """What is reported of a task, for JSON: figures with standard errors, chance, and what was cut or left out."""
    return {
        "kind": task.kind,
        "metric": main_metric(task, rows),
        "normalization": task.normalization if task.kind == "ranked" else None,
        "figures": {name: vars(value) for name, value in task_figures(task, rows).items()},
        "chance": chance_level(rows) if task.kind == "ranked" else None,
        "questions": len(rows),
        "skipped": sum(bool(row.get("skipped")) for row in rows),
        "truncated": sum("tokens_cut" in row for row in rows),
    }


def evaluation_during_training(
    tasks: Sequence[Task], tokenizer: Any, settings: Settings, precision: str = "auto"
) -> Evaluation:
    """A callback for the trainer that measures the live model, without a copy: `TASK/FIGURE` for each task's main
    figure, bits per byte, and the probability of the right option and its logarithm (`soft`, `log_soft`).

    With several processes each measures everything, as the shares of one model are gathered by all of them together.
    """
    items = {task.name: _items(task, settings) for task in tasks}

    def evaluate(model: Any) -> dict[str, float]:
        figures: dict[str, float] = {}
        evaluator = Evaluator(ModelScorer(model, precision), tokenizer, model)
        for task in tasks:
            found = task_figures(task, list(_rows(evaluator, task, settings, items[task.name])))
            figures |= {
                f"{task.name}/{name}": found[name].value
                for name in dict.fromkeys([main_metric(task), *_IN_TRAINING])
                if name in found
            }
        return figures

    return evaluate


def _unique(documents: Sequence[Document]) -> list[Document]:
    """Documents of several sources may have the same id; later ones get a number behind it."""
    seen: dict[str, int] = {}
    unique = []
    for document in documents:
        count = seen.get(document.id, 0)
        seen[document.id] = count + 1
        unique.append(document if count == 0 else replace(document, id=f"{document.id}#{count + 1}"))
    return unique
