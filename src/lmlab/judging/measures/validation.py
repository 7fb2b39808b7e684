"""How far a judge may be trusted: its grades beside people's."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.judging.measures.agreement import Agreement, grade_agreement
from lmlab.judging.measures.consistency import SelfConsistency, self_consistency
from lmlab.judging.measures.length import length_effect
from lmlab.judging.measures.own_family import own_family_bias
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.parser import HALF_POINTS
from lmlab.stats import Interval, bootstrap

Floats = NDArray[np.float64]
_WITHIN = 0.5  # one step of a scale in half points
_FEWEST = 3  # systems that can be ranked


@dataclass(frozen=True)
class Validation:
    """Agreement of a judge with people.

    Attributes:
        agreement: of all items.
        length_effect: grade points that one unit of log length adds to the judge's grade beyond people's.
        by: column -> value -> agreement within it.
        systems: rank correlation of the systems' mean grades, with their number; None for fewer than three.
        ceiling: agreement of a second person with the first; None where there is none.
        own_family: grade points that answers of the judge's own family gain beyond what people give them, against all
            others; None where it was not asked for, or one side is empty.
        consistency: of several grades of each answer by the judge.
        reasons: figure -> why it is None.
    """

    agreement: Agreement
    length_effect: Interval[float] | None
    by: Mapping[str, Mapping[str, Agreement]] = field(default_factory=dict)
    systems: tuple[float, int] | None = None
    ceiling: Agreement | None = None
    own_family: Interval[float] | None = None
    consistency: SelfConsistency | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def passes(self, min_spearman: float | None = None, max_bias: float | None = None) -> list[str]:
        """What a gate holds against the judge; empty where it passes. A figure that is not defined does not pass."""
        failures = []
        spearman, bias = self.agreement.figures["spearman"], self.agreement.figures["bias"]
        if min_spearman is not None and (spearman is None or not spearman.value >= min_spearman):
            said = "not defined" if spearman is None else f"{spearman.value:.3f}"
            failures.append(f"Spearman's correlation is {said}, below {min_spearman:g}")
        if max_bias is not None and (bias is None or not abs(bias.value) <= max_bias):
            said = "not defined" if bias is None else f"{bias.value:+.3f}"
            failures.append(f"the bias is {said}, beyond {max_bias:g}")
        return failures


def validate_judge(
    judge: ArrayLike,
    people: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    lengths: ArrayLike | None = None,
    systems: Sequence[str] | None = None,
    second_person: ArrayLike | None = None,
    by: Mapping[str, Sequence[Any]] | None = None,
    own_family: ArrayLike | None = None,
    samples: ArrayLike | None = None,
    scale: Scale = HALF_POINTS,
    resamples: int = 1000,
    seed: int = 0,
) -> Validation:
    """All figures of a judge; see `grade_agreement` for those of a table.

    Weighted kappa and equal grades are of the grades on the grid of the scale, to which means over samples are rounded.

    Arguments:
        judge, people: a grade for each item; not-a-number where there is none.
        clusters: what each item belongs to (a chapter): intervals draw whole ones.
        lengths: of the answers, for the effect of length.
        systems: who answered each.
        second_person: grades of another person, for the ceiling.
        by: columns by whose values agreement is told too.
        own_family: which answers are of the judge's own family.
        samples: several grades of each answer by the judge, [answers, samples].

    Raises:
        UserError: no item has both grades.
    """
    f, y = np.asarray(judge, float), np.asarray(people, float)
    agreement = on_scale(f, y, clusters, scale, resamples, seed)
    known = np.isfinite(f) & np.isfinite(y)
    kept = None if clusters is None else [each for each, keep in zip(clusters, known, strict=True) if keep]
    slope = None
    if lengths is not None:
        slope = length_effect((f - y)[known], np.asarray(lengths, float)[known], kept, resamples, seed)
    parts: dict[str, dict[str, Agreement]] = {}
    for column, values in (by or {}).items():
        for value in sorted({str(each) for each in values}):
            chosen = np.array([str(each) == value for each in values]) & known
            if chosen.any():
                own = None if clusters is None else [e for e, keep in zip(clusters, chosen, strict=True) if keep]
                parts.setdefault(column, {})[value] = on_scale(f[chosen], y[chosen], own, scale, resamples, seed)
    ceiling = None
    if second_person is not None:
        ceiling = on_scale(np.asarray(second_person, float), y, clusters, scale, resamples, seed)
    kin = None
    if own_family is not None:
        kin = own_family_bias((f - y)[known], np.asarray(own_family, bool)[known], kept, resamples, seed)
    return Validation(
        agreement,
        slope,
        parts,
        _of_systems(f, y, known, systems),
        ceiling,
        kin,
        None if samples is None else self_consistency(samples, clusters, resamples, seed),
        _reasons(agreement, f[known], y[known]),
    )


def on_scale(
    judge: Floats, people: Floats, clusters: Sequence[Hashable] | None, scale: Scale, resamples: int, seed: int
) -> Agreement:
    """The figures of `grade_agreement`, with kappa and equal grades on the grid, and the share within half a point."""
    found = grade_agreement(judge, people, clusters, resamples, seed)
    judge_G, people_G = _on_grid(judge, scale), _on_grid(people, scale)
    rounded = _same(judge_G, judge) and _same(people_G, people)
    grid = found if rounded else grade_agreement(judge_G, people_G, clusters, resamples, seed)
    known = np.isfinite(judge) & np.isfinite(people)
    gaps = np.abs(judge - people)[known]
    kept = None if clusters is None else [each for each, keep in zip(clusters, known, strict=True) if keep]
    within = bootstrap(lambda chosen: _share_within(gaps[chosen]), len(gaps), 0.95, resamples, seed, kept)
    figures = {**found.figures, "kappa": grid.figures["kappa"], "exact": grid.figures["exact"], "within_half": within}
    return Agreement(found.items, found.missing, figures)


def system_means(grades: Floats, systems: Sequence[str]) -> dict[str, float]:
    """The mean grade of each system, of the items that have one."""
    found: dict[str, list[float]] = {}
    for system, grade in zip(systems, grades, strict=True):
        if math.isfinite(grade):
            found.setdefault(system, []).append(float(grade))
    return {system: float(np.mean(values)) for system, values in found.items()}


def _of_systems(
    f: Floats, y: Floats, known: NDArray[np.bool_], systems: Sequence[str] | None
) -> tuple[float, int] | None:
    from scipy.stats import spearmanr

    if systems is None:
        return None
    kept = [each for each, keep in zip(systems, known, strict=True) if keep]
    of_judge, of_people = system_means(f[known], kept), system_means(y[known], kept)
    names = sorted(of_people)
    pairs: list[list[float]] = [[each[name] for name in names] for each in (of_judge, of_people)]
    if len(names) < _FEWEST or any(len(set(each)) < 2 for each in pairs):
        return None
    return float(spearmanr(*pairs).statistic), len(names)


def _reasons(found: Agreement, f: Floats, y: Floats) -> dict[str, str]:
    constant = [who for who, grades in (("the judge", f), ("people", y)) if len(grades) and not np.ptp(grades)]
    said = f"{' and '.join(constant)} gave one grade to all items" if constant else "there are too few items"
    return {name: said for name, figure in found.figures.items() if figure is None}


def _share_within(gaps: Floats) -> float:
    return float((gaps <= _WITHIN + 1e-9).mean())


def _on_grid(grades: Floats, scale: Scale) -> Floats:
    return scale.minimum + np.round((grades - scale.minimum) / scale.step) * scale.step


def _same(first: Floats, second: Floats) -> bool:
    return bool(np.array_equal(first, second, equal_nan=True))
