"""Ladders whose laws are known: do intervals hold what they promise, and does a further run bring what was promised?

    python benchmarks/ladder_simulated.py --part coverage --ladders 100
    python benchmarks/ladder_simulated.py --part next-run --ladders 20 [--out FILE]

Every ladder has two tasks with laws of their own, the published sizes and lengths, 0.3 % log-normal noise between runs
and 0.05 % between checkpoints. The target is the 7B model on 4T tokens. There is no peer: the truth is the comparison.
With `--out` ladders that are done are kept in a file, and a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmlab.methods.ladder import (
    Run,
    RunTable,
    Task,
    TwoStep,
    TwoStepSettings,
    fit_chain,
    logs,
    mean_logit,
    next_runs,
)
from lmlab.methods.ladder.analysis.next_run import NextRun
from lmlab.methods.ladder.config import EstimatorSettings

_SIZES = (190_354_176.0, 371_262_464.0, 758_220_288.0, 1_279_395_840.0)
_MULTIPLES = (1.0, 2.0, 5.0, 10.0)
_TARGET = (6.89e9, 3.945e12)
_NOISE, _JITTER, _CHECKPOINTS = 0.003, 5e-4, 40
_TASKS = ("one", "two")
_REFITS = 64


class Truth:
    """Laws of both steps, for each task."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.laws = [
            (
                rng.uniform(3.2, 4.2),
                rng.uniform(4.2, 5.2),
                rng.uniform(0.2, 0.26),
                rng.uniform(0.21, 0.27),
                rng.uniform(0.3, 0.6),
            )
            for _ in _TASKS
        ]
        self.curves = [(-0.75, rng.uniform(0.7, 0.95), rng.uniform(5, 9)) for _ in _TASKS]

    def loss(self, place: int, n, d):
        a, b, alpha, beta, e = self.laws[place]
        return np.exp(a - alpha * np.log(n)) + np.exp(b - beta * np.log(d)) + e

    def accuracy(self, place: int, loss):
        a, x0, k = self.curves[place]
        return 1 + a / (1 + np.exp(-k * (loss - x0)))

    def run(self, n: float, multiple: float, rng: np.random.Generator) -> Run:
        d = 20 * n * multiple * np.arange(1, _CHECKPOINTS + 1) / _CHECKPOINTS
        metrics = {}
        for place, name in enumerate(_TASKS):
            noise = _NOISE * rng.standard_normal() + _JITTER * rng.standard_normal(_CHECKPOINTS)
            loss = self.loss(place, n, d) * np.exp(noise)
            metrics |= {f"{name}/loss": loss, f"{name}/accuracy": self.accuracy(place, loss)}
        return Run(f"{n:.3g}-{multiple:g}xC", n, 6 * n, d, metrics)

    def ladder(self, seed: int, extra: tuple[tuple[float, float], ...] = ()) -> RunTable:
        rng = np.random.default_rng(seed)
        places = [(n, multiple) for n in _SIZES for multiple in _MULTIPLES]
        runs = [self.run(n, multiple, rng) for n, multiple in places]
        # One more may be a repeat, and no two runs have one name.
        runs += [replace(each, name=f"{each.name}-more") for each in (self.run(*place, rng) for place in extra)]
        return RunTable(tuple(runs))


TASKS = [
    Task(name=name, loss_keys=(f"{name}/loss",), accuracy_keys=(f"{name}/accuracy",), chance=0.25) for name in _TASKS
]
# As the recommended estimator, as far as these runs have its columns; and the paper's law alone.
ESTIMATORS = {
    "task loss and direct": EstimatorSettings(
        name="both",
        members=(
            TwoStepSettings(law="tied", delta=None, runs="all", short_weight=0.0),
            TwoStepSettings(law="direct", delta=None, shrink=1e-3, runs="all", short_weight=0.0),
        ),
    ),
    "task loss": EstimatorSettings(name="task loss", members=(TwoStepSettings(delta=None, shrink=1e-3),)),
}


def coverage(ladders: int, level: float) -> None:
    for name, settings in ESTIMATORS.items():
        inside_loss, inside_accuracy, widths, errors = [], [], [], []
        start = time.process_time()
        for number in range(ladders):
            truth = Truth(1000 + number)
            forecaster = TwoStep(settings, 200, number).fit(truth.ladder(number), TASKS)
            rng = np.random.default_rng(50_000 + number)
            for place, each in enumerate(forecaster.predict_all(*_TARGET, level)):
                # The outcome is one run's: it has the noise that every run has.
                loss = truth.loss(place, *_TARGET) * np.exp(_NOISE * rng.standard_normal())
                accuracy = truth.accuracy(place, loss)
                inside_loss.append(each.loss_lo <= loss <= each.loss_hi)
                inside_accuracy.append(each.lo <= accuracy <= each.hi)
                widths.append(100 * (each.hi - each.lo))
                errors.append(100 * abs(each.accuracy - accuracy))
        count = len(inside_loss)
        print(
            f"{name}: {level:.0%} intervals hold {np.mean(inside_loss):.0%} of losses and"
            f" {np.mean(inside_accuracy):.0%} of accuracies ({count} outcomes, standard error"
            f" {np.sqrt(level * (1 - level) / count):.1%}); mean width {np.mean(widths):.1f} points, median error"
            f" {np.median(errors):.2f}; {(time.process_time() - start) / ladders:.1f} s of a processor a ladder",
            flush=True,
        )


