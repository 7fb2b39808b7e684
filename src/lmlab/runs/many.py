"""Many runs of recipes, of seeds and settings, each in a run directory of its own, whose page `lmlab report` writes.

OUT/NAME/            a run: recipe, manifest, stages, results
OUT/NAME/log.txt     what it printed, where it had a process of its own
OUT/sweep.json       a row for each run: its settings, its state, its error or results

They run on this machine's processes or a Ray cluster (`run_many`), or as jobs of Slurm (`lmlab.launch.slurm`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmlab.distributed import Backend, World, fan_out, imagine, num_cores, world
from lmlab.errors import Interrupted, LmlabError, UserError, from_unforeseen
from lmlab.files import parse_yaml, read_json, read_mapping, write_json, write_text, write_yaml
from lmlab.hardware import ways
from lmlab.progress import console, progress
from lmlab.redaction import redact_all
from lmlab.runs.recipe import Recipe, read_recipe
from lmlab.runs.runner import run_recipe

TABLE = "sweep.json"
LOG = "log.txt"


@dataclass(frozen=True)
class PlannedRun:
    """One of many runs.

    Attributes:
        name: unique among them, and its directory below theirs; it may hold slashes.
        recipe: what its recipe says.
        settings: what sets it apart from the others, for the table.
    """

    name: str
    recipe: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOutcome:
    """What came of a run: its results by stage, or an error in one sentence."""

    name: str
    settings: Mapping[str, Any]
    state: Literal["done", "failed"]
    error: str | None
    results: Mapping[str, Any] | None


def vary(
    recipe: str | Path | Mapping[str, Any], axes: Mapping[str, Sequence[Any]], overrides: Sequence[str] = ()
) -> list[PlannedRun]:
    """All combinations of settings, such as `{"seed": [0, 1, 2], "model.trainer.optimizer.learning_rate": [1e-3]}`.

    Arguments:
        axes: values of each key that `--set` knows; a text is read as it is there.
        overrides: `KEY=VALUE` of all runs.

    Raises:
        UserError: the recipe has no such key or is wrong, with any of the settings, or two runs would have the same
            name.
    """
    runs, where = [], f"'{recipe}'" if isinstance(recipe, str | Path) else "the recipe"
    spelled = [
        [(key, value if isinstance(value, str) else json.dumps(value)) for value in values]
        for key, values in axes.items()
    ]
    for chosen in itertools.product(*spelled):
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)
        changed = read_recipe(recipe, [*overrides, *(f"{key}={value}" for key, value in chosen)])
        Recipe.parse(changed, f"{where}{f' with {name}' if name else ''}", find_inputs=False)
        runs.append(PlannedRun(re.sub(r"[^\w.,=+-]", "_", name), changed, dict(chosen)))
    _require_own_names(runs)
    return runs


def parse_axes(entries: Sequence[str]) -> dict[str, list[str]]:
    """The axes of `vary` from the command line's `KEY=VALUE,VALUE,...`.

    Raises:
        UserError: an entry is not of this form, or a key is named twice.
    """
    axes: dict[str, list[str]] = {}
    for entry in entries:
        key, equals, values = (part.strip() for part in entry.partition("="))
        if not equals or not key or not values:
            raise UserError(f"--vary {entry}: expected KEY=VALUE,VALUE,...", "For instance --vary seed=0,1,2.")
        if key in axes:
            raise UserError(f"--vary: '{key}' is named twice.", "Vary each key once, with different values.")
        parsed = parse_yaml(f"[{values}]", f"--vary {key}")
        # Where no value holds a comma of its own, each stays as it is spelled: 1e-3 names its run so.
        plain = len(parsed) == values.count(",") + 1
        axes[key] = [each.strip() for each in values.split(",")] if plain else [json.dumps(each) for each in parsed]
    return axes


def run_many(
    runs: Sequence[PlannedRun],
    out: str | Path,
    workers: int | None = None,
    backend: Backend = "processes",
    gpus: float = 0,
    fresh: bool = False,
    told: Callable[[RunOutcome], None] | None = None,
) -> list[RunOutcome]:
    """Run each that is not finished; those that were cut off go on. One that fails does not stop the others.

    Every recipe is checked before the first of them starts. Within a job of `torchrun` the main process calls this, and
    its runs get processes of their own.

    Arguments:
        out: the directory of the runs' directories.
        workers: runs at once, each with its share of the cores; by default one a core, or on Ray as many as the
            cluster has room for. With one they run here, unless they are `fresh`.
        backend, gpus, fresh: as in `fan_out`; a fresh run has a log, and may die without harm to the others.
        told: is given each outcome as it comes.

    Returns:
        the outcomes, in order.

    Raises:
        UserError: a recipe is wrong, or runs failed by what they were given.
        LmlabError: some of the runs failed otherwise. In both cases the others are kept.
    """
    out = Path(out)
    _require_own_names(runs)
    for each in runs:
        Recipe.parse(each.recipe, f"run '{each.name}'")
    workers = min(workers or (len(runs) if backend == "ray" else num_cores()), max(len(runs), 1))
    threads = max(1, num_cores() // workers) if backend == "processes" else 0
    fresh = fresh or world().size > 1  # this process belongs to the job's other processes
    jobs = [
        _Job(each.name, each.recipe, str((out / each.name).resolve()), os.getcwd(), threads, fresh) for each in runs
    ]
    outcomes: dict[int, RunOutcome] = {}
    failed: list[RunOutcome] = []
    mistakes = 0
    with progress("runs", len(runs), "runs") as advance:
        for number, failure in fan_out(_run, jobs, workers, backend, gpus, fresh, _died):
            error = None if failure is None else failure.told
            mistakes += failure is not None and failure.mistake
            outcome = _outcome(runs[number], out, error)
            outcomes[number] = outcome
            failed += [outcome] * (error is not None)
            advance(1, note=f"{len(failed)} failed" if failed else outcome.name)
            if error is not None:
                log = f" (see {out / outcome.name / LOG})" if fresh else ""
                console.print(f"{outcome.name} failed: {error}{log}", style="red")
            if told is not None:
                told(outcome)
    found = [outcomes[number] for number in range(len(runs))]
    write_table(found, out)
    if failed:
        kind = UserError if mistakes == len(failed) else LmlabError
        raise kind(
            f"{len(failed)} of {len(runs)} runs failed; the others are in '{out}'. {failed[0].name}: {failed[0].error}",
            "Run the same command again: finished runs are kept.",
        )
    return found


def write_recipes(runs: Sequence[PlannedRun], out: str | Path) -> list[list[str]]:
    """Write each recipe to OUT/recipes, for whoever starts them elsewhere; the arguments of `lmlab` that run each.

    The recipes are not checked: what they read need not be on this machine.

    Raises:
        UserError: a recipe holds a secret, which no file of a run may.
    """
    commands = []
    for each in runs:
        if redact_all(each.recipe) != each.recipe:
            raise UserError(f"The recipe of '{each.name}' holds a secret.", "Give credentials by the environment.")
        path = (Path(out) / "recipes" / f"{each.name}.yaml").resolve()
        write_text(path, write_yaml(each.recipe))
        commands.append(["run", str(path), "--out", str((Path(out) / each.name).resolve())])
    return commands


def write_table(outcomes: Sequence[RunOutcome], out: Path) -> None:
    """Write the rows of these runs to `sweep.json`; those of others that stand there stay."""
    path = out / TABLE
    known = {row["name"]: row for row in read_json(path)} if path.exists() else {}
    known |= {each.name: redact_all(asdict(each)) for each in outcomes}
    write_json(path, list(known.values()))


@dataclass(frozen=True)
class _Job:
    """What a run's process is told.

    Attributes:
        folder: the working directory, from which the recipe's paths start.
        threads: of the run; 0 leaves them as they are.
        alone: the process is its own.
    """

    name: str
    recipe: Mapping[str, Any]
    directory: str
    folder: str
    threads: int
    alone: bool


class _Failure(NamedTuple):
    """The sentence of an error, and whether it is the user's mistake."""

    told: str
    mistake: bool


