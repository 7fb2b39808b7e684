"""Sections of pages: a tutor's score and where it comes from, two tutors side by side, what was answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmlab.evals.rows import Row
from lmlab.methods.tutor.scoring.compare import equal_length_verdict, verdict
from lmlab.methods.tutor.scoring.score import SELF_JUDGED
from lmlab.reports import Block, Details, Facts, Figure, Note, Paragraph, Sample, Section, Table, bar_chart
from lmlab.words import counted

_SAMPLES = 4  # half of them the best answers, half the worst
_CHARACTERS = 1500  # of an answer on the page

ONLY_ORDERS = (
    "The judge asks nobody. Its percentages order answers to one question; they do not say how right an answer is, and"
    " a good one may get 40 %."
)
_COLUMNS = {
    "misleading_question": "supposes something wrong",
    "answer_in_chapter": "the chapter answers it",
    "closed_book": "can do without the chapter",
    "domain x difficulty": "domain, difficulty",
}


def figure_text(figure: dict[str, Any]) -> str:
    """A score with its interval, in percent."""
    if figure["value"] is None:
        return "none"
    if figure["low"] is None:
        return f"{figure['value']:.1f} %"
    return f"{figure['value']:.1f} % [{figure['low']:.1f}, {figure['high']:.1f}]"


def headline(report: dict[str, Any]) -> str:
    """The score in a sentence."""
    told = f"{report['headline']} {figure_text(report['total'])} over {counted(report['n_graded'], 'answers')}"
    missing = f", {report['n_ungraded']:,} without a grade" if report["n_ungraded"] else ""
    about = counted(report["chapters"], "chapters")
    return f"{told} about {about}{missing}; judged by {report['judge']['name']}."


def sections(
    report: dict[str, Any], rows: Sequence[Row] = (), comparison: dict[str, Any] | None = None
) -> list[Section]:
    """The sections of a tutor's report."""
    found = [Section("Score", _overview(report, comparison), rank=1)]
    found.append(Section("Where it comes from", _breakdowns(report), rank=2))
    if rows:
        found.append(Section("Answers", _answers(rows, report["headline"]), rank=3))
    return [each for each in found if each.blocks]


def comparison_section(comparison: dict[str, Any]) -> Section:
    """Two tutors side by side."""
    rows = [[comparison[name], comparison[f"{name}_score"]] for name in ("first", "second")]
    blocks: list[Block] = [
        Paragraph(f"{verdict(comparison)} {equal_length_verdict(comparison)}"),
        Table(["tutor", f"{comparison['headline']}, %"], rows),
        Facts(
            {
                "better on": counted(comparison["better"], "questions"),
                "worse on": f"{comparison['worse']:,}",
                "wins, a tie being half of one": _shares(comparison["equal_length"]),
                "p of no difference": "unknown" if comparison["p"] is None else f"{comparison['p']:.3g}",
                "judge": comparison["judge"]["name"],
            }
        ),
    ]
    return Section("Compared", blocks, "Paired over the questions that both have a grade for, by chapters.", rank=1)


def ranking_section(ranking: dict[str, Any]) -> Section:
    """Tutors in their order, and each two beside each other."""
    scores = [
        [each["tutor"], each["comparisons"], *(_hundredth(each["score"][name]) for name in ("value", "low", "high"))]
        for each in ranking["tutors"]
    ]
    pairs = [
        [each["first"], each["second"], each["n"], each["missing"], _share_text(each["wins"]),
         _share_text(each["at_equal_length"]), _percent(each["orders_disagree"]), _percent(each["first_place"])]
        for each in ranking["pairs"]
    ]  # fmt: skip
    columns = ["first", "second", "pairs", "no verdict", "first wins", "at equal length", "orders disagree",
               "first place wins"]  # fmt: skip
    blocks: list[Block] = [
        Table(["tutor", "pairs", "score, logits", "low", "high"], scores),
        Table(columns, pairs, "A pair whose winner changes with the order is a tie, which is half a win."),
        Facts({"judge": ranking["judge"]["name"], "prompt": ranking["judge"]["prompt_hash"]}),
    ]
    if ranking.get("self_judged"):
        blocks.append(Note(f"{', '.join(ranking['self_judged'])}: {SELF_JUDGED}"))
    return Section("Ranked", blocks, "By Bradley and Terry, with intervals over chapters.", rank=1)