def next_run(ladders: int, out: Path | None) -> None:
    """Promised and refitted gain: 1 - the ratio of the forecast's mean squared errors with the run and without it."""
    candidates = ((2 * _SIZES[-1], 2.0), (_SIZES[-1], 20.0), (_SIZES[0], 1.0))
    settings = ESTIMATORS["task loss and direct"]
    done = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out and out.is_file() else []
    for number in range(len(done), ladders):
        truth = Truth(1000 + number)
        forecaster = TwoStep(settings, 128, number).fit(truth.ladder(number), TASKS, calibrated=False)
        rows = []
        before = _errors(truth, settings, ())
        for n, multiple in candidates:
            (said,) = next_runs(forecaster.ensemble, *_TARGET, sizes=[n], multiples=[multiple], truths=128)
            got, error = _gain(before, _errors(truth, settings, ((n, multiple),)))
            rows.append({"promised": said.gain, "promised_error": said.error, "got": got, "got_error": error})
        done.append({"rows": rows, "bias": (before.mean(0) ** 2 / np.square(before).mean(0)).tolist()})
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
        print(
            f"ladder {number}: "
            + "; ".join(
                f"N = {n:.2e}, {multiple:g}xC: promised {row['promised']:.0%} ± {row['promised_error']:.0%}, got"
                f" {row['got']:.0%} ± {row['got_error']:.0%}"
                for (n, multiple), row in zip(candidates, rows, strict=True)
            ),
            flush=True,
        )
    for place, (n, multiple) in enumerate(candidates):
        said, got = (np.array([each["rows"][place][key] for each in done[:ladders]]) for key in ("promised", "got"))
        print(
            f"N = {n:.2e}, {multiple:g}xC: promised {said.mean():.1%} ± {said.std() / np.sqrt(ladders):.1%}, got"
            f" {got.mean():.1%} ± {got.std() / np.sqrt(ladders):.1%} on average over {ladders} ladders, the promise"
            f" {said.mean() / got.mean():.2f} times the gain"
        )
    worthwhile = [
        (row["promised"], row["got"])
        for each in done[:ladders]
        for row in each["rows"]
        if NextRun(0, 0, 0, 0, row["promised"], row["promised_error"]).worthwhile
    ]
    said, got = np.mean(worthwhile, axis=0)
    print(f"the {len(worthwhile)} that are called worthwhile: promised {said:.1%}, got {got:.1%}")
    share = np.mean([each["bias"] for each in done[:ladders]])
    print(f"{share:.0%} of the squared error without a further run is that of the law's form, which no noise changes")


def _errors(truth: Truth, settings: EstimatorSettings, extra: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Errors of the forecast in logits over ladders measured again from the truth, [refits, tasks]."""
    x_3Q, errors = logs(*_TARGET, None)[:, None], []
    wanted = np.array([truth.accuracy(place, truth.loss(place, *_TARGET)) for place in range(len(_TASKS))])
    for refit in range(_REFITS):
        table = truth.ladder(90_000 + refit, extra)
        chains = [fit_chain(table, TASKS, member) for member in settings.members]
        values = mean_logit([chain.accuracy(x_3Q)[0, :, 0] for chain in chains], settings.weights)
        errors.append(np.log(values / (1 - values)) - np.log(wanted / (1 - wanted)))
    return np.array(errors)


def _gain(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The gain, mean over tasks, and its standard error by the jackknife over refits, which share their noise."""
    before, after = np.square(before), np.square(after)

    def value(chosen: np.ndarray) -> float:
        return 1 - float((after[chosen].mean(0) / before[chosen].mean(0)).mean())

    count = len(before)
    left = np.array([value(np.arange(count) != each) for each in range(count)])
    return value(np.arange(count)), float(np.sqrt((count - 1) / count * np.square(left - left.mean()).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("coverage", "next-run"), required=True)
    parser.add_argument("--ladders", type=int, default=20)
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--out", type=Path, help="of the part next-run: keep finished ladders in this file")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if arguments.part == "coverage":
        coverage(arguments.ladders, arguments.level)
    else:
        next_run(arguments.ladders, arguments.out)


if __name__ == "__main__":
    main()
