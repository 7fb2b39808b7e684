"""Ladders whose laws are known: do intervals hold what they promise, and does a further run bring what was promised?

    python benchmarks/ladder_simulated.py --part coverage --ladders 100
    python benchmarks/ladder_simulated.py --part next-run --ladders 20

Every ladder has two tasks with laws of their own, the published sizes and lengths, 0.3 % log-normal noise between runs
and 0.05 % between checkpoints. The target is the 7B model on 4T tokens. There is no peer: the truth is the comparison.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from lmlab.methods.ladder import Run, RunTable, Task, TwoStep, TwoStepSettings, next_runs
from lmlab.methods.ladder.config import EstimatorSettings

_SIZES = (190_354_176.0, 371_262_464.0, 758_220_288.0, 1_279_395_840.0)
_MULTIPLES = (1.0, 2.0, 5.0, 10.0)
_TARGET = (6.89e9, 3.945e12)
_NOISE, _JITTER, _CHECKPOINTS = 0.003, 5e-4, 40
_TASKS = ("one", "two")
_REFITS = 24


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
        return RunTable(tuple(self.run(n, multiple, rng) for n, multiple in (*places, *extra)))


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


def next_run(ladders: int) -> None:
    candidates = ((2 * _SIZES[-1], 2.0), (_SIZES[-1], 20.0), (_SIZES[0], 1.0))
    settings, ratios = ESTIMATORS["task loss and direct"], []
    for number in range(ladders):
        truth = Truth(1000 + number)
        forecaster = TwoStep(settings, 128, number).fit(truth.ladder(number), TASKS, calibrated=False)
        promised = {
            (each.n, each.multiple): each
            for n, multiple in candidates
            for each in next_runs(forecaster.ensemble, *_TARGET, sizes=[n], multiples=[multiple], truths=128)
        }
        outcomes = {extra: _squared_errors(truth, settings, extra) for extra in ((), *((each,) for each in candidates))}
        line = []
        for each in candidates:
            got = 1 - float((outcomes[each,] / outcomes[()]).mean())
            said = promised[each]
            ratios.append((said.gain, got, each))
            line.append(f"N = {each[0]:.2e}, {each[1]:g}xC: promised {said.gain:.0%} ± {said.error:.0%}, got {got:.0%}")
        print(f"ladder {number}: " + "; ".join(line), flush=True)
    for each in candidates:
        said, got = (np.array([row[place] for row in ratios if row[2] == each]) for place in (0, 1))
        print(
            f"N = {each[0]:.2e}, {each[1]:g}xC: promised {said.mean():.1%}, got {got.mean():.1%} on average over"
            f" {ladders} ladders (standard errors"
            f" {said.std() / np.sqrt(ladders):.1%} and {got.std() / np.sqrt(ladders):.1%})"
        )


def _squared_errors(truth: Truth, settings: EstimatorSettings, extra) -> np.ndarray:
    """Mean squared error of the forecast in logits, for each task, over ladders measured again from the truth."""
    errors = []
    for refit in range(_REFITS):
        forecaster = TwoStep(settings, 0, 0).fit(truth.ladder(90_000 + refit, extra), TASKS, calibrated=False)
        values = [each.accuracy for each in forecaster.predict_all(*_TARGET)]
        wanted = [truth.accuracy(place, truth.loss(place, *_TARGET)) for place in range(len(_TASKS))]
        errors.append([np.log(a / (1 - a)) - np.log(b / (1 - b)) for a, b in zip(values, wanted, strict=True)])
    return np.square(errors).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("coverage", "next-run"), required=True)
    parser.add_argument("--ladders", type=int, default=20)
    parser.add_argument("--level", type=float, default=0.9)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    coverage(arguments.ladders, arguments.level) if arguments.part == "coverage" else next_run(arguments.ladders)


if __name__ == "__main__":
    main()
