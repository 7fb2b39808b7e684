"""Sections of the page about judgments, raters, annotations and selections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import reads
from lmlab.files import read_mapping
from lmlab.methods.qurating.analysis.analyze import Analysis, analyze
from lmlab.methods.qurating.analysis.bias import CAUTION
from lmlab.methods.qurating.analysis.blocks import (
    bias_blocks,
    extreme_blocks,
    rating_blocks,
    threshold_blocks,
    topic_blocks,
)
from lmlab.methods.qurating.config import AnalysisConfig
from lmlab.progress import short
from lmlab.reports import (
    Block,
    Details,
    Facts,
    Figure,
    Note,
    Page,
    Paragraph,
    Section,
    Series,
    Table,
    funnel_chart,
    heat_map,
    line_chart,
)
from lmlab.reports.blocks import NoteKind
from lmlab.stats import without_noise
from lmlab.words import counted

_DOMAINS = 50  # of the table of domains: the largest of thousands
CONFIDENCE = (
    "A label y is the chance that the second text of a pair is better, by votes in both orders; its confidence is"
    " |2y - 1|: 0 where votes are even, 1 where all agree."
)
_BIASED = 0.1  # a judge that prefers one place by that much; asking in both orders takes it out of the mean
_PLACES = ("first", "second")
_MOST_REASONS = 2000  # characters of one answer on the page, of which an endpoint may send any number


def _leans(figures: dict[str, Any]) -> bool:
    """Whether a judge's preference for one place is large, and more than the chance of few labels."""
    bias, error = figures["position_bias"], figures.get("position_bias_error")
    return bias is not None and error is not None and abs(bias) > max(_BIASED, 2 * error)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_REASONS else f"{text[:_MOST_REASONS]} \u2026"


def judgment_sections(figures: dict[str, Any], reasons: Sequence[dict[str, Any]] = ()) -> list[Section]:
    """Effects of order, confidence of labels, missing labels by domain, and what a judge says of its choices.

    Arguments:
        reasons: rows as of `Judged.reasons`.
    """
    rows = [
        [
            name,
            each["labels"],
            without_noise(each["position_bias"]),
            without_noise(each.get("position_bias_error")),
            each["swap_consistency"],
            sum(each["confidence"][5:]) / max(1, each["labels"]),
        ]
        for name, each in figures["criteria"].items()
    ]
    blocks: list[Block] = [
        Facts({"Groups": f"{figures['groups']:,}", "Questions": f"{figures['questions']:,}"}),
        Paragraph(f"The judge: {figures['judge']}.{_not_asked(figures)} {CONFIDENCE}"),
        Table(
            ["criterion", "labels", "position bias", "±", "same winner in both orders", "share with confidence ≥ 0.5"],
            rows,
            "Judgments by criterion. Position bias: above 0 for a judge that likes the second place, with its standard"
            " error. The two shares are from 0 to 1.",
        ),
    ]
    if any(map(_leans, figures["criteria"].values())):
        blocks.append(
            Note(
                "The judge leans to one place. Both orders cancel this in the labels to first order, at the price of"
                " weaker labels.",
                "warning",
            )
        )
    curves = [
        Series(name, [n / 10 + 0.05 for n in range(10)], each["confidence"])
        for name, each in figures["criteria"].items()
    ]
    if curves:
        blocks.append(
            Figure(
                line_chart(curves, "confidence, |2y - 1|", "labels"),
                "How sure the labels are.",
                "Histogram of confidence",
            )
        )
    if reasons:
        told = [
            [
                each["criterion"],
                each["first"],
                each["second"],
                next((place for place, votes in zip(_PLACES, each["votes"], strict=True) if votes > 0), "neither"),
                _shortened(each["reasons"]),
            ]
            for each in reasons
        ]
        columns = ["criterion", "shown first", "shown second", "chosen", "reasons"]
        blocks.append(Table(columns, told, "Why the judge chose so, in its own words."))
    if figures["missing"]:
        lost = [
            [each["criterion"], each["domain"], each["reason"], each["questions"], each["questions"] / each["of"]]
            for each in figures["missing"]
        ]
        blocks.append(
            Table(
                ["criterion", "domain", "reason", "questions", "share"],
                lost,
                "Questions without a verdict: compare the shares of domains.",
            )
        )
    if figures["connected_sets"] > 1:
        blocks.append(
            Paragraph(
                f"The comparisons fall into {figures['connected_sets']:,} sets of texts that were never compared with"
                " each other."
            )
        )
    return [Section("Judgments", blocks)]


