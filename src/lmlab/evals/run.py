"""Measure a model on tasks and documents: rows on the disk as they are found, figures from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmlab.data import Document
from lmlab.distributed import from_all, wait_for_all, world
from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.measurement import Measurement
from lmlab.evals.perplexity import measure_documents
from lmlab.evals.rows import Row, RowFile
from lmlab.evals.scoring import ModelScorer
from lmlab.evals.tasks.task import Item, Settings, Task, spread
from lmlab.progress import progress
from lmlab.train import Evaluation

_IN_TRAINING = ("bits_per_byte", "soft", "log_soft")


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
    return collect_rows(items, lambda waiting: task.rows(evaluator, waiting, settings), path, task.name, share)


def run_documents(
    evaluator: Evaluator,
    documents: Sequence[Document],
    window: int,
    stride: int | None,
    path: str | Path,
    label: str,
    begin_every: bool | None = None,
) -> list[Row]:
    """The rows of documents, written to a file; those that an earlier attempt wrote are kept.

    Arguments:
        begin_every: as in `measure_documents`; None for what the model needs.
    """
    every = evaluator.begins_windows if begin_every is None else begin_every
    path = Path(path)
    numbered = _unique(documents)
    rows = collect_rows(
        numbered,
        lambda waiting: measure_documents(evaluator.scorer, evaluator.tokenizer, waiting, window, stride, every),
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


def _items(task: Task, settings: Settings) -> Sequence[Item]:
    return spread(task.items(), settings.limit)


def task_figures(task: Task, rows: Sequence[Row]) -> dict[str, Measurement]:
    """The figures of a task, that by which it is known first; none where all items were skipped.

    Raises:
        UserError: its rows do not give the figure by which it is known.
    """
    kept = [row for row in rows if not row.get("skipped")]
    figures = task.figures(kept) if kept else {}
    main = task.main_metric(rows)
    if figures and main not in figures:
        raise UserError(f"Task '{task.name}': its rows give no {main}.", f"They give {', '.join(figures)}.")
    return {main: figures[main], **figures} if figures else {}


def task_summary(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """What is reported of a task, for JSON: figures with standard errors, chance, and what was cut or left out."""
    further = task.further([row for row in rows if not row.get("skipped")])
    return {
        "kind": task.kind,
        "metric": task.main_metric(rows),
        "normalization": None,
        **{name: getattr(task, name) for name in task.figure_fields},
        "figures": {name: vars(value) for name, value in task_figures(task, rows).items()},
        "chance": task.chance_level(rows),
        "questions": len(rows),
        "skipped": sum(bool(row.get("skipped")) for row in rows),
        "truncated": sum("tokens_cut" in row for row in rows),
        **({"further": further} if further else {}),
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
            found = task_figures(task, list(task.rows(evaluator, items[task.name], settings)))
            figures |= {
                f"{task.name}/{name}": found[name].value
                for name in dict.fromkeys([task.main_metric(), *_IN_TRAINING])
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
