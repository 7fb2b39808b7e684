"""What an extension of the window has cost: the same short tasks before and after it, question by question.

A model has kept its short tasks if their mean stays at 98.5 % of what it was, or within 0.8 points of it; it has lost
them if it has not, and the difference is more than chance would make (its 95 % interval lies below zero). Between them
the questions are too few to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmlab import stats
from lmlab.errors import LmlabError, UserError, reads
from lmlab.evals import Row, find_kind, make_task, metric_of, pair_rows, read_rows
from lmlab.files import read_mapping
from lmlab.words import counted

SHORT = "short.json"
_KEPT_SHARE, _KEPT_POINTS = 0.985, 0.008
_RESAMPLES = 10_000


class ShortTasksLostError(LmlabError):
    """An extended model does its short tasks worse than before."""


@dataclass(frozen=True)
class ShortCost:
    """The mean of short tasks before and after.

    Attributes:
        tasks, questions: that both were asked, and that the mean is of.
        before, after: means over tasks, 0 to 1.
        low, high: 95 % interval of `after - before`, over questions within each task.
        verdict: `kept`, `lost`, or `unclear` where the questions are too few.
    """

    tasks: tuple[str, ...]
    questions: int
    before: float
    after: float
    low: float
    high: float
    verdict: Literal["kept", "lost", "unclear"]

    def sentence(self, name: str, base: str) -> str:
        """What it means, for a page and the terminal."""
        said = {
            "kept": "kept its short tasks",
            "lost": "lost short tasks",
            "unclear": "may have lost short tasks",
        }[self.verdict]
        doubt = ", which the questions are too few to tell" if self.verdict == "unclear" else ""
        points = f"{100 * (self.after - self.before):+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        share = f", {self.after / self.before:.1%} of it" if self.before else ""
        return (
            f"{name} {said} against {base}{doubt}: {points} of {100 * self.before:.1f}{share}, the mean of"
            f" {counted(len(self.tasks), 'tasks')} with {counted(self.questions, 'questions')}."
        )

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def short_cost(before: Path, after: Path) -> ShortCost | None:
    """Compare the short tasks of two directories of `eval`; None where they have none in common.

    Tasks whose figures are better the lower they are, such as bits per byte, are in no mean.

    Raises:
        UserError: a task was asked in two ways.
    """
    said = [read_mapping(place / SHORT) if (place / SHORT).is_file() else {} for place in (before, after)]
    gaps: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    means: list[tuple[float, float]] = []
    for name in (each for each in said[0] if each in said[1]):
        values = _values(after, before, name, said[0][name], said[1][name])
        if values is not None:
            gaps[name] = values[1] - values[0]
            means.append((float(values[0].mean()), float(values[1].mean())))
    if not gaps:
        return None
    first, second = (float(np.mean(each)) for each in zip(*means, strict=True))
    draws = np.mean(
        [stats.resampled_means(gap, _RESAMPLES, number) for number, gap in enumerate(gaps.values())], axis=0
    )
    low, high = stats.percentiles(draws, 0.95)
    return ShortCost(
        tuple(gaps),
        sum(map(len, gaps.values())),
        first,
        second,
        float(low),
        float(high),
        verdict_of(first, second, float(high)),
    )


def verdict_of(before: float, after: float, high: float) -> Literal["kept", "lost", "unclear"]:
    """Whether a mean is kept.

    Arguments:
        high: the upper end of the interval of the difference.
    """
    if after >= _KEPT_SHARE * before or before - after <= _KEPT_POINTS:
        return "kept"
    return "lost" if high < 0 else "unclear"


def require_kept(cost: ShortCost | None, name: str, base: str) -> None:
    """The gate of a run.

    Raises:
        ShortTasksLostError: short tasks were lost.
        UserError: there is nothing to compare.
    """
    if cost is None:
        raise UserError(
            f"{name} and {base} have no short task in common that has a share of right answers.",
            "Measure both with the same short tasks, or leave the gate out.",
        )
    if cost.verdict == "lost":
        raise ShortTasksLostError(
            cost.sentence(name, base), "Raise the share of short data, lower the learning rate, or leave the gate out."
        )


@reads("short tasks that were measured")
def _values(after: Path, before: Path, name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Any:
    """The main figure of each question that both were asked, before and after; None where lower is better."""
    tasks = []
    for said, place in ((first, before), (second, after)):
        kind = find_kind(said["kind"], f"'{place}'")
        fields = {key: said[key] for key in ("kind", "metric", *kind.figure_fields)}
        tasks.append(make_task({"name": name, "requests": "", **fields}, f"'{place}'"))
    if tasks[0] != tasks[1]:
        raise UserError(f"Task '{name}' was measured in two ways.", "Measure both again.")
    if metric_of(tasks[0].kind, first["metric"]).lower_is_better:
        return None
    a, b = pair_rows(*(_rows(place, name) for place in (before, after)))
    return tuple(np.asarray(tasks[0].values(rows, first["metric"]), float) for rows in (a, b))


def _rows(place: Path, name: str) -> list[Row]:
    return list(read_rows([place / f"short-{name}.jsonl"]))