def _run(job: _Job) -> _Failure | None:
    """Run one recipe; its failure, or None."""
    import torch

    quiet, before = console.quiet, torch.get_num_threads()
    with _into_log(Path(job.directory)) if job.alone else contextlib.nullcontext(), contextlib.chdir(job.folder):
        console.quiet = not job.alone
        if job.threads:
            torch.set_num_threads(min(before, job.threads))
        try:
            recipe = Recipe.parse(job.recipe, f"run '{job.name}'")
            # a run of its own, whatever job this process belongs to, and by the ways of its number of threads
            with imagine(World()), ways.using(ways.known()):
                run_recipe(recipe, job.directory)
        except Interrupted:
            raise
        except Exception as error:
            if job.alone and not isinstance(error, LmlabError):
                traceback.print_exc()
            told = from_unforeseen(error)
            console.print(f"error: {told}", style="red")
            return _Failure(f"{told.message} {told.remedy or ''}".strip(), isinstance(told, UserError))
        finally:
            console.quiet = quiet
            torch.set_num_threads(before)
    return None


def _died(job: _Job) -> _Failure:
    return _Failure("Its process died, perhaps for want of memory. Use fewer workers.", False)


@contextlib.contextmanager
def _into_log(directory: Path) -> Iterator[None]:
    """Let this process and the libraries in it print into the run's log."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOG, "ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        yield


def _outcome(run: PlannedRun, out: Path, error: str | None) -> RunOutcome:
    results = read_mapping(out / run.name / "results.json") if error is None else None
    return RunOutcome(run.name, run.settings, "failed" if error else "done", error, results)


def _require_own_names(runs: Sequence[PlannedRun]) -> None:
    if len({run.name for run in runs}) < len(runs):
        raise UserError("Two of the runs would have the same name.", "Vary each key once, with different values.")
