"""Every estimator that was tried, scored by backtests inside the published ladder; the rule of docs/methods/ladder.md
picks one.

    LMLAB_SHARED=../shared python benchmarks/ladder_estimators.py            # backtests and the choice; the target is
                                                                              # not read
    LMLAB_SHARED=../shared python benchmarks/ladder_estimators.py --target   # all candidates on the 7B target too

With `--weigh distance` a split counts by how far it goes: by the logarithm of the compute of its farthest predicted run
over that of its dearest fitted one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from lmlab.methods.ladder import TaskRegistry, TwoStepSettings, fit_chain, logs, mean_logit, splits, target_values
from lmlab.methods.ladder.analysis.backtest import SplitResult, combine, predict_split
from lmlab.methods.ladder.tables.reference_data import published_ladder

_TIE = 0.05
_SETS = (
    "dolma_books",
    "dolma_common-crawl",
    "dolma_pes2o",
    "dolma_reddit",
    "dolma_stack",
    "dolma_wiki",
    "ice",
    "m2d2_s2orc",
    "pile",
    "wikitext_103",
)
_STACKED = (
    "bpb, least squares, shrunk 0.001",
    "c4",
    "TaskCE, sigmoid, least squares, shrunk 0.001",
    "bpb, FLOPs",
    "validation",
    "set dolma_stack",
)


# The second round: all splits of a benchmark together, repeats averaged, runs below 1xC by weight, and the direct law.
_BASE = {"delta": None, "shrink": 1e-3}
_SHORT = {
    "task loss": "bpb, least squares, shrunk 0.001",
    "c4": "c4",
    "TaskCE": "TaskCE, sigmoid, least squares, shrunk 0.001",
    "direct": "direct, shrunk 0.001",
}
_FAMILY = {
    _SHORT["task loss"]: TwoStepSettings(**_BASE),
    _SHORT["c4"]: TwoStepSettings(x="c4"),
    _SHORT["TaskCE"]: TwoStepSettings(x="taskce", **_BASE),
    _SHORT["direct"]: TwoStepSettings(law="direct", **_BASE),
    "direct": TwoStepSettings(law="direct", delta=None),
}
# The third round: other laws of N and D, on pooled splits with repeats averaged and without short runs.
_ALL = {"pool": True, "runs": "all", "short_weight": 0.0}
_THIRD = {
    f"{name}, {law}": TwoStepSettings(x=x, law=kind, delta=None, shrink=shrink, **_ALL)
    for name, x in (("task loss", "bpb"), ("c4", "c4"), ("TaskCE", "taskce"))
    for law, kind, shrink in (
        ("coupled", "coupled", 0.0 if x == "c4" else 1e-3),
        ("one exponent", "tied", 0.0),
        ("exponents shared by the tasks", "nd", 1.0),
    )
    if (x, law) != ("c4", "exponents shared by the tasks")
} | {
    "direct, exponents shared by the tasks": TwoStepSettings(law="direct", delta=None, shrink=1.0, **_ALL),
    "line in logit accuracy": TwoStepSettings(law="line", delta=None, **_ALL),
}
_LAST = ", pooled, repeats averaged, short runs 0"
_CHOICES = {
    "task loss": [_SHORT["task loss"] + _LAST, *(name for name in _THIRD if name.startswith("task loss"))],
    "c4": [_SHORT["c4"] + _LAST, *(name for name in _THIRD if name.startswith("c4"))],
    "TaskCE": [_SHORT["TaskCE"] + _LAST, *(name for name in _THIRD if name.startswith("TaskCE"))],
    "direct": [_SHORT["direct"] + _LAST, *(name for name in _THIRD if name.startswith("direct"))],
}


def third_round() -> dict[str, tuple[str, ...]]:
    """All means of one chain of each quantity, with the direct law or without one of the four."""
    found = {}
    for count in (4, 3):
        for quantities in combinations(_CHOICES, count):
            for names in product(*(_CHOICES[each] for each in quantities)):
                label = " + ".join(name.removesuffix(_LAST) for name in names)
                found[f"mean of {label}"] = names
    return found


_WIDER = {
    "": {},
    "pooled": {"pool": True},
    **{
        f"pooled, repeats averaged, short runs {weight:g}": {"pool": True, "runs": "all", "short_weight": weight}
        for weight in (0.0, 0.03, 0.1, 0.25, 0.5, 1.0)
    },
}


def single_chains() -> dict[str, TwoStepSettings]:
    chains = {"paper": TwoStepSettings(starts="paper"), "paper, grid of starts": TwoStepSettings()}
    for label, delta in (("1e-2", 1e-2), ("none", None)):
        chains[f"bpb, delta {label}"] = TwoStepSettings(delta=delta)
    for strength in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3):
        chains[f"bpb, shrunk {strength:g}"] = TwoStepSettings(shrink=strength)
    for strength in (1e-4, 1e-3, 1e-2):
        chains[f"bpb, least squares, shrunk {strength:g}"] = TwoStepSettings(delta=None, shrink=strength)
        chains[f"bpb, delta 1e-2, shrunk {strength:g}, all runs"] = TwoStepSettings(
            delta=1e-2, shrink=strength, runs="all"
        )
    for last in (1, 3, 10):
        chains[f"bpb, last {last}"] = TwoStepSettings(last=last)
    chains["bpb, no anchor"] = TwoStepSettings(anchor=False)
    chains["bpb, runs weigh alike"] = TwoStepSettings(weighting="runs")
    chains["bpb, binomial weights"] = TwoStepSettings(weighting="binomial")
    chains["bpb, skip 0.3"] = TwoStepSettings(skip=0.3)
    chains["bpb, skip 0.5"] = TwoStepSettings(skip=0.5)
    chains["bpb, all runs"] = TwoStepSettings(runs="all")
    chains["bpb, FLOPs"] = TwoStepSettings(law="flops")
    chains["bpb, FLOPs, delta 1e-2"] = TwoStepSettings(law="flops", delta=1e-2)
    chains["single step"] = TwoStepSettings(law="single")
    chains["power law of accuracy"] = TwoStepSettings(law="power")
    chains["TaskCE"] = TwoStepSettings(
        x="taskce", accuracy_law="log_sigmoid", anchor=False, moving_average=1, skip=0.5, last=1
    )
    chains["TaskCE, sigmoid"] = TwoStepSettings(x="taskce")
    for strength in (1e-4, 1e-3):
        chains[f"TaskCE, sigmoid, least squares, shrunk {strength:g}"] = TwoStepSettings(
            x="taskce", delta=None, shrink=strength
        )
    for x in ("c4", "validation"):
        chains[x] = TwoStepSettings(x=x)
        chains[f"{x}, delta 1e-2"] = TwoStepSettings(x=x, delta=1e-2)
        chains[f"{x}, least squares"] = TwoStepSettings(x=x, delta=None)
        chains[f"{x}, FLOPs"] = TwoStepSettings(x=x, law="flops")
        chains[f"{x}, no anchor"] = TwoStepSettings(x=x, anchor=False)
        chains[f"{x}, skip 0.3"] = TwoStepSettings(x=x, skip=0.3)
        chains[f"{x}, skip 0.5"] = TwoStepSettings(x=x, skip=0.5)
        chains[f"{x}, runs weigh alike"] = TwoStepSettings(x=x, weighting="runs")
        chains[f"{x}, binomial weights"] = TwoStepSettings(x=x, weighting="binomial")
        chains[f"{x}, all runs"] = TwoStepSettings(x=x, runs="all")
    for label, changes in _WIDER.items():
        for name, settings in _FAMILY.items():
            chains[f"{name}, {label}" if label else name] = settings.model_copy(update=changes)
    chains |= _THIRD
    for name in _SETS:
        chains[f"set {name}"] = TwoStepSettings(x=f"eval/{name}-validation/CrossEntropyLoss")
    return chains


def means() -> dict[str, tuple[str, ...]]:
    """Means of logits, by the names of their chains."""
    shrunk, flops = "bpb, shrunk 0.0001", "bpb, FLOPs"
    least, taskce = "bpb, least squares, shrunk 0.001", "TaskCE, sigmoid, least squares, shrunk 0.001"
    return {
        "mean of least-squares shrunk and c4": (least, "c4"),
        "mean of least-squares shrunk and TaskCE": (least, taskce),
        "mean of c4 and TaskCE": ("c4", taskce),
        "mean of c4, all runs, and TaskCE": ("c4, all runs", taskce),
        "mean of least-squares shrunk, c4 and TaskCE": (least, "c4", taskce),
        "mean of least-squares shrunk, c4 (all runs) and TaskCE": (least, "c4, all runs", taskce),
        "mean of least-squares shrunk, c4 and FLOPs": (least, "c4", flops),
        "mean of least-squares shrunk, c4, TaskCE and FLOPs": (least, "c4", taskce, flops),
        "mean of least-squares shrunk, c4, validation and TaskCE": (least, "c4", "validation", taskce),
        **{
            f"mean of {', '.join(names[:-1])} and {names[-1]}" + (f", {label}" if label else ""): tuple(
                f"{_SHORT[name]}, {label}" if label else _SHORT[name] for name in names
            )
            for label in _WIDER
            for names in (
                ("task loss", "c4", "TaskCE", "direct"),
                ("c4", "TaskCE", "direct"),
                ("task loss", "c4", "direct"),
                *([("task loss", "c4", "TaskCE")] if label else []),
            )
        },
        **third_round(),
        "mean of paper and c4": ("paper, grid of starts", "c4"),
        "mean of shrunk and c4": (shrunk, "c4"),
        "mean of shrunk, c4 and FLOPs": (shrunk, "c4", flops),
        "mean of c4 and FLOPs": ("c4", flops),
        "mean of c4 and c4, FLOPs": ("c4", "c4, FLOPs"),
        "mean of shrunk and validation": (shrunk, "validation"),
        "mean of c4 and validation": ("c4", "validation"),
        "mean of shrunk, c4 and validation": (shrunk, "c4", "validation"),
        "mean of shrunk, c4, FLOPs and single step": (shrunk, "c4", flops, "single step"),
        "mean of shrunk and c4, all runs": ("bpb, delta 1e-2, shrunk 0.001, all runs", "c4, all runs"),
        "mean of shrunk, c4 and TaskCE": (shrunk, "c4", "TaskCE, sigmoid"),
        "mean of all validation sets": ("c4", *(f"set {name}" for name in _SETS)),
        "mean of shrunk and of all validation sets": (
            shrunk,
            shrunk,
            shrunk,
            shrunk,
            shrunk,
            "c4",
            *(f"set {name}" for name in _SETS),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="store_true", help="score all candidates on the 7B target too")
    parser.add_argument("--weigh", choices=("alike", "distance"), default="alike", help="splits in the score")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    table = published_ladder(Path(os.environ.get("LMLAB_SHARED", "../shared")))
    tasks = TaskRegistry.builtin().select("main")
    every = splits(table)
    chains, start = single_chains(), time.monotonic()
    singles = {
        name: [predict_split(table, tasks, settings, split) for split in every] for name, settings in chains.items()
    }
    results = dict(singles) | {
        name: [combine([singles[member][place] for member in members]) for place in range(len(every))]
        for name, members in means().items()
    }
    members = {name: (name,) for name in chains} | means()
    results["stacked"], stack = (
        _stacked([singles[name] for name in _STACKED]),
        _weights([singles[name] for name in _STACKED]),
    )
    members["stacked"] = _STACKED
    shares = _shares(table, every, arguments.weigh)
    scores = {name: _score(found, shares) for name, found in results.items()}
    admissible = [name for name in scores if _admissible([chains[each] for each in members[name]])]
    lowest = min(scores[name] for name in admissible)
    ties = [name for name in admissible if scores[name] <= lowest + _TIE]
    winner = min(ties, key=lambda name: (len(members[name]), scores[name]))
    at_target = _at_target(table, tasks, chains) if arguments.target else None
    rows = []
    for name in sorted(scores, key=scores.__getitem__):
        row = {
            "name": name,
            "chains": len(members[name]),
            "score": scores[name],
            "splits": [float(each.errors_TQ.mean()) for each in results[name]],
        }
        if at_target is not None:
            accuracy, actual = at_target
            weights = tuple(stack) if name == "stacked" else ()
            row["7B"] = float(
                np.abs(mean_logit([accuracy[member] for member in members[name]], weights) - actual).mean() * 100
            )
        rows.append(row)
        figures = "  ".join(f"{value:5.2f}" for value in row["splits"])
        print(
            f"{name:52} {row['score']:5.2f}   {figures}"
            + (f"   7B {row['7B']:5.2f}" if "7B" in row else "")
            + ("   <- chosen" if name == winner else "")
        )
    print(
        f"{len(rows)} candidates, {len(every)} splits, {time.monotonic() - start:.0f} s. Chosen by the rule: {winner}"
    )
    print("Splits: " + "; ".join(split.name for split in every))
    if arguments.out:
        arguments.out.write_text(json.dumps({"winner": winner, "rows": rows}, indent=1))


def _shares(table, every, weigh: str) -> np.ndarray:
    """How much each split counts."""
    if weigh == "alike":
        return np.full(len(every), 1 / len(every))
    dearest = [(max(table[name].flops for name in names) for names in (each.fitted, each.predicted)) for each in every]
    away = np.array([max(0.0, np.log(far / near)) for near, far in dearest])
    return away / away.sum()


def _score(results: list[SplitResult], shares: np.ndarray) -> float:
    """The weighted mean over splits of the mean absolute error in points."""
    return float(shares @ [each.errors_TQ.mean() for each in results])


def _admissible(settings: list[TwoStepSettings]) -> bool:
    """What is not left to the score: which of two equal runs comes first in a file must not matter, and the forecast
    prints a task loss.
    """
    return all(each.runs == "all" for each in settings) and any(each.chained and each.x == "bpb" for each in settings)


def _weights(members: list[list[SplitResult]]) -> list[float]:
    """Weights of logits, not negative and with the sum 1, that fit the measured logits of all splits best; every split
    weighs alike.
    """
    rows, goal = [], []
    for place in range(len(members[0])):
        actual, scale = members[0][place].actual_TQ, members[0][place].actual_TQ.size ** -0.5
        rows.append(scale * np.stack([_logit(each[place].accuracy_TQ).ravel() for each in members], axis=1))
        goal.append(scale * _logit(actual).ravel())
    penalty = 1e3 * np.ones((1, len(members)))
    found, _ = nnls(np.concatenate([*rows, penalty]), np.concatenate([*goal, [1e3]]))
    return [float(each) for each in found / found.sum()]


def _stacked(members: list[list[SplitResult]]) -> list[SplitResult]:
    """Each split predicted with the weights of the other splits."""
    count = len(members[0])
    found = []
    for place in range(count):
        others = [[each[number] for number in range(count) if number != place] for each in members]
        found.append(combine([each[place] for each in members], _weights(others)))
    return found


def _logit(p):
    return np.log(p) - np.log1p(-p)


def _at_target(table, tasks, chains):
    target = table["7B-4T"]
    x = logs(target.n, target.final_tokens, target.flops_per_token)[:, None]
    accuracy = {name: fit_chain(table, tasks, settings).accuracy(x)[0, :, 0] for name, settings in chains.items()}
    return accuracy, np.array([target_values(target, task, TwoStepSettings())[1] for task in tasks])


if __name__ == "__main__":
    main()
