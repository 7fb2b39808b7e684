"""Results in HELMET's layout, read: those that HELMET itself has written, and ours; and what a judge says, written as
HELMET's judges do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.evals.long.helmet.families import FAMILIES, family_of
from lmlab.evals.long.helmet.names import Reached, scores, suites, task_name
from lmlab.files import read_json, read_mapping, write_json

SUMMARY = "helmet.json"
"""What `lmlab long helmet` writes beside HELMET's own files."""
_JUDGED = "-gpt4eval_o.json"  # what HELMET's judge makes of NAME.json
_SCORE = ".score"  # and NAME.json before it: the figures alone, of ALCE those of its own evaluation too
_JUDGES = {"gpt-4-score": 100 / 3, "gpt-4-f1": 100.0}
"""Figures of HELMET's judges, and what brings them to 0 to 100."""
_CORRECT = 3  # the most that HELMET's judge gives for correctness


@dataclass(frozen=True)
class HelmetResults:
    """A folder of results.

    Attributes:
        model: as its files name it.
        tasks: figures from 0 to 100 by their names in olmo-eval; None where a judge has not spoken.
        suites: means of them.
    """

    model: str
    tasks: Mapping[str, float | None]
    suites: Mapping[str, float]


def judged_path(path: Path) -> Path:
    """Where HELMET's judge of `NAME.json` writes."""
    return path.with_name(f"{path.stem}{_JUDGED}")


def judged_by_helmet(path: Path) -> float | None:
    """The figure, 0 to 100, that HELMET's own judge has given `NAME.json`; None where it has not.

    Raises:
        UserError: its file is none of HELMET's.
    """
    place = judged_path(path)
    data = read_mapping(place) if place.exists() else {}
    if not data or _is_ours(data):
        return None
    (name, size), _, figures = _read(place, data)
    return _reached(name, size, figures).value


def write_judged(path: Path, judge: str, grades: Mapping[str, Mapping[str, float | None]], score: float) -> Path | None:
    """Write what a judge made of the answers in `NAME.json` as HELMET's own judge does, so that its collector and other
    readers find it; returns None, and writes nothing, where HELMET's judge has written there.

    Arguments:
        judge: who graded; HELMET's file does not say it, as there is one judge alone.
        grades: of each answer by its id: `fluency` with `correctness`, or with `recall` and `precision`, 0 to 1.
        score: of the whole set, 0 to 1.
    """
    place = judged_path(path)
    if place.exists() and not _is_ours(read_mapping(place)):
        return None
    found = read_mapping(path)
    found["args"] = {**found["args"], "judge": judge}
    summaries = any("recall" in grade for grade in grades.values())
    for row in found["data"]:
        row["gpt-4-scores"] = _grades_of_helmet(grades[row["id"]], summaries)
    if summaries:
        rows = [row["gpt-4-scores"] for row in found["data"]]
        parts = {name: sum(row[name] for row in rows) / len(rows) for name in ("recall", "precision", "fluency")}
        figures = {f"gpt-4-{name}": value for name, value in parts.items()} | {"gpt-4-f1": score}
    else:
        figures = {"gpt-4-score": _CORRECT * score}
    found["averaged_metrics"] = {**found["averaged_metrics"], **figures}
    write_json(place, found)
    return place


def withdraw_judged(path: Path) -> None:
    """Remove what `write_judged` wrote of `NAME.json` before, as it holds no longer; HELMET's own stays."""
    place = judged_path(path)
    if place.exists() and _is_ours(read_mapping(place)):
        place.unlink()


def _grades_of_helmet(grade: Mapping[str, float | None], summary: bool) -> dict[str, float]:
    fluency = grade["fluency"] or 0.0
    if not summary:  # an answer that is not fluent is worth 0, however right
        return {"fluency": fluency, "correctness": _CORRECT * (grade["correctness"] or 0.0)}
    recall, precision = grade["recall"] or 0.0, grade["precision"] or 0.0
    f1 = fluency * 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return {"fluency": fluency, "recall": recall, "precision": precision, "f1": f1}


def _is_ours(data: Mapping[str, Any]) -> bool:
    args = data.get("args")
    return isinstance(args, dict) and "judge" in args


def holds_helmet_results(place: str | Path) -> bool:
    """Whether a place is a folder with files of HELMET's names."""
    return any(Path(place).glob("*_in*_size*_shots*.json"))


def read_helmet_results(folder: str | Path) -> HelmetResults:
    """Read the results of one model: `NAME.json`, `NAME.json.score`, which alone has what ALCE's evaluation has found
    out, and `NAME-gpt4eval_o.json` where HELMET's judge has spoken.

    Raises:
        UserError: the folder holds no results, or several of one data set or model; or a file is none of HELMET's.
    """
    folder = Path(folder)
    found: dict[tuple[str, int], dict[str, float]] = {}
    origin: dict[tuple[str, int], str] = {}
    models: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        data = read_json(path)
        if not isinstance(data, dict) or not {"args", "averaged_metrics"} <= set(data):
            continue  # such as helmet.json
        key, model, figures = _read(path, data)
        models.add(model)
        stem = path.name.removesuffix(_JUDGED).removesuffix(".json")
        if origin.setdefault(key, stem) != stem:
            raise UserError(
                f"'{folder}' holds {key[0]} at {key[1]:,} tokens twice: {origin[key]} and {stem}.", "Part them."
            )
        found.setdefault(key, {}).update(figures)
        score = path.with_name(f"{path.name}{_SCORE}")
        if score.exists():
            found[key].update(_figures(score, read_mapping(score)))
    if not found:
        raise UserError(f"'{folder}' holds no results of HELMET.", "Name the folder with its NAME.json files.")
    if len(models) > 1:
        raise UserError(f"'{folder}' holds results of several models: {', '.join(sorted(models))}.", "Part them.")
    ours = folder / SUMMARY  # which has the figures of our judges
    judged = read_mapping(ours).get("tasks", {}) if ours.exists() else {}
    reached = [
        each if each.value is not None else replace(each, value=judged.get(task_name(each.name, each.size)))
        for each in (_reached(name, size, figures) for (name, size), figures in found.items())
    ]
    return HelmetResults(models.pop(), scores(reached), suites(reached))


def _read(path: Path, data: Mapping[str, Any]) -> tuple[tuple[str, int], str, dict[str, float]]:
    try:
        args = data["args"]
        name, size, model = str(args["datasets"]), int(args["input_max_length"]), str(args["model_name_or_path"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_result(path, error) from None
    family_of(name)
    return (name, size), model, _figures(path, data.get("averaged_metrics"))


def _figures(path: Path, data: Any) -> dict[str, float]:
    try:
        figures = {key: float(value) for key, value in data.items()}
        if not all(map(math.isfinite, figures.values())):
            raise ValueError("a figure is no number")
    except (TypeError, ValueError, AttributeError) as error:
        raise _no_result(path, error) from None
    return figures


def _no_result(path: Path, error: Exception) -> UserError:
    return UserError(f"'{path}' is no result of HELMET ({type(error).__name__}: {error}).", "Move it away.")


def _reached(name: str, size: int, figures: Mapping[str, float]) -> Reached:
    family = FAMILIES[family_of(name)]
    if family.judge is None:
        return Reached(name, size, figures.get(family.metric), False)
    value = next((figures[key] * times for key, times in _JUDGES.items() if key in figures), None)
    return Reached(name, size, value, True)
