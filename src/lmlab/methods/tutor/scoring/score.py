"""Figures of a tutor: the score with its interval over chapters, and where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.evals.rows import Row
from lmlab.methods.tutor.config import ScoreConfig
from lmlab.stats import percentiles, resampled_means
from lmlab.words import counted

GRADED = ("ok", "empty_answer")
"""Statuses of rows that enter means. What could not be read is no grade, and never the lowest one."""
EXIT_UNGRADED = 3
SELF_JUDGING = "self_judging"
SELF_JUDGED = f"{SELF_JUDGING}: the judge is the tutor itself, and models like their own answers."
_DEFAULTS = ScoreConfig()
_UNASKED = ("skipped", "content_filter", "context_length", "endpoint_error")


def score(rows: Sequence[Row], config: ScoreConfig = _DEFAULTS) -> dict[str, Any]:
    """The report of graded rows, as JSON: figures are percent of the best grade.

    Intervals are those of a bootstrap over chapters, as questions about one chapter depend on each other.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("There are no graded answers.", "Grade some: lmlab tutor grade --help")
    judge = rows[0]["judge"]
    main, top = judge["headline"], float(judge["maximum"])
    graded = [row for row in rows if _is_graded(row, main)]
    as_zero = [_percent(row, main, top) if _is_graded(row, main) else 0.0 for row in rows]
    found: dict[str, Any] = {
        "n": len(rows),
        "n_graded": len(graded),
        "n_ungraded": len(rows) - len(graded),
        "by_status": dict(sorted(Counter(row["status"] for row in rows).items())),
        "headline": main,
        "total": _figure(graded, main, top, config),
        "total_ungraded_as_zero": round(float(np.mean(as_zero)), 10),
        "criteria": {name: _figure(_with(graded, name), name, top, config) for name in judge["criteria"]},
        "chapters": len({row["cluster"] for row in rows}),
        "tutor": {key: rows[0]["tutor"].get(key) for key in ("model", "revision", "format", "prompt_hash")},
        "judge": {"name": judge["name"], "prompt_hash": judge["prompt_hash"]},
        "tokens": _tokens(rows),
        "cost_usd": _cost(rows),
        "only_orders": _asked_nobody(graded),
        "breakdowns": breakdowns(graded, config),
        "warnings": _warnings(rows, graded, config),
    }
    return found


def too_many_ungraded(report: dict[str, Any], config: ScoreConfig) -> bool:
    """Whether so many rows lack a grade that the command ends with code 3."""
    return bool(report["n_ungraded"] > config.max_ungraded * report["n"])


def _is_graded(row: Row, name: str) -> bool:
    return row["status"] in GRADED and row["grades"].get(name) is not None


def _percent(row: Row, name: str, top: float) -> float:
    return 100.0 * float(row["grades"][name]) / top


def _with(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["grades"].get(name) is not None]


def _figure(rows: Sequence[Row], name: str, top: float, config: ScoreConfig) -> dict[str, Any]:
    """A mean with its interval; without one a reason."""
    return mean_figure([_percent(row, name, top) for row in rows], [row["cluster"] for row in rows], config)


def mean_figure(values: Sequence[float], clusters: Sequence[Hashable], config: ScoreConfig) -> dict[str, Any]:
    """The mean of dependent values with its interval over clusters: `value`, `low`, `high`, `n`, `clusters`."""
    count = len(set(clusters))
    found: dict[str, Any] = {"n": len(values), "chapters": count, "value": None, "low": None, "high": None}
    if not values:
        return found | {"reason": "no graded answer"}
    found["value"] = round(float(np.mean(np.asarray(values, float))), 10)
    if count < 2:
        return found | {"reason": "one chapter tells nothing of the spread between chapters"}
    low, high = percentiles(resampled_means(values, config.resamples, config.seed, clusters), config.level)
    return found | {"low": round(float(low), 10), "high": round(float(high), 10)}


def breakdowns(rows: Sequence[Row], config: ScoreConfig = _DEFAULTS) -> dict[str, dict[str, Any]]:
    """Figures of the headline for each value of each column, of rows with a grade."""
    if not rows:
        return {}
    judge = rows[0]["judge"]
    main, top = judge["headline"], float(judge["maximum"])
    columns: dict[str, Callable[[Row], str]] = {
        "domain": lambda row: row.get("domain") or "",
        "difficulty": lambda row: row.get("difficulty") or "",
        "misleading_question": lambda row: _yes(row["misleading_question"]),
        "answer_in_chapter": lambda row: _yes(row["answer_in_chapter"]),
        "closed_book": lambda row: _yes(row["closed_book"]),
        "domain x difficulty": lambda row: f"{row.get('domain') or '?'}, {row.get('difficulty') or '?'}",
    }
    if any(row.get("difficulty") == "hard" for row in rows):
        columns["hard slice"] = lambda row: "hard" if row.get("difficulty") == "hard" else ""
    if (terciles := _terciles(rows)) is not None:
        columns["chapter length"] = lambda row: terciles[row["cluster"]]
    for name in sorted({name for row in rows for name in row.get("extra", {})}):
        columns[name] = lambda row, name=name: row.get("extra", {}).get(name, "")  # type: ignore[misc]
    found: dict[str, dict[str, Any]] = {}
    for column, value_of in columns.items():
        values = sorted({value for row in rows if (value := value_of(row))})
        if not values or (column == "domain x difficulty" and values == ["?, ?"]) or len(values) > _most_values(rows):
            continue
        found[column] = {
            value: _figure([row for row in rows if value_of(row) == value], main, top, config) for value in values
        }
    return found


