"""Submission scripts for Slurm: the same recipe on many machines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import write_text
from lmlab.runs import PlannedRun
from lmlab.runs.many import write_recipes

_TIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}(:\d{2})?|\d+")
_NAME = re.compile(r"[\w.+-]+")
_SECONDS_TO_STOP = 120  # before the end: for a last step and a checkpoint; more is lost to each job


@dataclass(frozen=True)
class SlurmJob:
    """A job of `torchrun` processes, one a GPU.

    Attributes:
        command: what each process runs: the arguments of `lmlab`.
        nodes, gpus_per_node, cpus_per_gpu: machines and their parts; without GPUs one process a machine.
        time: limit, as Slurm writes it; the job is told to stop two minutes before, and goes on in the next of `repeat`
            jobs.
        repeat: jobs one after the other.
        partition, account: as the cluster calls them.
        setup: a line of shell that makes `torchrun` and lmlab available, such as `source venv/bin/activate`.
    """

    name: str
    command: Sequence[str]
    logs: Path
    nodes: int = 1
    gpus_per_node: int = 8
    cpus_per_gpu: int = 8
    time: str = "24:00:00"
    repeat: int = 1
    partition: str | None = None
    account: str | None = None
    setup: str | None = None

    def script(self) -> str:
        """The text of the script.

        Raises:
            UserError: a name or a time that Slurm would not understand.
        """
        for label, value in (("--name", self.name), ("--partition", self.partition), ("--account", self.account)):
            if value is not None and not _NAME.fullmatch(value):
                raise UserError(
                    f"{label} '{value}' is not a name for Slurm.", "Use letters, digits, '.', '_', '+' and '-'."
                )
        if not _TIME.fullmatch(self.time):
            raise UserError(f"--time '{self.time}' is not a time for Slurm.", "Write it as 24:00:00 or 2-12:00:00.")
        if any(character.isspace() for character in str(self.logs)):
            raise UserError(
                f"--out: Slurm cannot write logs to '{self.logs}', as its name holds white space.",
                "Choose another directory.",
            )
        processes = max(1, self.gpus_per_node)
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": processes * self.cpus_per_gpu,
            "time": self.time,
            "signal": f"TERM@{_SECONDS_TO_STOP}",
            "array": f"1-{self.repeat}%1" if self.repeat > 1 else None,
            "partition": self.partition,
            "account": self.account,
            "output": self.logs / "slurm-%j.log",
        }
        lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None)]
        lines += ["#SBATCH --requeue", "", "set -euo pipefail", *([self.setup] if self.setup else [])]
        lines += [
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"export OMP_NUM_THREADS={self.cpus_per_gpu}",
            "srun --kill-on-bad-exit=1 torchrun \\",
            f'  --nnodes="$SLURM_NNODES" --nproc-per-node={processes} \\',
            '  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29400" \\',
            f"  -m lmlab {shlex.join(self.command)}",
        ]
        return "\n".join(lines) + "\n"


def write_jobs(runs: Sequence[PlannedRun], out: Path, **parts: Any) -> list[Path]:
    """Write a recipe and a submission script for each of many runs to OUT/recipes; the scripts.

    Arguments:
        parts: fields of `SlurmJob`: nodes, time, partition, ...

    Raises:
        UserError: as `SlurmJob.script` and `write_recipes`.
    """
    scripts = []
    for each, command in zip(runs, write_recipes(runs, out), strict=True):
        name = re.sub(r"[^\w.+-]", "_", each.name)
        path = Path(command[1]).with_suffix(".sh")
        write_text(path, SlurmJob(name, command, out.resolve(), **parts).script())
        scripts.append(path)
    return scripts
