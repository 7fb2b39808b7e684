"""Results in HELMET's layout, read: those that HELMET itself has written, and ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.evals.long.helmet.families import FAMILIES, family_of
from lmlab.evals.long.helmet.names import Reached, scores, suites, task_name
from lmlab.files import read_json, read_mapping

SUMMARY = "helmet.json"
"""What `lmlab long helmet` writes beside HELMET's own files."""
_JUDGED = "-gpt4eval_o.json"  # what HELMET's judge makes of NAME.json
_SCORE = ".score"  # and NAME.json before it: the figures alone, of ALCE those of its own evaluation too
_JUDGES = {"gpt-4-score": 100 / 3, "gpt-4-f1": 100.0}
"""Figures of HELMET's judges, and what brings them to 0 to 100."""


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
    return (name, size), model, _figures(path, data["averaged_metrics"])


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