def _most_values(rows: Sequence[Row]) -> int:
    """A column of more values than this is a name, and no kind."""
    return max(12, len(rows) // 3)


def _terciles(rows: Sequence[Row]) -> dict[str, str] | None:
    """Of each chapter whether it is of the shortest, the middle or the longest third; None for fewer than three."""
    words = {row["cluster"]: int(row["chapter_words"]) for row in rows if row["chapter_words"]}
    if len(words) < 3 or len(words) != len({row["cluster"] for row in rows}):
        return None
    order = sorted(words, key=lambda name: (words[name], name))
    parts = np.array_split(np.arange(len(order)), 3)
    found: dict[str, str] = {}
    for label, part in zip(("1 short", "2 middle", "3 long"), parts, strict=True):
        low, high = words[order[part[0]]], words[order[part[-1]]]
        found |= {order[n]: f"{label} ({low:,} to {high:,} words)" for n in part}
    return found


def _yes(value: bool | None) -> str:
    """Yes or no; empty where the questions do not say."""
    return "" if value is None else "yes" if value else "no"


def _tokens(rows: Sequence[Row]) -> dict[str, int]:
    usage = [row.get("judged", {}).get("usage", {}) for row in rows]
    return {
        "prompts": sum(row["tutor"].get("prompt_tokens", 0) for row in rows),
        "answers": sum(row["tutor"].get("completion_tokens", 0) for row in rows),
        "chapters_cut": sum(row["tutor"].get("tokens_cut", 0) for row in rows),
        "judge_prompts": sum(each.get("prompt", 0) for each in usage),
        "judge_replies": sum(each.get("completion", 0) for each in usage),
    }


def _cost(rows: Sequence[Row]) -> float | None:
    """What was paid, where every price is known; never a guess. A model of this machine and a judge that asks nobody
    cost nothing; what imported answers and grades have cost is not known.
    """
    if any(row["tutor"].get("format") == "imported" for row in rows):
        return None
    paid = [row["tutor"]["cost_usd"] for row in rows if "cost_usd" in row["tutor"]]
    paid += [row["judged"]["cost_usd"] for row in rows if row.get("judged", {}).get("requests")]
    return round(sum(paid), 10) if None not in paid else None


def _asked_nobody(rows: Sequence[Row]) -> bool:
    """Whether grades are figures of a judge without replies, which order answers and say little of how right one is."""
    judged = [row["judged"] for row in rows if "requests" in row.get("judged", {})]
    return bool(judged) and not any(each["requests"] or each["raw"] for each in judged)


def _warnings(rows: Sequence[Row], graded: Sequence[Row], config: ScoreConfig) -> list[str]:
    told = []
    if len(rows) - len(graded) > config.max_ungraded * len(rows):
        told.append(
            f"{len(rows) - len(graded)} of {len(rows)} answers have no grade"
            f" (more than {100 * config.max_ungraded:g} %): the score is of the others."
        )
    if any(SELF_JUDGING in row["flags"] for row in rows):
        told.append(SELF_JUDGED)
    ids = Counter(row["id"] for row in rows)
    if doubled := sum(count > 1 for count in ids.values()):
        told.append(
            f"{counted(doubled, 'questions are')} there more than once; each was asked once, its rows share the grade."
        )
    if without := sum(not row["key_points"] for row in rows):
        told.append(
            f"{counted(without, 'questions have')} no key points (no_key_points): the judge alone grades there."
        )
    if cut := sum(bool(row["tutor"].get("tokens_cut")) for row in rows):
        told.append(f"{counted(cut, 'chapters were')} cut in the middle to fit the window.")
    if skipped := sum(row["status"] in _UNASKED for row in rows):
        told.append(f"{counted(skipped, 'questions were')} not answered, and count in no mean.")
    if len({row["cluster"] for row in rows}) == 1:
        told.append("All questions are about one chapter, and one chapter gives no interval.")
    return told
