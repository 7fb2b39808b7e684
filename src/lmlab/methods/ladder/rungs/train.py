"""Training the runs of a plan through the core's recipes, and collecting what they measured."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.distributed import Backend
from lmlab.errors import UserError, did_you_mean
from lmlab.files import read_mapping, write_json
from lmlab.methods.ladder.config import LadderPlan
from lmlab.methods.ladder.rungs.plan import Rung, flops_per_token, size_of
from lmlab.methods.ladder.tables.exports import Exports, is_export, names_of
from lmlab.methods.ladder.tables.table import Run, RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.models import ModelConfig
from lmlab.runs import PlannedRun, StageRecord, run_many
from lmlab.train import learning_rate_factor, read_metrics
from lmlab.train.optimization.schedule import ScheduleConfig

VALIDATION = "eval/heldout-validation/CrossEntropyLoss"
_FACTS = "rung.json"


def question_task(name: str = "questions", title: str = "", chance: float = 0.25, questions: int | None = None) -> Task:
    """A benchmark that the trainer measures under the name `name`."""
    return Task(
        name=name,
        display_name=title or name,
        loss_keys=(f"{name}/bits_per_byte",),
        accuracy_keys=(f"{name}/accuracy",),
        soft_keys=(f"{name}/soft",),
        soft_log_keys=(f"{name}/log_soft",),
        chance=chance,
        n_instances=questions,
    )


def chosen_rungs(plan: LadderPlan, names: Sequence[str] = ()) -> list[Rung]:
    """The runs of these names, or all.

    Raises:
        UserError: a name that the plan does not have.
    """
    rungs = plan.rungs()
    unknown = [name for name in names if name not in {rung.name for rung in rungs}]
    if unknown:
        raise UserError(f"The plan has no run '{unknown[0]}'.", f"It has: {', '.join(rung.name for rung in rungs)}.")
    return [rung for rung in rungs if not names or rung.name in names]


def rung_runs(plan: LadderPlan, names: Sequence[str] = ()) -> list[PlannedRun]:
    """The runs of these names, or all, as recipes; the longest first, so that none is left alone at the end."""
    return [
        PlannedRun(
            rung.name,
            {"name": rung.name, "seed": rung.seed, "stages": {"model": plan.stage(rung)}},
            {"size": rung.size, "tokens": rung.tokens, "seed": rung.seed},
        )
        for rung in sorted(chosen_rungs(plan, names), key=lambda rung: -rung.flops)
    ]


def write_facts(plan: LadderPlan, directory: str | Path, names: Sequence[str] = ()) -> None:
    """Write what the plan says of each run into its directory, where `collect` reads it."""
    for rung in chosen_rungs(plan, names):
        write_json(Path(directory) / rung.name / _FACTS, _facts(plan, rung))


def train_rungs(
    plan: LadderPlan,
    directory: str | Path,
    names: Sequence[str] = (),
    workers: int | None = None,
    backend: Backend = "processes",
    gpus: float = 0,
) -> None:
    """Train the runs of a plan that are not finished, several at once, by `run_many`."""
    runs = rung_runs(plan, names)
    write_facts(plan, directory, names)
    run_many(runs, directory, workers, backend, gpus)


def _facts(plan: LadderPlan, rung: Rung) -> dict[str, Any]:
    return {
        "name": rung.name,
        "size": rung.size,
        "n": rung.n,
        "flops_per_token": flops_per_token(rung.model, plan.seq_len),
        "planned_tokens": rung.tokens,
        "seed": rung.seed,
        "context": plan.seq_len,
    }


def collect(
    paths: Sequence[str | Path],
    target: Sequence[str] = (),
    sizes: Mapping[str, float] | None = None,
    batches: Mapping[str, float] | None = None,
) -> RunTable:
    """The run table of folders: runs that `train_rungs` made, run directories with a stage `train`, run tables, and CSV
    files of one run.

    Arguments:
        target: names of runs that are targets.
        sizes: N of exported runs, by their name or its part before a hyphen: an export does not tell it.
        batches: tokens of a step, in the same way, for exports that tell steps only.

    Raises:
        UserError: nothing was found, two runs have one name, or the N of an exported run is not known.
    """
    exports = Exports(sizes or {}, batches or {}, target)
    runs: list[Run] = []
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"No such file or directory: '{path}'.")
        if path.is_dir():
            found = [
                collect_run(each.parent)
                for each in sorted(path.rglob("stage.json"))
                if (each.parent / "metrics.jsonl").exists()
            ]
            runs += [run for run in found if run is not None]
        elif path.suffix == ".csv" and is_export(path):
            runs += exports.read(path)
        else:
            table = RunTable.read(path)
            runs += table.runs
            files += table.files
    runs += exports.assembled()
    if not runs:
        tables = next((Path(each) for each in paths if any(Path(each).glob("*.csv"))), None)
        raise UserError(
            f"No run was found in {', '.join(map(str, paths))}.",
            "Runs need a stage 'train' that was measured (evaluate_every, questions or tasks)."
            if tables is None
            else f"Exports and tables are named one by one: {tables / '*.csv'}.",
        )
    named = {run.name: run for run in runs}
    if len(named) < len(runs):
        twice = next(run.name for run in runs if named[run.name] is not run)
        raise UserError(f"Two runs are called '{twice}'.", "Rename one of their folders.")
    _all_used("--target", [[name] for name in named], target)
    for option, given in (("--size", sizes or {}), ("--batch", batches or {})):
        _all_used(option, [names_of(name) for name in named], list(given))
    wanted = tuple(replace(run, mode="eval") if run.name in target else run for run in runs)
    return RunTable(wanted, files=tuple(files))


def _all_used(option: str, names: Sequence[Sequence[str]], given: Sequence[str]) -> None:
    """Refuse what is given for a run that is not there: it would be silently left out."""
    known = [each[0] for each in names]
    for each in given:
        if not any(each in of_run for of_run in names):
            raise UserError(f"{option} {each}: there is no such run. {did_you_mean(each, known)}")


def _published_name(key: str) -> str:
    """The column name of the published runs, where the trainer measured the same thing."""
    if key == "heldout_loss":
        return VALIDATION
    task, _, figure = key.rpartition("/")
    if not task.endswith("_rc_5shot"):
        return key
    accuracy = f"eval/downstream/{task}_{'acc' if task.startswith('boolq') else 'len_norm'}"
    known = {"bits_per_byte": f"eval/downstream_bpb/{task}_bpb", "accuracy": accuracy}
    known |= {"soft": f"eval/downstream_soft/{task}_soft", "log_soft": f"eval/downstream_soft_log/{task}_soft_log"}
    return known.get(figure, key)


def collect_run(stage: Path) -> Run | None:
    """One run from the directory of its stage `train`; None where nothing was measured."""
    rows = [
        row
        for row in read_metrics(stage / "metrics.jsonl")
        if any(key.endswith("/bits_per_byte") or key == "heldout_loss" for key in row)
    ]
    if not rows:
        return None
    kept = StageRecord.read(stage)
    record = kept.content["config"]
    folder = stage.parent
    facts = read_mapping(folder / _FACTS) if (folder / _FACTS).exists() else {}
    model = ModelConfig.model_validate(record["model"]) if record.get("model") else None
    if model is None:
        raise UserError(f"'{stage}': the run started from another model, so that its size is not in its configuration.")
    seq_len, trainer = record["seq_len"], record["trainer"]
    schedule = ScheduleConfig.model_validate(trainer["schedule"])
    total = (
        trainer["steps"]
        or math.ceil((trainer["tokens"] or 0) / (trainer["batch_size"] * seq_len))
        or int(rows[-1]["step"])
    )
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if ("/" in key and not key.startswith(("loss/", "heldout_loss/"))) or key == "heldout_loss"
    ]
    metrics = {_published_name(key): np.array([row.get(key, math.nan) for row in rows], dtype=float) for key in keys}
    peak = trainer["optimizer"]["learning_rate"]
    last = learning_rate_factor(schedule, total - 1, total, trainer["batch_size"] * seq_len) * peak
    rates = np.array([row["learning_rate"] for row in rows], dtype=float)
    return Run(
        name=facts.get("name", folder.name),
        n=float(facts.get("n") or size_of(model)),
        flops_per_token=float(facts.get("flops_per_token") or flops_per_token(model, seq_len)),
        tokens=np.array([row["step"] * trainer["batch_size"] * seq_len for row in rows], dtype=float),
        metrics=metrics,
        size=facts.get("size", ""),
        step=np.array([row["step"] for row in rows], dtype=float),
        planned_tokens=float(total * trainer["batch_size"] * seq_len),
        # A schedule that ends above a share of the peak on purpose is finished all the same: rates are kept where they
        # tell something.
        lr=rates if last <= 0.15 * peak else None,
        lr_peak=peak,
        seed=facts.get("seed"),
        source=os.fspath(stage),
        rows=tuple(int(row["step"]) for row in rows),
        metadata={"context": seq_len, **_facts_of_data(kept)},
    )


def _facts_of_data(record: StageRecord) -> dict[str, Any]:
    """What tells whether runs belong together: corpus and tokenizer by their content, and how often the data are gone
    through.
    """
    inputs = record.content.get("inputs", {})
    found: dict[str, Any] = {
        fact: inputs[key][:12] for fact, key in (("corpus", "tokens"), ("tokenizer", "tokenizer")) if inputs.get(key)
    }
    if record.results.get("epochs") is not None:
        found["epochs"] = record.results["epochs"]
    return found
