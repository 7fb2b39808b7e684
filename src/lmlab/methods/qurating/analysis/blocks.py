"""What an analysis found, as blocks of a page: ratings, topics, bias, thresholds, texts to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmlab.methods.qurating.analysis.analyze import Analysis
from lmlab.reports import Block, Cell, Details, Figure, Paragraph, Sample, Series, Table, heat_map, line_chart
from lmlab.words import counted

_MOST_LABELS = 12  # of domains, in a table of thresholds


def rating_blocks(found: Analysis) -> list[Block]:
    """Histograms by domain, and the correlation matrix."""
    blocks: list[Block] = []
    if found.rows < found.of_rows:
        blocks.append(Paragraph(f"From {found.rows:,} of {counted(found.of_rows, 'rows')}, spread evenly."))
    for name, each in found.histograms.items():
        if not each["edges"]:
            continue
        middles = [(a + b) / 2 for a, b in zip(each["edges"], each["edges"][1:], strict=False)]
        curves = [
            Series(domain or "all", middles, _shares(counts))
            for domain, counts in each["domains"].items()
            if sum(counts)
        ]
        if sum(each["chosen"]):
            curves.append(Series("chosen", middles, _shares(each["chosen"]), dashed=True))
        blocks.append(
            Figure(
                line_chart(curves, "rating", "share of rows"),
                f"Ratings by {name.replace('_', ' ')}.",
                f"Ratings by {name}",
            )
        )
    labels = [*found.criteria, "log length"]
    matrix = [[float("nan") if value is None else value for value in row] for row in found.correlations]
    if matrix:
        blocks.append(
            Figure(
                heat_map(matrix, labels, labels, "", "", "correlation"),
                "Correlations of ratings with each other and with length.",
            )
        )
    spread: list[list[Cell]] = [[name, value] for name, value in found.segment_deviation.items() if value is not None]
    if spread:
        blocks.append(
            Table(
                ["criterion", "deviation of segments"],
                spread,
                "How much segments of one document differ, in standard deviations of the corpus.",
            )
        )
    return blocks


def topic_blocks(found: Analysis) -> list[Block]:
    """Topics with ratings and shares."""
    if not found.topics:
        return []
    rows = [
        [
            " ".join(each["terms"][:6]),
            each["rows"],
            each["share"],
            each["chosen"],
            *(each["z"][name] for name in found.criteria),
        ]
        for each in found.topics
    ]
    columns = [
        "topic",
        "documents",
        "share of the corpus",
        "share of the choice",
        *(f"z, {name.replace('_', ' ')}" for name in found.criteria),
    ]
    return [Table(columns, rows, "Topics by their strongest terms.")]


def bias_blocks(found: Analysis) -> list[Block]:
    """Ratings and rates of selection by group."""
    blocks: list[Block] = []
    for column, groups in found.bias.items():
        rows = [
            [
                each["group"],
                each["rows"],
                each["mean_z"]["value"],
                _interval(each["mean_z"]),
                each["rate"]["value"],
                each["ratio"]["value"],
                _interval(each["ratio"]),
            ]
            for each in groups
        ]
        columns = [column, "rows", "mean z", "95 % interval", "rate", "ratio to all", "95 % interval of it"]
        blocks.append(Table(columns, rows, f"Ratings and rate of selection by {column}."))
    return blocks


def threshold_blocks(found: Analysis) -> list[Block]:
    """What thresholds keep of each domain and of short and long texts, and texts on either side of them."""
    blocks: list[Block] = [
        Paragraph(
            "Had rows been kept by a threshold on the normalized rating, instead of being sampled: which share of each"
            " kind of text would have been kept. A share far from the whole's is what the rating prefers or shuns."
        )
    ]
    for name, what in (("domains", "domain"), ("lengths", "length (thirds of the rows)")):
        labels = sorted({label for row in found.thresholds for label in row[name]}, key=_order)[:_MOST_LABELS]
        if len(labels) < 2:
            continue
        rows = [
            [f"{row['threshold']:+.2f}", row["rows"], row["kept"], *(row[name].get(label) for label in labels)]
            for row in found.thresholds
        ]
        columns = ["z at least", "documents", "share of all tokens", *labels]
        blocks.append(Table(columns, rows, f"Share of the tokens that is kept, by {what}."))
    for row in found.thresholds:
        samples = [
            Sample("", each["text"], f"{side}: {each['id']}, z {each['rating']:+.2f}")
            for side, key in (("just kept", "above"), ("just dropped", "below"))
            for each in row[key]
        ]
        if samples:
            blocks.append(Details(f"Texts at the threshold that keeps {row['kept']:.0%}", samples))
    return blocks


def _order(label: str) -> tuple[int, str]:
    """Lengths from short to long, other labels by name."""
    return (("short", "medium", "long").index(label) if label in ("short", "medium", "long") else 3), label


def extreme_blocks(found: Analysis) -> list[Block]:
    """Texts to read."""
    return [
        Details(
            f"Highest, median and lowest by {name.replace('_', ' ')}",
            [
                Sample(
                    "",
                    each["text"],
                    f"{each['domain'] or 'all'}, {each['place']}: {each['id']}, rating {each['rating']:.3f}",
                )
                for each in found.extremes
                if each["criterion"] == name
            ],
        )
        for name in found.criteria
        if any(each["criterion"] == name for each in found.extremes)
    ]


def _shares(counts: Sequence[int]) -> list[float]:
    total = max(1, sum(counts))
    return [count / total for count in counts]


def _interval(interval: dict[str, float]) -> str:
    low, high = interval["low"], interval["high"]
    return "-" if math.isnan(low) or not np.isfinite(high) else f"{low:.2f} to {high:.2f}"
