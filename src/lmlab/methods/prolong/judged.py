"""Answers and summaries of a measurement, judged: what substrings and ROUGE do not see.

As in HELMET (Yen et al. 2024, section 3.3), an answer is worth fluency (0 or 1) times correctness (0 to 3), and a
summary fluency times 2 P R / (P + R): recall is what share of the reference's claims it makes, precision what share of
its own claims the reference bears out. All are from 0 to 1 here. The wording is ours.

A judge that is not asked in words, such as `coverage`, gives no fluency, which then counts as 1 and is shown as none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.evals.long import read_results, read_suite_rows, score_over_contexts
from lmlab.evals.rows import Row
from lmlab.files import write_json
from lmlab.judging import AnswerItem, AnswerJudgeConfig, counted, make_answer_judge, run_judge
from lmlab.judging.answers.rows import REPLIES
from lmlab.judging.offline.sentences import sentences
from lmlab.methods.prolong.evaluate import JUDGED
from lmlab.progress import progress

_MOST_CLAIMS = 24  # of a text that goes on and on
Part = Literal["fluency", "correctness", "recall", "precision"]
_RUBRICS: dict[Part, str] = {
    "fluency": "reader-fluency-v1",
    "correctness": "reader-correctness-v1",
    "recall": "reader-points-v1",
    "precision": "reader-points-v1",
}


def judge_results(
    directory: Path, config: AnswerJudgeConfig, tasks: Sequence[str] = ("summ",), new_run: bool = False
) -> dict[str, Any]:
    """Judge the written answers of a measurement; grades and replies stand in `judged/`, figures in `judged.json`.

    What was graded is not graded again. Summaries are judged by claims, answers of other tasks by the expected ones.

    Arguments:
        tasks: by name, all variants of each.
        new_run: let a folder hold another judge's grades too.

    Raises:
        UserError: the directory holds no written answers of these tasks, or grades of another judge.
    """
    if read_results(directory)["mode"] != "generate":
        raise UserError(
            f"'{directory}' was measured in the mode forced, in which nothing is written.", "--mode generate"
        )
    rows = [row for row in read_suite_rows(directory) if row["name"].partition(".")[0] in tasks]
    if not rows:
        raise UserError(f"'{directory}' has no answers of {', '.join(tasks)}.", "Name measured tasks with --task.")
    if any("question" not in row for row in rows):
        raise UserError(f"The rows in '{directory}' do not tell their questions.", "Measure again.")
    # a judge that does not read the rubric has a criterion of its own, and nothing to say of fluency
    asked = make_answer_judge(config.model_copy(update={"rubric": _rubric("reader-fluency-v1")})).headline == "fluency"
    grades: dict[str, dict[Part, float | None]] = {row["id"]: {} for row in rows}
    counts: dict[str, Any] = {}
    for part, rubric in _RUBRICS.items():
        chosen = [row for row in rows if part in _parts(row, asked)]
        if not chosen:
            continue
        place = directory / "judged" / part
        # one file of replies for all parts, as the ceiling of the cost counts what that file has paid for
        judge = make_answer_judge(config.model_copy(update={"rubric": _rubric(rubric)}), place.parent / REPLIES)
        with progress(part, len(chosen), "answers") as advance:
            found = run_judge(judge, [_item(row, part) for row in chosen], place, new_run, advance)
        counts[part] = counted(found) | {"judge": judge.name}
        for row, grade in zip(chosen, found, strict=True):
            value = grade["grades"].get(judge.headline) if grade["status"] in ("ok", "empty_answer") else None
            low, high = judge.scale.minimum, judge.scale.maximum
            grades[row["id"]][part] = None if value is None else min(1.0, max(0.0, (value - low) / (high - low)))
    results = {"tasks": _figures(rows, grades), "judged": counts, "rows": grades}
    write_json(directory / JUDGED, results)
    return results


def judged_score(parts: Mapping[Part, float | None], summary: bool) -> float | None:
    """What an answer is worth, 0 to 1; None where a grade is missing that it needs."""
    fluency = parts.get("fluency", 1.0)
    if fluency == 0:
        return 0.0
    if not summary:
        correctness = parts.get("correctness")
        return None if fluency is None or correctness is None else fluency * correctness
    recall, precision = parts.get("recall"), parts.get("precision")
    if fluency is None or recall is None or precision is None:
        return None
    return fluency * 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _parts(row: Row, asked: bool) -> tuple[Part, ...]:
    fluency: tuple[Part, ...] = ("fluency",) if asked else ()
    return (*fluency, "recall", "precision") if _is_summary(row) else (*fluency, "correctness")


def _is_summary(row: Row) -> bool:
    return str(row["name"]).partition(".")[0] == "summ"


def _item(row: Row, part: Part) -> AnswerItem:
    """What the judge is shown: a text, and the claims or expected answers that it is held against."""
    question, output = row["question"], str(row["output"]).strip()
    points: Sequence[str] = ()
    text = output
    if part == "correctness":
        points = row.get("answers") or [row["answer"]]
    elif part == "recall":
        points = sentences(row["answer"])[:_MOST_CLAIMS]
    elif part == "precision" and output:  # without a claim there is nothing to bear out: the empty answer stays empty
        text, points = row["answer"], sentences(output)[:_MOST_CLAIMS]
    return AnswerItem(id=row["id"], question=question, answer=text, key_points=tuple(points), group=row["context"])


def _rubric(name: str) -> str:
    return str(resources.files("lmlab.methods.prolong") / "rubrics" / f"{name}.yaml")


def _figures(rows: Sequence[Row], grades: Mapping[str, Mapping[Part, float | None]]) -> dict[str, Any]:
    """For each task and length the mean score with its 95 % bootstrap interval over contexts, and the parts' means."""
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["name"], row["length"]].append(row)
    found: dict[str, dict[str, Any]] = {}
    for (name, length), chosen in cells.items():
        scored = [(row["context"], judged_score(grades[row["id"]], _is_summary(row))) for row in chosen]
        known = [(context, score) for context, score in scored if score is not None]
        cell: dict[str, Any] = {"n": len(chosen), "graded": len(known)}
        if known:
            values = np.array([score for _, score in known])
            cell |= score_over_contexts(partial(_mean_of, values), [context for context, _ in known])
        for part in _RUBRICS:
            given = [value for row in chosen if (value := grades[row["id"]].get(part)) is not None]
            cell[part] = float(np.mean(given)) if given else None
        found.setdefault(name, {})[str(length)] = cell
    return found


def _mean_of(values: NDArray[np.float64], units: NDArray[np.int64]) -> float:
    return float(values[units].mean())
