"""Two tutors on the same questions: paired, over chapters, and no longer than is needed to tell them apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.evals.rows import Row
from lmlab.judging import at_equal_length, length_controlled
from lmlab.methods.tutor.config import ScoreConfig
from lmlab.methods.tutor.scoring.grade import Grade
from lmlab.methods.tutor.scoring.score import GRADED
from lmlab.stats import paired_bootstrap
from lmlab.words import counted

_DEFAULTS = ScoreConfig()
_FEWEST_CHAPTERS = 5  # a bootstrap of fewer says too little to stop by


def compare_rows(first: Sequence[Row], second: Sequence[Row], config: ScoreConfig = _DEFAULTS) -> dict[str, Any]:
    """The second tutor less the first, in percent of the best grade, over the questions that both have a grade for.

    Raises:
        UserError: they were graded by different judges or wordings, or share no graded question.
    """
    found, pairs = _compared(first, second, config)
    return found | {"equal_length": _at_equal_length(pairs, config)}


def _compared(
    first: Sequence[Row], second: Sequence[Row], config: ScoreConfig
) -> tuple[dict[str, Any], list[tuple[Row, Row]]]:
    """The comparison as it is, and the rows that were compared."""
    judges = [rows[0]["judge"] if rows else {} for rows in (first, second)]
    kept = [{key: judge.get(key) for key in ("name", "prompt_hash")} for judge in judges]
    if kept[0] != kept[1]:
        raise UserError(
            f"The tutors were graded by different judges, or under different wordings: '{kept[0]['name']}' and"
            f" '{kept[1]['name']}'.",
            "Grade both by one: lmlab tutor grade.",
        )
    main, top = judges[0]["headline"], float(judges[0]["maximum"])
    pairs = _pairs(first, second, main)
    if not pairs:
        raise UserError("The tutors share no question that both have a grade for.", "Ask both the same questions.")
    values = np.array([[100 * a["grades"][main] / top, 100 * b["grades"][main] / top] for a, b in pairs])
    clusters = [a["cluster"] for a, _ in pairs]
    # a p-value of 0.05 is known to within 0.005 from 2,000 draws
    found, p = paired_bootstrap(
        values[:, 0], values[:, 1], config.level, max(config.resamples, 2000), config.seed, clusters
    )
    known = bool(np.isfinite(found.low))
    told = {
        "first": first[0]["tutor"]["model"],
        "second": second[0]["tutor"]["model"],
        "judge": kept[0],
        "headline": main,
        "n": len(pairs),
        "chapters": len(set(clusters)),
        "first_score": round(float(values[:, 0].mean()), 10),
        "second_score": round(float(values[:, 1].mean()), 10),
        "difference": round(found.value, 10),
        "low": round(float(found.low), 10) if known else None,
        "high": round(float(found.high), 10) if known else None,
        "p": round(p, 10) if known else None,
        "better": int((values[:, 1] > values[:, 0]).sum()),
        "worse": int((values[:, 1] < values[:, 0]).sum()),
        **({} if known else {"reason": "one chapter tells nothing of the spread between chapters"}),
    }
    return told, pairs


def _at_equal_length(pairs: Sequence[tuple[Row, Row]], config: ScoreConfig) -> dict[str, Any]:
    """The difference as it would be between answers of equal length, and the share of wins likewise: a judge that likes
    length takes it for quality.
    """
    main, top = pairs[0][0]["judge"]["headline"], float(pairs[0][0]["judge"]["maximum"])
    gaps = np.array([100 * (b["grades"][main] - a["grades"][main]) / top for a, b in pairs])
    lengths = np.array([[len(row["tutor"]["output"]) for row in pair] for pair in pairs])
    clusters = [a["cluster"] for a, _ in pairs]
    points = at_equal_length(gaps, lengths[:, 1], lengths[:, 0], clusters, config.level, seed=config.seed)
    wins = length_controlled(
        (np.sign(gaps) + 1) / 2, lengths[:, 1], lengths[:, 0], clusters=clusters, resamples=200, seed=config.seed
    )
    told = points.controlled
    found: dict[str, Any] = {
        "first_length": round(float(lengths[:, 0].mean()), 10),
        "second_length": round(float(lengths[:, 1].mean()), 10),
        "difference": None if told is None else round(told.value, 10),
        "low": None if told is None or not np.isfinite(told.low) else round(told.low, 10),
        "high": None if told is None or not np.isfinite(told.high) else round(told.high, 10),
        "slope": round(points.slope, 10),
        "wins": round(wins.raw.value, 10),
    }
    return found | {"wins_at_equal_length": None if wins.controlled is None else round(wins.controlled.value, 10)}


def compare_until_known(
    first: Grade, second: Grade, chapters: dict[str, list[str]], config: ScoreConfig, looks: int = 5
) -> dict[str, Any]:
    """Grade both tutors chapter by chapter, in an order drawn by the seed, and stop at the first of a few looks whose
    paired interval excludes 0.

    The chance of a false difference is shared among the looks (Bonferroni), so that it stays below 1 - level however
    early one stops; what is saved are the grades of the chapters that were not needed.

    Arguments:
        first, second: what grades questions of each tutor, by their ids.
        chapters: ids of the shared questions, by chapter.
        looks: how often the interval is looked at, at most.
    """
    order = sorted(chapters)
    random.Random(config.seed).shuffle(order)
    level = 1 - (1 - config.level) / looks
    ends = sorted({max(min(_FEWEST_CHAPTERS, len(order)), round(len(order) * n / looks)) for n in range(1, looks + 1)})
    rows: tuple[list[Row], list[Row]] = ([], [])
    start = 0
    found: dict[str, Any] = {}
    pairs: list[tuple[Row, Row]] = []
    for look, end in enumerate(ends, 1):
        ids = [id for name in order[start:end] for id in chapters[name]]
        start = end
        for known, grade in zip(rows, (first, second), strict=True):
            known += grade(ids)
        if not _pairs(rows[0], rows[1], rows[0][0]["judge"]["headline"] if rows[0] else ""):
            continue
        found, pairs = _compared(rows[0], rows[1], config.model_copy(update={"level": level}))
        found |= {"looks": look, "level_of_a_look": level, "chapters_seen": end, "chapters_of": len(order)}
        if found["low"] is not None and (found["low"] > 0 or found["high"] < 0):
            break
    if not found:
        raise UserError("The tutors share no question that both have a grade for.", "Ask both the same questions.")
    return found | {"equal_length": _at_equal_length(pairs, config)}


def _pairs(first: Sequence[Row], second: Sequence[Row], main: str) -> list[tuple[Row, Row]]:
    """The rows of questions that both have a grade for, in the order of the first."""
    graded = [
        {row["id"]: row for row in rows if row["status"] in GRADED and row["grades"].get(main) is not None}
        for rows in (first, second)
    ]
    return [(row, graded[1][id]) for id, row in graded[0].items() if id in graded[1]]


def verdict(found: dict[str, Any]) -> str:
    """A comparison in a sentence."""
    gap = f"{found['difference']:+.1f} points"
    if found["low"] is None:
        return f"{gap} over {counted(found['n'], 'questions')}: {found['reason']}."
    over = f"{counted(found['n'], 'questions')} of {counted(found['chapters'], 'chapters')}"
    told = f"{gap} [{found['low']:+.1f}, {found['high']:+.1f}] over {over}"
    known = (
        "which is better" if found["low"] > 0 else "which is worse" if found["high"] < 0 else "no difference is shown"
    )
    looked = f"; after {found['chapters_seen']} of {found['chapters_of']} chapters" if "looks" in found else ""
    return f"{told}: {known}{looked}."


def equal_length_verdict(found: dict[str, Any]) -> str:
    """What is left of a comparison at equal length, in a sentence."""
    at = found["equal_length"]
    sizes = f"answers of {at['first_length']:,.0f} and {at['second_length']:,.0f} characters on average"
    if at["difference"] is None:
        return f"At equal length: not known, as all {sizes} differ by the same."
    inside = "" if at["low"] is None else f" [{at['low']:+.1f}, {at['high']:+.1f}]"
    return f"At equal length: {at['difference']:+.1f} points{inside} ({sizes})."
