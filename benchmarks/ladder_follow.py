"""How much better the end of a run is known once a part of it has been seen.

The published ladder: the runs of 760M are followed with the ladder of 190M and 370M, those of 1.3B with the ladder of
all smaller sizes. Beside `lmlab ladder follow` stand the ladder alone, the run's last accuracies carried forward, and
for the loss the run's own curve.

    python benchmarks/ladder_follow.py          # LMLAB_SHARED names the folder with data/ladder
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from lmlab.methods.ladder import RunTable, TaskRegistry, TwoStep
from lmlab.methods.ladder.analysis.follow import cut_off, follow
from lmlab.methods.ladder.tables.reference_data import published_ladder

SIZES = ("190M", "370M", "760M", "1B")
SHARES = (0.3, 0.5, 0.7, 0.9)
COLUMNS = (
    "size", "seen", "runs", "error, points: ladder", "with the run", "last value",
    "loss error, %: with the run", "own curve",
    "inside 90 %", "loss inside", "width, points: ladder", "with the run",
)  # fmt: skip


def main() -> None:
    table = published_ladder(Path(os.environ.get("LMLAB_SHARED", "../shared")))
    tasks = TaskRegistry.builtin().select("main")
    start = time.perf_counter()
    print(f"load {os.getloadavg()[0]:.1f}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for place in (2, 3):
        smaller = RunTable(tuple(run for run in table.ladder if SIZES.index(run.name.split("-")[0]) < place))
        forecaster = TwoStep("recommended", 100).fit(smaller, tasks)
        runs = [run for run in table.ladder if run.name.split("-")[0] == SIZES[place] and run.multiple >= 1]
        for share in SHARES:
            rows = []
            for run in runs:
                part = cut_off(run, share)
                found = follow(forecaster, part, run.final_tokens)
                actual = np.array([run.final_value(run.accuracy(task), 5) for task in tasks])
                loss = np.array([run.final_value(run.intermediate(task, "bpb"), 5) for task in tasks])
                last = np.array([part.accuracy(task)[-5:].mean() for task in tasks])

                def column(name: str, found=found) -> np.ndarray:
                    return np.array([getattr(each, name) for each in found])

                rows.append(
                    [
                        100 * np.abs(column("ladder_accuracy") - actual).mean(),
                        100 * np.abs(column("accuracy") - actual).mean(),
                        100 * np.abs(last - actual).mean(),
                        100 * np.abs(column("loss") / loss - 1).mean(),
                        100 * np.abs(column("own_curve") / loss - 1).mean(),
                        ((column("lo") <= actual) & (actual <= column("hi"))).mean(),
                        ((column("loss_lo") <= loss) & (loss <= column("loss_hi"))).mean(),
                        100 * (column("ladder_hi") - column("ladder_lo")).mean(),
                        100 * (column("hi") - column("lo")).mean(),
                    ]
                )
            cells = (SIZES[place], f"{share:.0%}", len(runs), *(f"{value:.2f}" for value in np.mean(rows, axis=0)))
            print("| " + " | ".join(map(str, cells)) + " |")
    print(f"{time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
