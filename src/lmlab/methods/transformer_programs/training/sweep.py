"""Many shapes by successive halving (Jamieson and Talwalkar 2016): all for a short time, the better part of them for
longer, each as a run of its own over processes or Ray. A run trains all its seeds as one computation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab.distributed import Backend
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.methods.transformer_programs.config import HalvingConfig, TrainSettings
from lmlab.runs import PlannedRun, RunOutcome, run_many, vary

_KIND = "train_program"


@dataclass(frozen=True)
class SweepRow:
    """A run of one rung: its settings and the accuracy of its best seed's program."""

    rung: int
    name: str
    settings: Mapping[str, Any]
    epochs: float
    valid_accuracy: float
    test_accuracy: float | None
    best_seed: int


def sweep(
    recipe: str | Path | Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    out: str | Path,
    halving: HalvingConfig | None = None,
    workers: int | None = None,
    backend: Backend = "processes",
) -> list[SweepRow]:
    """Train every combination of settings; after each rung one of `factor` goes on, with `factor` times the epochs, up
    to those of the recipe. Finished runs are kept: the same call goes on where it was stopped.

    Arguments:
        recipe: with one stage `train_program`.
        axes: values of each key, as in `lmlab.runs.vary`.
        halving: rungs and factor.

    Returns:
        the rows of all rungs, the best of the last rung first; also written to `sweep.json` in each rung's directory
        and to `halving.json`.

    Raises:
        UserError: the recipe has no such stage, or several.
    """
    out, alive, rows = Path(out), vary(recipe, axes), list[SweepRow]()
    halving = halving or HalvingConfig()
    rungs, factor = halving.rungs, halving.factor
    for rung in range(rungs):
        planned = [_for_rung(each, factor ** (rungs - 1 - rung)) for each in alive]
        outcomes = run_many(planned, out / f"rung-{rung}", workers, backend)
        found = [_row(rung, run, outcome) for run, outcome in zip(planned, outcomes, strict=True)]
        order = sorted(range(len(found)), key=lambda place: -found[place].valid_accuracy)
        rows = [*(found[place] for place in order), *rows]
        alive = [alive[place] for place in order[: math.ceil(len(alive) / factor)]]
    write_json(out / "halving.json", [each.__dict__ for each in rows])
    return rows


def _stage_of(recipe: Mapping[str, Any]) -> str:
    names = [name for name, stage in recipe["stages"].items() if stage.get("kind") == _KIND]
    if len(names) != 1:
        raise UserError(f"The recipe has {len(names)} stages of the kind {_KIND}; a sweep needs one.")
    return str(names[0])


def _for_rung(run: PlannedRun, divisor: int) -> PlannedRun:
    """The run with fewer epochs; only the last rung's programs are made short."""
    name = _stage_of(run.recipe)
    stage = dict(run.recipe["stages"][name])
    epochs = float(stage.get("epochs", TrainSettings.model_fields["epochs"].default))
    stage["epochs"] = max(1.0, epochs / divisor)
    if divisor > 1:
        stage |= {"export": False, "minimize": False}
    return replace(run, recipe={**run.recipe, "stages": {**run.recipe["stages"], name: stage}})


def _row(rung: int, run: PlannedRun, outcome: RunOutcome) -> SweepRow:
    assert outcome.results is not None
    name = _stage_of(run.recipe)
    results = outcome.results[name]
    return SweepRow(
        rung, run.name, dict(run.settings), run.recipe["stages"][name]["epochs"], results["valid_accuracy"],
        results["test_accuracy"], results["best_seed"],
    )  # fmt: skip
