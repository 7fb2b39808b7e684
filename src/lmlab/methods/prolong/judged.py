"""Answers and summaries of a measurement, judged: what substrings and ROUGE do not see.

As in HELMET (Yen et al. 2024, section 3.3), an answer is worth fluency (0 or 1) times correctness (0 to 3), and a
summary fluency times 2 P R / (P + R): recall is what share of the reference's claims it makes, precision what share of
its own claims the reference bears out. All are from 0 to 1 here. The wording is ours.

A judge that is not asked in words, such as `coverage`, gives no fluency, which then counts as 1 and is shown as none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.endpoints import Estimate
from lmlab.errors import UserError
from lmlab.evals.long import read_results, read_suite_rows, score_over_contexts
from lmlab.evals.rows import Row
from lmlab.files import write_json
from lmlab.judging import AnswerItem, AnswerJudge, AnswerJudgeConfig, counted, make_answer_judge, run_judge
from lmlab.judging.answers.grades import GRADED
from lmlab.judging.answers.rows import REPLIES
from lmlab.judging.offline.sentences import sentences
from lmlab.methods.prolong.citations import (
    Pair,
    borne_out,
    classifier_of,
    kept_decisions,
    most_pairs,
    pair_item,
    statements_of,
)
from lmlab.methods.prolong.evaluate import JUDGED
from lmlab.progress import progress

_MOST_CLAIMS = 24  # of a text that goes on and on
Part = Literal["fluency", "correctness", "recall", "precision"]
_CLAIMS = "reader-points-v1"
_RUBRICS: dict[Part, str] = {
    "fluency": "reader-fluency-v1",
    "correctness": "reader-correctness-v1",
    "recall": _CLAIMS,
    "precision": _CLAIMS,
}
_PLACE = "judged"
_BORNE_OUT = 0.5  # the share from which a judge that is asked calls a claim borne out


def judge_results(
    directory: Path, config: AnswerJudgeConfig, tasks: Sequence[str] = ("summ",), new_run: bool = False
) -> dict[str, Any]:
    """Judge the written answers of a measurement; grades and replies stand in `judged/`, figures in `judged.json`.

    What was graded is not graded again. Summaries are judged by claims, answers with citations (`alce_*`) by whether
    documents bear out what they are cited for, answers of other tasks by the expected ones.

    Arguments:
        tasks: by name, all variants of each.
        new_run: let a folder hold another judge's grades too.

    Raises:
        UserError: the directory holds no written answers of these tasks, or grades of another judge.
    """
    rows, asked = _rows_of(directory, tasks), _is_asked(config)
    grades: dict[str, dict[Part, float | None]] = {row["id"]: {} for row in rows}
    counts: dict[str, Any] = {}
    for part, rubric in _RUBRICS.items():
        chosen = [row for row in rows if part in _parts(row, asked)]
        if not chosen:
            continue
        judge, place = _judge_of(config, directory, rubric), directory / _PLACE / part
        with progress(part, len(chosen), "answers") as advance:
            found = run_judge(judge, [_item(row, part) for row in chosen], place, new_run, advance)
        counts[part] = counted(found) | {"judge": judge.name}
        for row, grade in zip(chosen, found, strict=True):
            grades[row["id"]][part] = _share_of(judge, grade)
    if cited := [row for row in rows if _cites(row)]:
        judge = _judge_of(config, directory, _CLAIMS)
        decide = _Deciding(judge, asked, directory / _PLACE / "citations", new_run)
        held = borne_out([statements_of(row) for row in cited], decide)
        counts["citations"] = counted(decide.rows) | {"judge": judge.name}
        for row, each in zip(cited, held, strict=True):
            grades[row["id"]] = {"recall": each.recall, "precision": each.precision}
    results = {"tasks": _figures(rows, grades), "judged": counts, "rows": grades}
    write_json(directory / JUDGED, results)
    return results


def estimate_judgment(directory: Path, config: AnswerJudgeConfig, tasks: Sequence[str] = ("summ",)) -> Estimate | None:
    """What `judge_results` would ask for at most, and what that costs; nothing is sent or written. None for a judge
    that asks nobody.

    Raises:
        UserError: as `judge_results`.
    """
    rows, asked = _rows_of(directory, tasks), _is_asked(config)
    found: list[Estimate | None] = []
    for part, rubric in _RUBRICS.items():
        items = [_item(row, part) for row in rows if part in _parts(row, asked)]
        if shown := [item for item in items if item.answer.strip()]:
            found.append(_judge_of(config, directory, rubric).estimate(shown))
    if cited := [statements_of(row) for row in rows if _cites(row)]:
        judge = _judge_of(config, directory, _CLAIMS)
        if not asked:
            classifier_of(judge)
        found.append(judge.estimate([pair_item(pair) for pair in most_pairs(cited)]))
    known = [each for each in found if each is not None]
    # the parts have one file of replies, and what it has paid for counts once
    return replace(sum(known[1:], known[0]), spent_usd=known[0].spent_usd) if known else None


def _rows_of(directory: Path, tasks: Sequence[str]) -> list[Row]:
    """The written answers of these tasks.

    Raises:
        UserError: there are none, or they were measured by a version that kept less of them.
    """
    if read_results(directory)["mode"] != "generate":
        raise UserError(
            f"'{directory}' was measured in the mode forced, in which nothing is written.", "--mode generate"
        )
    rows = [row for row in read_suite_rows(directory) if row["name"].partition(".")[0] in tasks]
    if not rows:
        raise UserError(f"'{directory}' has no answers of {', '.join(tasks)}.", "Name measured tasks with --task.")
    if any("question" not in row or (_cites(row) and "cited" not in row) for row in rows):
        raise UserError(f"The rows in '{directory}' do not tell what was asked and shown.", "Measure again.")
    return rows


def _is_asked(config: AnswerJudgeConfig) -> bool:
    """Whether a judge reads the rubric: one that does not has a criterion of its own, and nothing to say of fluency."""
    return make_answer_judge(_with_rubric(config, _RUBRICS["fluency"])).headline == "fluency"


def _judge_of(config: AnswerJudgeConfig, directory: Path, rubric: str) -> AnswerJudge:
    # one file of replies for all parts, as the ceiling of the cost counts what that file has paid for
    return make_answer_judge(_with_rubric(config, rubric), directory / _PLACE / REPLIES)


def _with_rubric(config: AnswerJudgeConfig, name: str) -> AnswerJudgeConfig:
    path = resources.files("lmlab.methods.prolong") / "rubrics" / f"{name}.yaml"
    return config.model_copy(update={"rubric": str(path)})


def _share_of(judge: AnswerJudge, row: Mapping[str, Any]) -> float | None:
    """A grade from 0 to 1; None where there is none."""
    value = row["grades"].get(judge.headline) if row["status"] in GRADED else None
    low, high = judge.scale.minimum, judge.scale.maximum
    return None if value is None else min(1.0, max(0.0, (value - low) / (high - low)))


class _Deciding:
    """Whether texts bear out claims, by a classifier or by a judge that is asked, whose grades are kept.

    Attributes:
        rows: of all that was decided.
    """

    def __init__(self, judge: AnswerJudge, asked: bool, place: Path, new_run: bool) -> None:
        self.judge, self.place, self.new_run = judge, place, new_run
        self.classifier = None if asked else classifier_of(judge)
        self.rows: list[dict[str, Any]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[bool | None]:
        with progress("citations", len(pairs), "decisions") as advance:
            if self.classifier is not None:
                self.rows += [{"status": "ok"}] * len(pairs)
                return list(kept_decisions(self.classifier, pairs, self.place, advance))
            rows = run_judge(self.judge, [pair_item(pair) for pair in pairs], self.place, self.new_run, advance)
        self.rows += rows
        shares = [_share_of(self.judge, row) for row in rows]
        return [None if share is None else share > _BORNE_OUT for share in shares]


def cited_score(correct: float, parts: Mapping[Part, float | None]) -> float | None:
    """What an answer with citations is worth: as HELMET's category Cite does, the mean of how right it is and of the
    recall and precision of its citations.
    """
    recall, precision = parts["recall"], parts["precision"]
    return None if recall is None or precision is None else (correct + recall + precision) / 3


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
    if _cites(row):
        return ()
    fluency: tuple[Part, ...] = ("fluency",) if asked else ()
    return (*fluency, "recall", "precision") if _is_summary(row) else (*fluency, "correctness")


def _is_summary(row: Row) -> bool:
    return str(row["name"]).partition(".")[0] == "summ"


def _cites(row: Row) -> bool:
    return str(row["name"]).startswith("alce")


def _worth(row: Row, parts: Mapping[Part, float | None]) -> float | None:
    return cited_score(row["score"], parts) if _cites(row) else judged_score(parts, _is_summary(row))


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


def _figures(rows: Sequence[Row], grades: Mapping[str, Mapping[Part, float | None]]) -> dict[str, Any]:
    """For each task and length the mean score with its 95 % bootstrap interval over contexts, and the parts' means."""
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["name"], row["length"]].append(row)
    found: dict[str, dict[str, Any]] = {}
    for (name, length), chosen in cells.items():
        scored = [(row["context"], _worth(row, grades[row["id"]])) for row in chosen]
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
