"""Figures of a suite from its rows: means with intervals, categories, averages, depth by length, effective length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lmlab import stats
from lmlab.evals.long.config import IN_AVERAGES, category_of
from lmlab.evals.rows import Row

_EFFECTIVE_SHARE = 0.85  # the threshold of NoLiMa
_LEAST_BASE = 0.5  # a task that a model hardly does at its shortest length says nothing of longer ones
_DEPTH_BINS = 5  # more would have too few questions each


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """All figures of a suite, for JSON.

    `tasks` has for each task and length the mean score with the 95 % bootstrap interval over contexts, the chance
    level, shares of answers that could not be parsed, that declined and that were cut off, and controls. `categories`
    averages their tasks, and `average` the categories, at each length and over all.
    """
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["name"], row["length"]].append(row)
    tasks: dict[str, dict[str, Any]] = {}
    for (name, length), found in cells.items():
        tasks.setdefault(name, {})[str(length)] = _cell(name, found)
    categories = _categories(tasks)
    lengths = sorted({length for _, length in cells})
    average = {
        str(length): _mean(scores[str(length)] for scores in categories.values() if str(length) in scores)
        for length in lengths
    }
    return {
        "tasks": tasks,
        "categories": categories,
        "average": average | {"all": _mean(_mean(scores.values()) for scores in categories.values())},
        "depths": {name: depths(name, rows) for name in tasks},
        "effective_length": {name: effective_length(each) for name, each in tasks.items()},
    }


def score_over_contexts(value: Callable[[Any], float], contexts: Sequence[str]) -> dict[str, float | None]:
    """A score with its 95 % bootstrap interval over contexts; the bounds are None where there is one context
    alone, which tells nothing of the spread between contexts.

    Arguments:
        value: the score of some answers, by their numbers.
        contexts: of each answer.
    """
    found = stats.bootstrap(value, len(contexts), clusters=contexts, seed=len(contexts))
    low, high = (bound if np.isfinite(bound) else None for bound in found.bounds)
    return {"score": found.value, "low": low, "high": high}


def _cell(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    scores = [row["score"] for row in rows if row["score"] is not None]
    contexts = [row["context"] for row in rows if row["score"] is not None]
    cell: dict[str, Any] = {
        "n": len(rows),
        "contexts": len({row["context"] for row in rows}),
        "metric": rows[0]["metric"],
        "items": _mean(row["n_items"] for row in rows),
        "chance": _mean(row["chance"] for row in rows),
        "short": sum(bool(row["short"]) for row in rows),
    }
    if scores:
        statistic = _balanced(rows) if name == "longqa" else np.asarray(scores, float)
        cell |= score_over_contexts(lambda units: _value(statistic, units), contexts)
    cell["figures"] = {
        figure: _mean(row["figures"].get(figure) for row in rows) for figure in dict.fromkeys(_figures(rows))
    }
    for key in ("nll", "token_accuracy", "parsed", "refused", "cut"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            share = _mean(map(float, values))
            cell["unparsed" if key == "parsed" else key] = 1 - share if key == "parsed" and share is not None else share
    for control in ("closed", "gold_only"):
        found_rows = [row[control] for row in rows if control in row]
        if found_rows:
            cell[control] = {
                key: _mean(row[key] for row in found_rows) for key in ("score", "nll") if key in found_rows[0]
            }
    if any("evidence_in_context" in row for row in rows):
        cell["evidence_in_context"] = _mean(float(row["evidence_in_context"]) for row in rows)
    return cell


def _figures(rows: Sequence[Row]) -> Iterable[str]:
    return (name for row in rows for name in row["figures"])


def _balanced(rows: Sequence[Row]) -> Any:
    """Scores with their classes, for the mean of the classes' accuracies."""
    return np.array([[row["score"], row["answer"] == "yes"] for row in rows if row["score"] is not None], float)


def _value(statistic: Any, units: Any) -> float:
    drawn = statistic[units]
    if drawn.ndim == 1:
        return float(drawn.mean())
    classes = [drawn[drawn[:, 1] == label, 0] for label in (0, 1)]
    return float(np.mean([each.mean() for each in classes if len(each)]))


def _categories(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for name, lengths in tasks.items():
        category = category_of(name.partition(".")[0])
        if category is None or name not in IN_AVERAGES:
            continue
        for length, cell in lengths.items():
            if "score" in cell:
                found.setdefault(category, {}).setdefault(length, []).append(cell["score"])
    return {name: {length: float(np.mean(each)) for length, each in scores.items()} for name, scores in found.items()}


def depths(name: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean scores of a task by length and depth, in five parts of the context."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["name"] == name and row["depth"] is not None and row["score"] is not None:
            cells[row["length"], min(_DEPTH_BINS - 1, int(row["depth"] * _DEPTH_BINS))].append(row["score"])
    return [
        {"length": length, "depth": part / _DEPTH_BINS, "score": float(np.mean(found)), "n": len(found)}
        for (length, part), found in sorted(cells.items())
    ]


def effective_length(lengths: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The longest length up to which a task's score stays at 0.85 of that at its shortest length (NoLiMa, Modarressi et
    al. 2025); `None` with a reason where the base is below one half, or there is one length alone.
    """
    known = {int(length): cell["score"] for length, cell in lengths.items() if "score" in cell}
    if len(known) < 2:
        return {"length": None, "why": "one length alone"}
    base = known[min(known)]
    if base < _LEAST_BASE:
        return {"length": None, "base": base, "why": f"the score at {min(known)} tokens is below {_LEAST_BASE:g}"}
    reached = min(known)
    for length in sorted(known):
        if known[length] < _EFFECTIVE_SHARE * base:
            break
        reached = length
    return {"length": reached, "base": base}


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values if value is not None]
    return float(np.mean(found)) if found else None
