"""Many independent runs of one recipe, with different settings, on this machine's processes or a Ray cluster."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmlab.errors import LmlabError, UserError
from lmlab.fan_out import fan_out, num_cores
from lmlab.files import read_mapping, write_json
from lmlab.parsing import parse_yaml
from lmlab.progress import console, progress
from lmlab.redaction import redact_all


@dataclass(frozen=True)
class SweepRun:
    """One run: its name, what is set, and its directory."""

    name: str
    overrides: tuple[str, ...]
    directory: Path


def plan_sweep(vary: Sequence[str], out: Path) -> list[SweepRun]:
    """All combinations of `KEY=VALUE,VALUE,...`.

    Raises:
        UserError: an entry that is not of this form.
    """
    axes = []
    for entry in vary:
        key, equals, values = entry.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise UserError(f"--vary {entry}: expected KEY=VALUE,VALUE,...", "For instance --vary seed=0,1,2.")
        parsed = parse_yaml(f"[{values}]", f"--vary {key}")
        axes.append(
            [(key.strip(), text.strip()) for text in values.split(",")]
            if len(parsed) == values.count(",") + 1
            else _whole(key, parsed)
        )
    runs = []
    for chosen in itertools.product(*axes):
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)
        name = re.sub(r"[^\w.,=+-]", "_", name)
        runs.append(SweepRun(name, tuple(f"{key}={value}" for key, value in chosen), out / name))
    if len({run.name for run in runs}) < len(runs):
        raise UserError(
            "--vary: two of the runs would have the same name.", "Vary each key once, with different values."
        )
    return runs


def run_sweep(
    recipe: Path,
    overrides: Sequence[str],
    runs: Sequence[SweepRun],
    out: Path,
    workers: int | None = None,
    backend: Literal["processes", "ray"] = "processes",
    gpus: float = 0,
) -> list[dict[str, Any]]:
    """Run a recipe once for each entry; finished runs are skipped, those that were cut off go on.

    Each run is a process of its own with a log in its directory. One that fails does not stop the others.

    Returns:
        a row for each run, in order: name, overrides, state, error, results; also written to `sweep.json`.
    """
    threads = max(1, num_cores() // (workers or 1)) if backend == "processes" else None
    jobs = [_command(recipe, [*overrides, *run.overrides], run.directory, threads) for run in runs]
    rows: list[dict[str, Any]] = [{} for _ in runs]
    failed = 0
    with progress("runs", len(runs), "runs") as advance:
        for index, error in fan_out(_run, jobs, workers=workers or 1, backend=backend, gpus=gpus):
            run = runs[index]
            results = read_mapping(run.directory / "results.json") if error is None else None
            rows[index] = {
                "name": run.name,
                "overrides": redact_all(run.overrides),
                "state": "failed" if error else "done",
                "error": error,
                "results": results,
            }
            failed += error is not None
            advance(1, note=f"{failed} failed" if failed else "")
            if error:
                console.print(f"{run.name} failed: {error} (see {run.directory / 'log.txt'})", style="red")
    write_json(out / "sweep.json", rows)
    if failed:
        raise LmlabError(
            f"{failed} of {len(runs)} runs failed; the others are in '{out}'.",
            "Run the same command again: finished runs are kept.",
        )
    return rows


@dataclass(frozen=True)
class _Job:
    command: list[str]
    directory: str
    threads: int | None


def _command(recipe: Path, overrides: Sequence[str], directory: Path, threads: int | None) -> _Job:
    settings = [argument for override in overrides for argument in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "lmlab",
        "run",
        str(recipe.resolve()),
        "--out",
        str(directory.resolve()),
        *settings,
    ]
    return _Job(command, str(directory.resolve()), threads)


def _run(job: _Job) -> str | None:
    """Run one command with its log; the last line of an error, or None."""
    path = Path(job.directory, "log.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)})
    with open(path, "ab") as log:
        done = subprocess.run(job.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    if done.returncode == 0:
        return None
    lines = [
        line for line in path.read_text("utf-8", "replace").splitlines() if line.startswith(("error:", "stopped:"))
    ]
    return lines[-1] if lines else f"exit code {done.returncode}"


def _whole(key: str, parsed: list[Any]) -> list[tuple[str, str]]:
    return [(key.strip(), json.dumps(value)) for value in parsed]
