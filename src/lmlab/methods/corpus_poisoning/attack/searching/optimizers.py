"""Optimizers of token sequences on one interface and one budget. Each takes a problem, ids to start from, and a
source of chance, and gives the best ids it saw with their value in fp32.

| name | source | positions of a gradient | accepted |
|---|---|---|---|
| `hotflip` | Ebrahimi et al. 2018, AutoPrompt | one, uniform; its 100 best | only what is better |
| `arca` | Jones et al. 2023 | one, in turn; gradient over 32 copies with a random token there; 32 | always the best |
| `gcg` | Zou et al. 2023 | all; random (position, one of its 256 best) | always the best, best seen kept |
| `gaslite` | Ben-Tov & Sharif 2024 | 20 random; gradient over 50 copies with a random flip | greedy |
| `multiflip` | this page | all; the best flips overall, then their combinations | never worse |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmlab.methods.corpus_poisoning.attack.searching.problem import GRADIENT_COST, Problem

Ids = NDArray[np.int64]
OptimizerName = Literal["multiflip", "hotflip", "arca", "gcg", "gaslite", "none"]  # beside them: decode.py, of texts
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

_NEAR_BOUND = 1e-3  # nearer to the bound than this share of it, nothing is left to gain
_PATIENCE = 8  # rounds without a gain
_WIDEST = 4  # times the candidates that a round scores once nothing is gained any more
_CONFIRMED = 4  # candidates that are then scored in fp32: near the end bf16 ranks by its own rounding
_JITTER = 0.25  # of the standard deviation of gains, so that the same losers are not tried for ever
_MOST_TOGETHER = 24  # a round may change these positions at once; each combination costs an evaluation


@dataclass(frozen=True)
class Found:
    """What an optimizer found.

    Attributes:
        stopped: why: budget, plateau, bound, or target.
    """

    ids_L: Ids
    value: float
    stopped: str


Stop = Callable[[Ids], bool]
"""Whether ids are good enough: early stop by the success rate on held-back queries."""

Optimizer = Callable[[Problem, Ids, np.random.Generator, int, Stop | None], Found]


def optimize(
    problem: Problem,
    ids_L: Ids,
    optimizer: OptimizerName = "multiflip",
    candidates: int = 50,
    seed: int = 0,
    target: Stop | None = None,
) -> Found:
    """Optimize a passage until the budget is spent, nothing is gained any more, or a bound or target is reached."""
    generator = np.random.default_rng(seed)
    return _OPTIMIZERS[optimizer](problem, np.array(ids_L, np.int64), generator, candidates, target)


def _near(problem: Problem, value: float) -> bool:
    bound = problem.objective.bound
    return bound is not None and value >= (1 - _NEAR_BOUND) * bound


def _ending(problem: Problem, ids_L: Ids, value: float, target: Stop | None) -> str:
    """Note the value of a step; why the search ends with it, or nothing."""
    problem.note(value)
    if _near(problem, value):
        return "bound"
    return "target" if target is not None and target(ids_L) else ""


def _best_of(problem: Problem, best: Found, ids_L: Ids, target: Stop | None) -> Found:
    """The best text so far after a step that may have gone downhill; it says "budget" while the search goes on."""
    value = problem.score(ids_L)
    if value > best.value:
        best = Found(ids_L, value, "budget")
    return replace(best, stopped=_ending(problem, best.ids_L, best.value, target) or "budget")


def none(problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None) -> Found:
    """The start as it is: query stuffing is no optimization."""
    return Found(ids_L, problem.score(ids_L), "nothing to do")


def multiflip(
    problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None
) -> Found:
    """Score the best single flips of all positions at once, then join those that gain: the best, the best two, and so
    on.

    A round costs a gradient, `candidates` flips and up to 24 combinations, and often changes a dozen tokens. After one
    that gained nothing, the next looks wider.
    """
    value, idle = problem.score(ids_L), 0
    problem.note(value)
    free = problem.free_positions
    cost = GRADIENT_COST + candidates + 2
    tried: set[tuple[int, int]] = set()
    while problem.budget.left >= cost:
        if _near(problem, value):
            return Found(ids_L, value, "bound")
        if idle >= _PATIENCE:
            return Found(ids_L, value, "plateau")
        room = problem.budget.left - GRADIENT_COST - _CONFIRMED - 1
        width = max(candidates, min(candidates * min(2**idle, _WIDEST), room))
        gains = problem.first_order(problem.gradient(ids_L[None]), ids_L)
        places, tokens = _best_flips(problem, gains, free, width, generator, tried)
        if not len(places):  # of a small vocabulary all have been tried
            return Found(ids_L, value, "plateau")
        trial = np.tile(ids_L, (len(places), 1))
        trial[np.arange(len(places)), places] = tokens
        scores = problem.scores(trial)
        tried |= set(zip(places.tolist(), tokens.tolist(), strict=True))
        joined = _joined(ids_L, places, tokens, scores, value)[: max(1, problem.budget.left)]
        if len(joined) > 1:
            trial = np.concatenate([trial, joined[1:]])
            scores = np.concatenate([scores, problem.scores(joined[1:])])
        best, exact = _confirmed(problem, trial, scores, idle)
        if exact > value:
            ids_L, value, idle = best, exact, 0
            tried.clear()  # what lost beside other words may win beside these
            if target is not None and target(ids_L):
                problem.note(value)
                return Found(ids_L, value, "target")
        else:
            idle += 1
        problem.note(value)
    return Found(ids_L, value, "budget")


def _confirmed(problem: Problem, trial: Ids, scores: NDArray[np.float64], idle: int) -> tuple[Ids, float]:
    """The best candidate and its value in fp32; where nothing was gained before, the best few are asked."""
    count = 1 if not idle or problem.precision == "fp32" else max(1, min(_CONFIRMED, problem.budget.left))
    best = np.argsort(-scores, kind="stable")[:count]
    exact = problem.scores(trial[best], "fp32")
    return trial[best[int(exact.argmax())]], float(exact.max())


def _best_flips(
    problem: Problem,
    gains_LV: NDArray[np.float32],
    free: Ids,
    candidates: int,
    generator: np.random.Generator,
    tried: set[tuple[int, int]],
) -> tuple[Ids, Ids]:
    """Positions and tokens of the best flips, of each position its best 2B / L, some noise on their gains."""
    each = min(gains_LV.shape[1], -(-2 * candidates // len(free)) + len(tried) // len(free))
    part = gains_LV[free]
    columns = np.argpartition(-part, each - 1, axis=1)[:, :each]
    values = np.take_along_axis(part, columns, 1).ravel()
    places, tokens = np.repeat(free, each), problem.allowed_V[columns.ravel()]
    finite = np.isfinite(values)
    if not finite.any():
        return places[:0], tokens[:0]
    noisy = values + generator.normal(size=len(values)) * _JITTER * float(values[finite].std())
    fresh = np.array([pair not in tried for pair in zip(places.tolist(), tokens.tolist(), strict=True)])
    noisy[~finite | ~fresh] = -np.inf
    order = np.argsort(-noisy, kind="stable")[:candidates]
    order = order[np.isfinite(noisy[order])]
    return places[order], tokens[order]


def _joined(ids_L: Ids, places: Ids, tokens: Ids, scores: NDArray[np.float64], value: float) -> Ids:
    """The best flip of each position that gains, one more in each row."""
    rows, seen = list[Ids](), set[int]()
    current = ids_L.copy()
    for number in np.argsort(-scores, kind="stable"):
        if scores[number] <= value or len(rows) >= _MOST_TOGETHER:
            break
        if int(places[number]) in seen:
            continue
        seen.add(int(places[number]))
        current = current.copy()
        current[places[number]] = tokens[number]
        rows.append(current)
    return np.array(rows, np.int64).reshape(len(rows), len(ids_L))


def hotflip(
    problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None
) -> Found:
    """One random position a gradient."""
    value = problem.score(ids_L)
    while problem.budget.left >= GRADIENT_COST + candidates + 1:
        gains = problem.first_order(problem.gradient(ids_L[None]), ids_L)
        place = int(generator.choice(problem.free_positions))
        tokens = problem.allowed_V[_top(gains[place], candidates)]
        ids_L, value = _accept_if_better(problem, ids_L, value, place, tokens)
        if ending := _ending(problem, ids_L, value, target):
            return Found(ids_L, value, ending)
    return Found(ids_L, value, "budget")


def arca(problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None) -> Found:
    """Positions in turn; the gradient is averaged over copies with a random token at the position, since there the old
    token is to go.
    """
    best = Found(ids_L, problem.score(ids_L), "budget")
    copies, turn = 32, 0
    while problem.budget.left >= GRADIENT_COST * copies + candidates + 1:
        place = int(problem.free_positions[turn % len(problem.free_positions)])
        turn += 1
        around = np.tile(ids_L, (copies, 1))
        around[:, place] = generator.choice(problem.allowed_V, copies)
        gains = problem.first_order(problem.gradient(around), ids_L)
        tokens = problem.allowed_V[_top(gains[place], candidates)]
        if not len(tokens):  # no other word may stand there
            continue
        trial = np.tile(ids_L, (len(tokens), 1))
        trial[:, place] = tokens
        ids_L = trial[int(problem.scores(trial).argmax())]
        best = _best_of(problem, best, ids_L, target)
        if best.stopped != "budget":
            break
    return best


def gcg(problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None) -> Found:
    """Random flips among the 256 best of each position, the best of a batch always taken."""
    best = Found(ids_L, problem.score(ids_L), "budget")
    while problem.budget.left >= GRADIENT_COST + candidates + 1:
        gains = problem.first_order(problem.gradient(ids_L[None]), ids_L)
        # 256 as in GCG (Zou et al. 2023); of a position that fewer words may take, those
        best_of = {int(place): _top(gains[place], 256) for place in problem.free_positions}
        free = np.array([place for place, columns in best_of.items() if len(columns)], np.int64)
        if not len(free):
            return replace(best, stopped="plateau")
        rows = generator.integers(0, len(free), candidates)
        columns = [best_of[int(place)] for place in free[rows]]
        drawn = generator.integers(0, [len(each) for each in columns])
        tokens = problem.allowed_V[[each[number] for each, number in zip(columns, drawn, strict=True)]]
        trial = np.tile(ids_L, (candidates, 1))
        trial[np.arange(candidates), free[rows]] = tokens
        ids_L = trial[int(problem.scores(trial).argmax())]
        best = _best_of(problem, best, ids_L, target)
        if best.stopped != "budget":
            break
    return best


def gaslite(
    problem: Problem, ids_L: Ids, generator: np.random.Generator, candidates: int, target: Stop | None
) -> Found:
    """A smoothed gradient serves 20 positions, which are then settled in turn, each by the best of its candidates."""
    best = Found(ids_L, problem.score(ids_L), "budget")
    copies, positions = 50, 20  # as published, with half of 128 candidates from the top and half drawn below it
    half = max(1, min(64, candidates // 2))
    while problem.budget.left >= GRADIENT_COST * copies + 2 * half + 1:
        around = np.tile(ids_L, (copies, 1))
        places = generator.choice(problem.free_positions, copies)
        around[np.arange(copies), places] = generator.choice(problem.allowed_V, copies)
        gradient = problem.gradient(around)
        gradient /= np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)
        gains = problem.first_order(gradient, ids_L)
        chosen = generator.permutation(problem.free_positions)[:positions]
        for place in chosen:
            order = _top(gains[place], min(256, gains.shape[1]))
            picked = np.concatenate([order[:half], generator.permutation(order[half:])[:half]])
            if problem.budget.left < len(picked) + 2:
                break
            trial = np.tile(ids_L, (len(picked) + 1, 1))
            trial[:-1, place] = problem.allowed_V[picked]
            ids_L = trial[int(problem.scores(trial).argmax())]
        best = _best_of(problem, best, ids_L, target)
        if best.stopped != "budget":
            break
    return best


def _top(gains_V: NDArray[np.float32], count: int) -> Ids:
    """The columns of the largest gains, best first."""
    count = min(count, int(np.isfinite(gains_V).sum()))
    found = np.argpartition(-gains_V, max(0, count - 1))[:count]
    return found[np.argsort(-gains_V[found], kind="stable")]


def _accept_if_better(problem: Problem, ids_L: Ids, value: float, place: int, tokens: Ids) -> tuple[Ids, float]:
    if not len(tokens):  # no other word may stand there
        return ids_L, value
    trial = np.tile(ids_L, (len(tokens), 1))
    trial[:, place] = tokens
    best = trial[int(problem.scores(trial).argmax())]
    exact = problem.score(best)
    return (best, exact) if exact > value else (ids_L, value)


_OPTIMIZERS: dict[str, Optimizer] = {
    "multiflip": multiflip,
    "hotflip": hotflip,
    "arca": arca,
    "gcg": gcg,
    "gaslite": gaslite,
    "none": none,
}