def _share_text(share: dict[str, Any] | None) -> str:
    if share is None:
        return "not known"
    inside = "" if share["low"] is None else f" [{share['low']:.0%}, {share['high']:.0%}]"
    return f"{share['value']:.0%}{inside}"


def _percent(value: float | None) -> str:
    return "none shown" if value is None else f"{value:.0%}"


def _hundredth(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _shares(at: dict[str, Any]) -> str:
    equal = at["wins_at_equal_length"]
    return f"{at['wins']:.0%}" + ("" if equal is None else f"; {equal:.0%} at equal length")


def _overview(report: dict[str, Any], comparison: dict[str, Any] | None) -> list[Block]:
    facts = {name: figure_text(figure) for name, figure in report["criteria"].items()}
    facts |= {
        "answers": f"{report['n_graded']:,} of {report['n']:,} graded",
        "chapters": f"{report['chapters']:,}",
        "ungraded as zero": f"{report['total_ungraded_as_zero']:.1f} % (for comparison only)",
        "cost": _dollars(report["cost_usd"]),
        "tutor": report["tutor"]["model"],
        "format": report["tutor"]["format"] or "not noted",
        "judge": report["judge"]["name"],
    }
    blocks: list[Block] = [Note(text, "warning") for text in report["warnings"]]
    blocks.append(Facts(facts))
    if report.get("only_orders"):
        blocks.append(Note(ONLY_ORDERS))
    if comparison is not None:
        told = f"{verdict(comparison)} {equal_length_verdict(comparison)}"
        blocks += [Paragraph(f"Against {comparison['first']}: {told}")]
    statuses = [[status, count] for status, count in report["by_status"].items()]
    if len(statuses) > 1:
        blocks.append(Table(["status", "answers"], statuses, "What became of the answers."))
    prompts = [[name, report[name]["prompt_hash"]] for name in ("tutor", "judge")]
    blocks.append(Details("Hashes of the prompts", [Table(["prompts of", "hash"], prompts)]))
    return blocks


def _dollars(cost: float | None) -> str:
    if cost is None:
        return "unknown"
    return f"${cost:.4f}" if cost else "$0"


def _breakdowns(report: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    for column, values in report["breakdowns"].items():
        rows = [
            [value, figure["n"], figure["chapters"], *(_tenth(figure[each]) for each in ("value", "low", "high"))]
            for value, figure in values.items()
        ]
        shown = [row for row in rows if row[3] is not None]
        if column in ("domain", "difficulty") and len(shown) > 1:
            halves = [0.0 if row[4] is None else (row[5] - row[4]) / 2 for row in shown]
            name = report["headline"]
            chart = bar_chart(
                [str(row[0]) for row in shown], {name: [row[3] for row in shown]}, {name: halves}, f"{name}, %", None
            )
            blocks.append(Figure(chart, f"By {column}, with intervals over chapters.", f"Scores by {column}"))
        title = _COLUMNS.get(column, column)
        blocks.append(Table([title, "answers", "chapters", "score, %", "low", "high"], rows))
    return blocks


def _tenth(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _answers(rows: Sequence[Row], main: str) -> list[Block]:
    """The worst and the best answers, and one of those without a grade."""
    graded = [row for row in rows if row.get("grades", {}).get(main) is not None]
    graded.sort(key=lambda row: (row["grades"][main], row["id"]))
    ungraded = [row for row in rows if row not in graded][:1]
    chosen = [*graded[: _SAMPLES // 2], *graded[max(_SAMPLES // 2, len(graded) - _SAMPLES // 2) :], *ungraded]
    return [Details(_title(row, main), [_sample(row)]) for row in chosen]


def _title(row: Row, main: str) -> str:
    grade = row["grades"].get(main)
    told = row["status"] if grade is None else f"{round(grade, 2):g} of {row['judge']['maximum']:g}"
    return f"{told}: {row['question'][:100]}"


def _sample(row: Row) -> Sample:
    points = "; ".join(row["key_points"])
    caption = f"Key points: {points[:_CHARACTERS]}" if points else "No key points."
    return Sample(f"{row['question'][:_CHARACTERS]}\n\n", row["tutor"]["output"][:_CHARACTERS], caption)
