"""Laws of the questions of one benchmark: groups of like difficulty are forecast each by its own law, and added up.

A benchmark's accuracy is a sum over questions that are learned at different scales, so that one law of all bends where
those of its parts do not (Xu et al. 2025, arXiv 2502.17262, who cluster questions by the accuracies of small models).
Here difficulty is the mean over the runs of the logarithm of the right answer's probability: it is known far better
than a few right or wrong answers, and does not favor the luck of any run. Groups are as large as each other.

Legend: R runs, Q questions, G groups, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.evals import Row, option_scores, read_rows
from lmlab.methods.ladder.analysis.decide import draws
from lmlab.methods.ladder.analysis.diagnose import distance
from lmlab.methods.ladder.fitting.forecast import TwoStep
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.stats import percentiles

_SAME = ("the options to choose from", "the right answers", "whether options have their bytes")
_FEWEST = 40  # questions of a group: below that its accuracies are mostly noise


@dataclass(frozen=True)
class GroupForecast:
    """A group of questions, or all of them.

    Attributes:
        name: the group by its difficulty, `all, by groups` for their sum, `all, one law` for a law of their mean.
        questions: how many.
        smallest, largest: accuracy of the runs with the least and the most compute, 0 to 1.
        accuracy, lo, hi: the forecast, with an interval; None where nothing tells an accuracy, as all runs are at
            chance there, or in a group that is summed.
        measured: of the target, where its answers are known.
        where: whether the target lies beyond the runs, and how far in compute.
    """

    name: str
    questions: int
    smallest: float
    largest: float
    accuracy: float | None
    lo: float
    hi: float
    measured: float | None
    where: str


def read_answers(folder: str | Path, names: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each run: `RUN.jsonl` in the folder, or the one file of rows below its folder `RUN`.

    Raises:
        UserError: a run has no rows, or several files of them.
    """
    folder, found = Path(folder), {}
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"The run '{name}' leads out of '{folder}'.", "Give it another name in the table.")
        files = [folder / f"{name}.jsonl"] if (folder / f"{name}.jsonl").is_file() else []
        files = files or sorted((folder / name).rglob("tasks/*.jsonl")) or sorted((folder / name).glob("*.jsonl"))
        if len(files) != 1:
            what = "no file" if not files else f"{len(files)} files"
            raise UserError(
                f"'{folder}' has {what} with the answers of the run '{name}'.",
                f"Measure its model with lmlab eval, and name the rows {name}.jsonl.",
            )
        answered = [row for row in read_rows(files) if not row.get("skipped")]
        rows = {str(row["id"]): row for row in answered}
        if len(rows) < len(answered):
            raise UserError(f"'{files[0]}' has several rows of one question.", "Name the file of one task.")
        bad = [key for key, row in rows.items() if not _is_ranked(row)]
        if bad or not rows:
            raise UserError(
                f"'{files[0]}': " + (f"'{bad[0]}' is no question with options." if bad else "there is no question."),
                "Rows of ranked tasks have log_probs and gold.",
            )
        found[name] = list(rows.values())
    return found


def _is_ranked(row: Row) -> bool:
    """Whether a row tells the logarithm of each option's probability, and which option is right."""
    log_probs, gold, sizes = row.get("log_probs"), row.get("gold"), row.get("bytes")
    if not isinstance(log_probs, list) or len(log_probs) < 2 or not isinstance(gold, int) or isinstance(gold, bool):
        return False
    sized = sizes is None or (
        isinstance(sizes, list)
        and len(sizes) == len(log_probs)
        and all(isinstance(each, int | float) and 0 < each < math.inf for each in sizes)
    )
    known = all(isinstance(each, int | float) and -math.inf < each <= 0 for each in log_probs)
    return sized and known and 0 <= gold < len(log_probs)


def by_difficulty(
    table: RunTable, answers: Mapping[str, Sequence[Row]], groups: int = 4
) -> tuple[RunTable, list[Task], Task]:
    """The runs with the figures of each group of questions, at their ends; the groups as tasks, the easiest first, and
    all questions as one.

    Arguments:
        answers: rows of the runs that are fitted, and of targets where they are known.

    Raises:
        UserError: there is no run to fit, runs answered different questions, or a group would have fewer than 40.
    """
    fitted = [run.name for run in table.ladder]
    if not fitted:
        raise UserError("There is no run to fit.", "A table needs runs of the mode 'train'.")
    ids = sorted({str(row["id"]) for row in answers[fitted[0]]})
    figures: dict[str, Floats] = {}
    asked_first: list[tuple[int, int, bool]] = []
    for name, rows in answers.items():
        known = {str(row["id"]): row for row in rows}
        if set(known) != set(ids):
            raise UserError(f"The runs '{fitted[0]}' and '{name}' answered different questions.", "Ask both the same.")
        figures[name] = np.array([_figures(known[key]) for key in ids])
        asked = [(len(known[key]["log_probs"]), int(known[key]["gold"]), "bytes" in known[key]) for key in ids]
        for place, what in enumerate(_SAME):
            if asked_first and [each[place] for each in asked] != [each[place] for each in asked_first]:
                raise UserError(
                    f"The runs '{fitted[0]}' and '{name}' differ in {what}.", "Measure both in the same way."
                )
        asked_first = asked
    if groups < 1 or len(ids) // groups < _FEWEST:
        raise UserError(
            f"{len(ids)} questions are too few for {groups} groups of {_FEWEST}.", "Take fewer groups: --groups."
        )
    difficulty = -np.mean([figures[name][:, 1] for name in fitted], axis=0)
    parts = np.array_split(np.argsort(difficulty, kind="stable"), groups)
    chance = 1 / np.array([options for options, _, _ in asked_first])
    tasks = [_task(f"group {number + 1}", chance[part]) for number, part in enumerate(parts)]
    whole = _task("all", chance)
    runs = [
        _with_groups(run, figures[run.name], list(zip(tasks, parts, strict=True)), whole)
        for run in table
        if run.name in figures
    ]
    return RunTable(tuple(runs)), tasks, whole


