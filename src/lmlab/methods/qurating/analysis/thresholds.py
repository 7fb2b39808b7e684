"""What a threshold on a rating keeps and drops: by domain, by length, and texts at its edge to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)  # of tokens that are kept, from hardly filtered to a tenth
_LENGTHS = ("short", "medium", "long")
_CHARACTERS = 500  # of each text: enough to see what was rated


def what_thresholds_keep(
    ratings: NDArray[np.float64],
    lengths: NDArray[np.float64],
    domains: Sequence[str],
    ids: Sequence[Any],
    texts: Sequence[str],
    examples: int = 2,
    shares: Sequence[float] = SHARES,
) -> list[dict[str, Any]]:
    """For each share of the tokens that is kept: the threshold, and what it does.

    Arguments:
        ratings: of rows, [N]; those that are not finite are passed over.
        lengths: in tokens, [N].
        texts: to read; empty for none.
        examples: texts on either side of the threshold.

    Returns:
        `kept` (share of tokens), `threshold`, `rows`; `domains` and `lengths`, for each label the share of its own
        tokens that is kept; `above` and `below`, the rows nearest to the threshold. Thirds of rows are short, medium
        and long.
    """
    finite = np.flatnonzero(np.isfinite(ratings) & (lengths > 0))
    if not len(finite):
        return []
    order = finite[np.argsort(-ratings[finite], kind="stable")]
    spent = np.cumsum(lengths[order])
    thirds = np.searchsorted(np.quantile(lengths[finite], [1 / 3, 2 / 3]), lengths)
    groups = {
        "domains": np.array([str(label) for label in domains], dtype=object),
        "lengths": np.array(_LENGTHS, dtype=object)[thirds],
    }
    found = []
    for share in shares:
        last = min(int(np.searchsorted(spent, share * spent[-1])), len(order) - 1)
        threshold = float(ratings[order[last]])
        kept = ratings[finite] >= threshold
        row: dict[str, Any] = {
            "kept": float(lengths[finite][kept].sum() / spent[-1]),
            "threshold": threshold,
            "rows": int(kept.sum()),
        }
        for name, labels in groups.items():
            row[name] = _shares_kept(labels[finite], lengths[finite], kept)
        cut = int(np.searchsorted(-ratings[order], -threshold, side="right"))
        sides = {"above": order[max(0, cut - examples) : cut], "below": order[cut : cut + examples]}
        for name, places in sides.items():
            row[name] = [
                {"id": str(ids[place]), "rating": float(ratings[place]), "text": texts[place][:_CHARACTERS]}
                for place in places.tolist()
                if texts
            ]
        found.append(row)
    return found


def _shares_kept(labels: Any, lengths: NDArray[np.float64], kept: NDArray[np.bool_]) -> dict[str, float]:
    found = {}
    for label in sorted(set(labels.tolist())):
        mine = labels == label
        found[label] = float(lengths[mine & kept].sum() / lengths[mine].sum())
    return found
