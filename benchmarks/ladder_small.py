"""Small ladders: which weight the line in log compute deserves where runs are few, by parts of the published ladder.

    LMLAB_SHARED=../shared python benchmarks/ladder_small.py

Each part has two to four sizes and two to four lengths, runs that were measured three times, and is fitted for one task
at a time; it forecasts the runs of the ladder that have twice its compute or more. Half of the
parts have the noise of 600 questions added to theirs. The 7B model is not read.

The rule, written down before any candidate was scored here, is that of docs/methods/ladder.md: the mean over parts of
the mean absolute error in points over the eight main tasks and the forecast runs; the lowest score wins, and within
0.05 points of it the one with the fewest chains, and among these the lower score. It is applied to the parts of fewer
than 12 configurations, where the coupled law gives way as well; those of 12 are shown beside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from lmlab.methods.ladder import RunTable, TaskRegistry, TwoStepSettings, fit_chain, mean_logit, target_values
from lmlab.methods.ladder.fitting.points import place_of
from lmlab.methods.ladder.tables.reference_data import published_ladder

_TIE, _FEW = 0.05, 12
_LEAST_TIMES = 2.0  # the compute of a forecast run over that of the dearest fitted one
_MEASURED = 3  # times, of each run
_QUESTIONS = 600
_ALL = {"delta": None, "runs": "all"}
CHAINS = {
    "task loss": TwoStepSettings(law="tied", **_ALL),
    "task loss, two ends": TwoStepSettings(law="tied", accuracy_law="logistic", **_ALL),
    "c4": TwoStepSettings(x="c4", law="tied", **_ALL),
    "direct": TwoStepSettings(law="direct", **_ALL),
    "TaskCE": TwoStepSettings(x="taskce", law="tied", **_ALL),
    "line": TwoStepSettings(law="line", **_ALL),
    "line by information": TwoStepSettings(law="line", weighting="binomial", **_ALL),
}
_LINES = ("line", "line by information")
_BASES = (
    ("task loss", "c4", "direct"),
    ("task loss", "c4", "direct", "TaskCE"),
    ("task loss", "direct"),
    ("task loss",),
    ("task loss, two ends",),
    ("task loss, two ends", "c4", "direct"),
    ("c4",),
    ("direct",),
    ("TaskCE",),
)
_WEIGHTS = (0.25, 1 / 3, 0.5, 2 / 3, 0.75)


def candidates() -> dict[str, dict[str, float]]:
    """Weights of logits by chain: those of a base alike, and the line beside them."""
    found = {line: {line: 1.0} for line in _LINES}
    for base in _BASES:
        found[" + ".join(base)] = dict.fromkeys(base, 1 / len(base))
        for line in _LINES:
            for weight in _WEIGHTS:
                shares = {name: (1 - weight) / len(base) for name in base} | {line: weight}
                found[f"{' + '.join(base)}, {line} {weight:.2f}"] = shares
    return found


def parts(table: RunTable) -> Iterator[tuple[str, RunTable, list]]:
    """Parts of a ladder, with the runs that they forecast."""
    runs = [run for run in table if run.multiple >= 1 and not run.name.endswith("-rerun")]
    sizes, lengths = sorted({run.n for run in runs}), sorted({run.multiple for run in runs})
    for i, j in ((i, j) for i in (2, 3, 4) for j in (2, 3, 4) if 6 <= i * j <= _FEW):
        for some in combinations(sizes, i):
            for span in combinations(lengths, j):
                chosen = [run for run in runs if run.n in some and run.multiple in span]
                dearest = max(run.flops for run in chosen)
                targets = [run for run in runs if run.flops >= _LEAST_TIMES * dearest]
                if targets:
                    label = "/".join(f"{n:.2g}" for n in some) + " at " + "/".join(f"{m:g}xC" for m in span)
                    yield label, RunTable(tuple(chosen)), targets


def _measured(run, tasks, rng):
    """A run as a small ladder has it: three measurements, with the noise of few questions where `rng` is given."""
    places = np.array([round((k + 1) * len(run) / _MEASURED) - 1 for k in range(_MEASURED)])
    run = run.keep(places)
    if rng is None:
        return run
    metrics = dict(run.metrics)
    for task in tasks:
        for key in task.accuracy_columns("rc"):
            p = metrics[key]
            metrics[key] = np.clip(rng.binomial(_QUESTIONS, p) / _QUESTIONS, 1e-3, 1 - 1e-3)
    return replace(run, metrics=metrics)


def main() -> None:
    table = published_ladder(Path(os.environ.get("LMLAB_SHARED", "../shared"))).ladder
    tasks, start = TaskRegistry.builtin().select("main"), time.process_time()
    errors: dict[bool, dict[str, list[float]]] = {few: {name: [] for name in candidates()} for few in (True, False)}
    signed: dict[str, list[float]] = {name: [] for name in candidates()}
    for number, (label, part, targets) in enumerate(parts(table)):
        rng = np.random.default_rng(number) if number % 2 else None
        small = RunTable(tuple(_measured(run, tasks, rng) for run in part))
        x_3Q = np.stack([place_of(run) for run in targets], axis=1)
        actual = np.array([[target_values(run, task, CHAINS["line"])[1] for run in targets] for task in tasks])
        values = {name: fit_chain(small, tasks, settings).accuracy(x_3Q)[0] for name, settings in CHAINS.items()}
        for name, weights in candidates().items():
            said = mean_logit([values[each] for each in weights], tuple(weights.values()))
            errors[len(part) < _FEW][name].append(float(100 * np.abs(said - actual).mean()))
            if len(part) < _FEW:
                signed[name].append(float(100 * (said - actual).mean()))
        print(f"{label}: {len(targets)} runs, {time.process_time() - start:.0f} s", flush=True)
    scores = {few: {name: np.mean(found) for name, found in each.items()} for few, each in errors.items()}
    lowest = min(scores[True].values())
    ties = [name for name, value in scores[True].items() if value <= lowest + _TIE]
    winner = min(ties, key=lambda name: (len(candidates()[name]), scores[True][name]))
    counts = [len(errors[few]["line"]) for few in (True, False)]
    print(f"\n| candidate | {counts[0]} parts of fewer than {_FEW} | too high by | {counts[1]} of {_FEW} |")
    print("|---|---|---|---|")
    for name in sorted(scores[True], key=scores[True].__getitem__):
        shown = f"**{name}**" if name == winner else name
        bias = np.mean(signed[name])
        print(f"| {shown} | {scores[True][name]:.2f} | {bias:+.2f} | {scores[False][name]:.2f} |")


if __name__ == "__main__":
    main()