def _not_asked(figures: dict[str, Any]) -> str:
    """Why there are fewer questions than groups in both orders would make."""
    told = ""
    if same := figures.get("identical_groups"):
        told += f" {counted(same, 'groups were')} not shown, whose texts are equal."
    if skipped := figures.get("skipped_groups"):
        told += f" {counted(skipped, 'groups have')} fewer than two texts."
    return told


def rater_sections(results: dict[str, Any]) -> list[Section]:
    """Accuracy by confidence, calibration, the training."""
    training = results["training"]
    facts = {
        "Pairs": f"{results['pairs']:,}",
        "Held-out groups": f"{results['held_out_groups']:,}",
        "Steps": f"{training['steps']:,}",
        "Tokens a second": f"{training['tokens_per_second']:,.0f}",
        "Padding": f"{results['padding']:.1%}",
    }
    blocks: list[Block] = [Facts(facts)]
    if results.get("warning"):
        blocks.append(Note(results["warning"], "warning"))
    if results["dropped"]:
        blocks.append(
            Paragraph(
                "Left out: "
                + ", ".join(f"{counted(count, 'groups')} with {reason}" for reason, count in results["dropped"].items())
                + "."
            )
        )
    if results["metrics"] is not None:
        rows = [
            [
                name,
                f"m ≥ {m}",
                at["pairs"],
                at["accuracy"],
                at["ceiling"],
                at["cross_entropy"],
                each["calibration_error"] if m == "0" else None,
            ]
            for name, each in results["metrics"].items()
            for m, at in each["at"].items()
        ]
        columns = ["criterion", "confidence m", "labels", "accuracy", "ceiling", "cross-entropy", "calibration error"]
        blocks.append(
            Table(
                columns,
                rows,
                f"On held-out groups. {CONFIDENCE}"
                " The ceiling is what a perfect rater would reach against votes as noisy as these.",
            )
        )
    return [Section("Rater", blocks)]


def annotation_sections(rows: Path) -> list[Section]:
    """Distributions and correlations of ratings."""
    return [Section("Ratings", rating_blocks(analyze(rows, None, None, AnalysisConfig(clusters=0, examples=0))))]


@reads("a selection")
def selection_sections(directory: Path, found: Analysis | None, context_name: str = "") -> list[Section]:
    """The plan, the funnel, domains, ratings, topics, bias, texts to read."""
    report, plan = read_mapping(directory / "selection.json"), read_mapping(directory / "plan.json")
    of = f": {context_name}" if context_name else ""
    sections = [Section(f"Selection{of}", selection_blocks(report) + plan_blocks(plan))]
    if found is not None:
        sections.append(
            Section(
                f"What was chosen{of}",
                rating_blocks(found) + topic_blocks(found) + bias_blocks(found) + extreme_blocks(found),
            )
        )
        if found.thresholds:
            sections.append(Section("What each threshold keeps", threshold_blocks(found)))
    return sections