def forecast_by_difficulty(
    table: RunTable,
    answers: Mapping[str, Sequence[Row]],
    n: float,
    d: float,
    groups: int = 4,
    level: float = 0.9,
    estimator: str = "recommended",
    flops_per_token: float | None = None,
    target: str | None = None,
    seed: int = 0,
) -> list[GroupForecast]:
    """Forecast each group of questions, their sum, and for comparison the mean of all by one law.

    Arguments:
        target: the run of the table whose answers are the outcome.
    """
    grouped, tasks, whole = by_difficulty(table, answers, groups)
    forecaster = TwoStep(estimator, seed=seed).fit(grouped, tasks, calibrated=False)
    parts = forecaster.predict_all(n, d, level, flops_per_token)
    shares = np.array([task.n_instances or 0 for task in tasks], dtype=float)
    shares /= shares.sum()
    away = distance(forecaster.ensemble.chains[0].points, forecaster.target(n, d, level, flops_per_token))
    where = f"{away['kind']}, {away['times_compute']:.3g} x the compute"
    drawn_SG = draws(forecaster, forecaster.target(n, d, level, flops_per_token)[:, None], level, seed)[:, :, 0]
    low, high = (float(each) for each in percentiles(drawn_SG @ shares, level))
    single = TwoStep(estimator, seed=seed).fit(grouped, whole, calibrated=False)
    one = single.predict(n, d, level, flops_per_token=flops_per_token)
    told = [None if each.diagnostics["untold"] else each.accuracy for each in [*parts, one]]
    known = [each for each in told[:-1] if each is not None]
    total = float(shares @ known) if len(known) == len(parts) else None

    def row(name: str, task: Task, accuracy: float | None, lo: float, hi: float) -> GroupForecast:
        ends = [_accuracy(run, task) for run in sorted(grouped.ladder, key=lambda run: run.flops)]
        measured = _accuracy(grouped[target], task) if target is not None else None
        return GroupForecast(name, task.n_instances or 0, ends[0], ends[-1], accuracy, lo, hi, measured, where)

    rows = [
        row(task.name, task, accuracy, each.lo, each.hi)
        for task, accuracy, each in zip(tasks, told[:-1], parts, strict=True)
    ]
    rows.append(row("all, by groups", whole, total, low, high))
    rows.append(row("all, one law", whole, told[-1], one.lo, one.hi))
    return rows


def untold_sentence(rows: Sequence[GroupForecast]) -> list[str]:
    """Which rows tell no accuracy, and what to do; nothing where all do."""
    names = [each.name for each in rows if each.accuracy is None]
    if not names:
        return []
    return [
        f"No accuracy can be forecast for {', '.join(names)}: all runs are at chance on these questions, or on some"
        " that are summed. Take fewer groups (--groups), add larger runs, or ask easier questions."
    ]


def _figures(row: Row) -> tuple[float, float, float]:
    """Right or wrong, the logarithm of the right answer's probability, and its bits per byte."""
    scores, gold = option_scores(row, "bytes" if "bytes" in row else "none"), int(row["gold"])
    log_soft = float(scores[gold] - np.logaddexp.reduce(scores))
    size = row["bytes"][gold] if "bytes" in row else 1
    return float(scores.argmax() == gold), log_soft, float(-row["log_probs"][gold] / np.log(2) / size)


def _task(name: str, chance: Floats) -> Task:
    return Task(
        name=name,
        loss_keys=(f"{name}/bits_per_byte",),
        accuracy_keys=(f"{name}/accuracy",),
        soft_keys=(f"{name}/soft",),
        soft_log_keys=(f"{name}/log_soft",),
        chance=float(chance.mean()),
        n_instances=len(chance),
    )


def _with_groups(
    run: Run,
    figures: Floats,
    groups: Sequence[tuple[Task, NDArray[np.int64]]],
    whole: Task,
) -> Run:
    """The end of a run, with the means of each group in place of what was measured of the benchmark."""
    end = run.keep(slice(len(run) - 1, None))
    metrics = {key: values for key, values in end.metrics.items() if key.endswith("/CrossEntropyLoss")}
    for task, part in [*groups, (whole, np.arange(len(figures)))]:
        right, log_soft, bits = figures[part].mean(0)
        values = {"accuracy": right, "log_soft": log_soft, "bits_per_byte": bits}
        values["soft"] = np.exp(figures[part][:, 1]).mean()
        metrics |= {f"{task.name}/{key}": np.array([value]) for key, value in values.items()}
    return replace(end, metrics=metrics)


def _accuracy(run: Run, task: Task) -> float:
    return float(run.accuracy(task)[-1])
