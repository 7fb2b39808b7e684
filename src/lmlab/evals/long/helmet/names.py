"""The names under which results of HELMET stand beside those of olmo-eval: `helmet_kilt_nq__8192`, and suites of them.

A suite is the mean of its tasks; `helmet_all__SIZE` and `helmet_nojudge__SIZE` are the means of their categories, so
that a category of many tasks counts no more than one of a single task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmlab.evals.long.helmet.families import FAMILIES, family_of

CATEGORIES = ("recall", "rag", "rerank", "longqa", "summ", "icl", "cite")
_SIZES = re.compile(r"_\d+shots?_balance$|_\d+$")
_RULER = {"niah_multikey_2": "niah_mk_2", "niah_multikey_3": "niah_mk_3", "niah_multivalue": "niah_mv"}


@dataclass(frozen=True)
class Reached:
    """What a data set of a configuration has reached.

    Attributes:
        name, size: of the set, and its tokens.
        value: its figure, 0 to 100; None where a judge has not spoken.
        judged: whether a judge is needed for it.
    """

    name: str
    size: int
    value: float | None
    judged: bool


def task_name(name: str, size: int) -> str:
    """The name of a data set of HELMET's configurations at a size: `kilt_popqa_3` at 8,192 tokens is
    `helmet_kilt_popqa__8192`.
    """
    needle = name.removeprefix("ruler_")
    base = _SIZES.sub("", name) if needle == name else _RULER.get(needle, needle)
    return f"helmet_{base}__{size}"


def suites(found: Sequence[Reached]) -> dict[str, float]:
    """The means of categories at each size, and of all categories, with the sets that need a judge and without; what
    lacks a figure is in no mean, and a mean that would lack one is left out.
    """
    means: dict[str, float] = {}
    for size in sorted({each.size for each in found}):
        here = [each for each in found if each.size == size]
        for title in ("all", "nojudge"):
            chosen = [each for each in here if title == "all" or not each.judged]
            categories = []
            for category in CATEGORIES:
                values = [each.value for each in chosen if _is_of(each, category)]
                if not values:
                    continue
                mean = _mean(values)
                categories.append(mean)
                whole = title == "all" or len(values) == len([each for each in here if _is_of(each, category)])
                if mean is not None:
                    means[f"helmet_{category}{'' if whole else '_nojudge'}__{size}"] = mean
            if len(categories) > 1 and (mean := _mean(categories)) is not None:
                means[f"helmet_{title}__{size}"] = mean
    return means


def _is_of(reached: Reached, category: str) -> bool:
    return FAMILIES[family_of(reached.name)].category == category


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def scores(found: Sequence[Reached]) -> Mapping[str, float | None]:
    """Every set by its name in olmo-eval."""
    return {task_name(each.name, each.size): each.value for each in found}
