"""The published ladder, where its files are at hand."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from known_laws import MULTIPLES, SIZES, true_accuracy, true_loss

from lmlab.methods.ladder import Run, RunTable, Task, TaskRegistry
from lmlab.methods.ladder.tables.reference_data import published_ladder

SHARED = Path(os.environ.get("LMLAB_SHARED", Path(__file__).parents[4] / "shared"))
FOLDER = SHARED / "data" / "ladder"


@pytest.fixture(scope="session")
def folder() -> Path:
    if not (FOLDER / "runs").is_dir():
        pytest.skip("the published ladder is not at hand; LMLAB_SHARED names its folder")
    return FOLDER


@pytest.fixture(scope="session")
def published(folder: Path) -> RunTable:
    return published_ladder(folder.parents[1])


@pytest.fixture(scope="session")
def results(folder: Path):
    """The reference's own results: results("target_7B-4T") is a list of rows."""

    def read(name: str) -> list[dict[str, str]]:
        with open(folder / "reference_results" / f"{name}.csv", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def main_tasks() -> list[Task]:
    return TaskRegistry.builtin().select("main")


@pytest.fixture(scope="session")
def synthetic():
    """A ladder that obeys both laws: synthetic(count, noise) has `count` independent copies as tasks, with log-normal
    noise between runs.
    """

    def make(
        count: int = 1,
        noise: float = 0.0,
        seed: int = 0,
        checkpoints: int = 40,
        sizes=SIZES,
        multiples=MULTIPLES,
        jitter: float = 5e-4,
    ):
        rng = np.random.default_rng(seed)
        runs = []
        for n in sizes:
            for multiple in multiples:
                d = 20 * n * multiple * np.arange(1, checkpoints + 1) / checkpoints
                metrics = {}
                for number in range(count):
                    loss = true_loss(n, d) * np.exp(
                        noise * rng.standard_normal() + (jitter if noise else 0) * rng.standard_normal(checkpoints)
                    )
                    metrics[f"loss{number}"] = loss
                    metrics[f"acc{number}"] = np.clip(
                        true_accuracy(loss) + (4 * jitter if noise else 0) * rng.standard_normal(checkpoints), 0, 1
                    )
                size = f"{n / 1e6:.0f}M" if n >= 1e6 else f"{n / 1e3:g}k"
                runs.append(Run(f"{size}-{multiple:g}xC", n, None, d, metrics, size=size))
        tasks = [
            Task(name=f"task{k}", loss_keys=(f"loss{k}",), accuracy_keys=(f"acc{k}",), chance=0.25)
            for k in range(count)
        ]
        return RunTable(tuple(runs)), tasks

    return make