def selection_blocks(report: dict[str, Any]) -> list[Block]:
    """The funnel and the domains."""
    before = report["of_rows"] + sum(report["dropped"].values())
    steps, left = [("documents", before)], before
    for reason, count in report["dropped"].items():
        left -= count
        steps.append((f"without {reason}", left))
    steps.append(("chosen", report["rows"]))
    facts = {
        "Chosen": f"{short(report['tokens'])} of {short(report['of_tokens'])} tokens",
        "Mode": report["config"]["mode"].replace("_", "-"),
        "Mean z": "-" if report["mean_z"] is None else f"{report['mean_z']:+.2f}",
    }
    every = [
        [
            name or "all",
            each["of_rows"],
            each["rows"],
            each["of_tokens"] / max(1, report["of_tokens"]),
            each["tokens"] / max(1, report["tokens"]),
        ]
        for name, each in report["domains"].items()
    ]
    rows = every
    if len(every) > _DOMAINS:
        by_size = sorted(every, key=lambda row: -row[3])
        shown, rest = by_size[: _DOMAINS - 1], by_size[_DOMAINS - 1 :]
        rows = [*shown, [f"{len(rest):,} others", *(sum(column) for column in list(zip(*rest, strict=True))[1:])]]
    blocks: list[Block] = [
        Facts(facts),
        Paragraph(f"Noise: {report['noise']}."),
        Figure(funnel_chart(steps), "Documents that remain.", "Funnel"),
        Table(
            ["domain", "documents", "chosen", "share of the corpus's tokens", "share of the chosen tokens"],
            rows,
            "Domains before and after.",
        ),
    ]
    moved = max((abs(share - chosen) for _, _, _, share, chosen in every), default=0.0)
    if report["config"]["domain"] is None:
        blocks.append(
            Note(
                "Documents were chosen from all domains at once, so that the shares of domains may have moved.",
                "warning",
            )
        )
    elif moved > 0.01:
        # a domain is filled by whole documents, the last of which may go beyond its budget
        whole = max(each["tokens"] / max(1, each["rows"]) for each in report["domains"].values())
        within = moved * report["tokens"] <= whole
        why = "; documents are chosen whole, and one of them makes as much" if within else ""
        blocks.append(
            Note(f"The share of a domain has moved by {moved:.1%} of the tokens{why}.", "info" if within else "warning")
        )
    return [*blocks, Note(CAUTION, "info")]


def plan_blocks(plan: dict[str, Any]) -> list[Block]:
    """What each temperature would choose."""
    outlooks = plan["outlooks"]
    rows = [[each["tau"], without_noise(each["mean_z"]), each["rows"], each["effective_rows"]] for each in outlooks]
    curves = [Series(each["tau"], list(range(1, 11)), each["deciles"]) for each in outlooks]
    names = [each["tau"] for each in outlooks]
    overlap = [[each["overlap"][name] for name in names] for each in outlooks]
    blocks: list[Block] = [
        Table(
            ["setting", "mean z", "rows", "effective rows"],
            [[*row[:2], round(row[2]), round(row[3])] for row in rows],
            "Expected, by temperature. The effective rows are those among which the first draw is spread, not those"
            " that are chosen.",
        ),
        Figure(
            line_chart(curves, "decile of rating", "share of the chosen tokens"),
            "Where the chosen tokens come from, by temperature.",
        ),
        Figure(
            heat_map(overlap, names, names, "", "", "overlap"),
            "Share of the row's choice that the column's shares, with one seed.",
        ),
    ]
    if plan["repeats"] > 1:
        blocks.insert(
            0,
            Note(
                f"The corpus does not fill the budget: its rows have to be repeated {plan['repeats']:.2f} times.",
                "warning",
            ),
        )
    return [Details("The plan: what other temperatures would choose", blocks)]


def comparison_table(results: dict[str, Any], which: str = "") -> Table:
    """Bits per byte by domain, of a model trained on the choice and of one trained on uniform text.

    Arguments:
        which: of several comparisons it is, before the caption.
    """
    rows = [
        [domain, each["uniform"], each["chosen"], each["difference"], each["error"]]
        for domain, each in results["domains"].items()
    ]
    columns = ["held-out domain", "uniform", "chosen", "difference", "standard error"]
    return Table(
        columns,
        rows,
        f"{which}Bits per byte of two models, trained on equally many tokens; lower is better. Errors are over"
        " documents, not over seeds.",
    )


def comparison_sections(results: dict[str, Any], verdict: str) -> list[Section]:
    """Whether the choice helped."""
    gone = results["mean_difference"]
    kind: NoteKind = "info" if abs(gone) <= 2 * results["error"] else "good" if gone < 0 else "bad"
    return [Section("Did the choice help?", [Note(verdict, kind), comparison_table(results)], rank=0)]


def selection_page(directory: Path, title: str, further: Sequence[Section] = ()) -> Page:
    """The page of a folder that `lmlab quality select` wrote.

    Arguments:
        further: sections behind its own.
    """
    return Page(title, sections=[*selection_sections(directory, Analysis.read(directory)), *further])
