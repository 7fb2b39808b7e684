"""One of several patches: how well a score tells right ones from wrong ones, and what is won by choosing with it.

A score that chooses well may rank badly, and one that ranks well may be no probability (SWE-RM, arXiv 2512.21919). So
three figures stand together: what the choice resolves, the area under the ROC curve, and the error of calibration.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.errors import UserError
from lmlab.stats import calibration_error, pass_at_k, roc_auc

_MOST_DRAWS = 2000  # ways to draw k of n that are gone through; of more, so many are drawn


@dataclass(frozen=True)
class Choice:
    """What choosing among k patches is worth.

    Attributes:
        chosen: the share of issues that the patch of the highest score resolves.
        one, any: that of one patch at random, and of the best choice that there is (pass@k).
        auc: the chance that a right patch of an issue scores above a wrong one, over all issues; None where all are of
            one kind.
        ece: how far scores are from chances, in the mean.
    """

    k: int
    issues: int
    chosen: float
    one: float
    any: float
    auc: float | None
    ece: float


def agreement(changes: Sequence[str]) -> list[float]:
    """The score of each patch that needs no model: the share of the samples that make the same changes."""
    counts = Counter(changes)
    return [counts[each] / len(changes) for each in changes]


def choose(runs: Sequence[Mapping[str, Any]], k: int, seed: int = 0) -> Choice:
    """Choose among k tries of each issue by how many agree, from summaries of n runs of one model.

    Raises:
        UserError: an instance has fewer than k tries with a verdict, or the runs are of an older lmlab, which did not
            note what patches change.
    """
    tries: dict[str, list[tuple[str, bool]]] = {}
    for run in runs:
        for name, each in run["instances"].items():
            if each["status"] != "infra":
                key = each["evidence"].get("changes")
                if key is None and each["status"] in ("resolved", "unresolved"):
                    raise UserError("The runs do not say what patches change.", "Evaluate them anew.")
                tries.setdefault(name, []).append((key or each["status"], each["status"] == "resolved"))
    if not tries:
        raise UserError("The runs have no verdicts.")
    if short := [name for name, found in tries.items() if len(found) < k]:
        raise UserError(f"A choice of {k} needs {k} tries of each instance; {short[0]} has {len(tries[short[0]])}.")
    generator = random.Random(seed)
    scores: list[float] = []
    right: list[bool] = []
    chosen, one, best = [], [], []
    for _, found in sorted(tries.items()):
        scores += agreement([key for key, _ in found])
        right += [resolved for _, resolved in found]
        chosen.append(_expected(found, k, generator))
        one.append(sum(resolved for _, resolved in found) / len(found))
        best.append(pass_at_k(len(found), sum(resolved for _, resolved in found), k))
    good = [score for score, each in zip(scores, right, strict=True) if each]
    bad = [score for score, each in zip(scores, right, strict=True) if not each]
    return Choice(
        k,
        len(tries),
        sum(chosen) / len(chosen),
        sum(one) / len(one),
        sum(best) / len(best),
        roc_auc(bad, good) if good and bad else None,
        calibration_error(scores, [float(each) for each in right]),
    )


def _expected(found: Sequence[tuple[str, bool]], k: int, generator: random.Random) -> float:
    """The chance that the choice among k of these is right; among equals any may be chosen."""
    if math.comb(len(found), k) <= _MOST_DRAWS:
        draws = [list(each) for each in itertools.combinations(found, k)]
    else:
        draws = [generator.sample(list(found), k) for _ in range(_MOST_DRAWS)]
    total = 0.0
    for draw in draws:
        scores = agreement([key for key, _ in draw])
        top = [resolved for score, (_, resolved) in zip(scores, draw, strict=True) if score == max(scores)]
        total += sum(top) / len(top)
    return total / len(draws)
