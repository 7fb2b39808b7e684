"""What there is to know of a judging, as figures for JSON and a page."""

from __future__ import annotations

import math
from typing import Any

from lmlab.judging.measures.position_bias import order_effects
from lmlab.judging.pairs import Judged
from lmlab.judging.votes import preference

_BINS = 10  # of confidence, each 0.1 wide, as the counts below have it; the last one includes 1


def summarize(found: Judged, generations: int) -> dict[str, Any]:
    """Effects of order, histograms of confidence, missing labels by domain.

    Arguments:
        generations: votes of a question.
    """
    criteria = {}
    for name in found.judgments[0].average if found.judgments else ():
        matrices = [
            preference(*judgment.votes[name], generations) for judgment in found.judgments if name in judgment.votes
        ]
        effects = order_effects(matrices)
        sizes = [
            abs(2 * y - 1)
            for judgment in found.judgments
            for row in judgment.average[name].tolist()
            for y in row
            if y >= 0
        ]
        counts = [
            sum(low <= size < low + 0.1 or (low > 0.85 and size == 1) for size in sizes) // 2
            for low in (number / _BINS for number in range(_BINS))
        ]
        criteria[name] = {
            "labels": len(sizes) // 2,
            "position_bias": _known(effects.position_bias.value),
            "position_bias_error": effects.position_bias.standard_error,
            "swap_consistency": _known(effects.swap_consistency.value),
            "confidence": counts,
        }
    missing = [
        {"criterion": c, "domain": d, "reason": r, "questions": n, "of": found.asked[c, d]}
        for (c, d, r), n in sorted(found.missing.items())
    ]
    return {
        "groups": len(found.judgments),
        "questions": sum(found.asked.values()),
        "skipped_groups": found.skipped,
        "identical_groups": found.identical,
        "criteria": criteria,
        "missing": missing,
        "errors": found.errors,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
