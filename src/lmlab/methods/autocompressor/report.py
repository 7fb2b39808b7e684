"""Sections of the method's pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.reports import Facts, Figure, Paragraph, Section, Table, line_chart
from lmlab.stages.parts.training import TrainingResults, loop_curves, series, training_facts
from lmlab.train import read_metrics


def training_sections(results: TrainingResults, directory: Path) -> list[Section]:
    """What a training shows: losses by segment, and whether the vectors are healthy."""
    rows = read_metrics(directory / "metrics.jsonl")
    blocks: list[Any] = [Facts(training_facts(results))]
    for beginning, caption in (
        ("loss/segment_", "Loss by segment: what later ones gain over the first, summaries give them."),
        ("heldout_loss/segment_", "The same on held-out rows, cut into equal segments."),
    ):
        names = sorted(
            {name for row in rows for name in row if name.startswith(beginning)}, key=lambda n: int(n.split("_")[-1])
        )
        if names:
            curves = [series(rows, name, f"segment {name.removeprefix(beginning)}") for name in names]
            blocks.append(Figure(line_chart(curves, "step", "loss (nats a token)"), caption, caption))
    health = (
        ("summary/norm", "norm of a vector", "Norm of a summary vector over that of a token's embedding."),
        ("summary/cosine", "cosine", "Mean cosine of the vectors of a summary; near 1 they all say the same."),
    )
    for name, title, caption in health:
        if any(name in row for row in rows):
            blocks.append(Figure(line_chart([series(rows, name, title)], "step", title), caption, caption))
    return [Section("Learning to compress", blocks + loop_curves(rows), rank=4)]


def comparison_sections(lines: list[dict[str, Any]]) -> list[Section]:
    """The table of kinds of compression at equal key-value positions."""
    columns = (
        "task",
        "kind",
        "ratio",
        "positions",
        "NLL",
        "gain retained",
        "another's memory",
        "below random",
        "above full",
        "stored",
        "in use",
        "peak",
    )
    rows = []
    for line in lines:
        kept = line["retained"]
        rows.append(
            [
                line["task"],
                line["kind"],
                f"{line['ratio']:g}",
                f"{line['positions']:.0f}",
                f"{line['nll']:.3f}",
                "n/a" if kept["value"] is None else _interval(kept),
                "n/a" if line["wrong"] is None else f"{line['wrong']:.2f}",
                "" if line["over_random"] is None else _interval(line["over_random"]),
                "" if line["kind"] == "full" else _interval(line["over_full"]),
                *(f"{line[name] / 2**20:.2f} MiB" for name in ("stored", "in_use", "peak")),
            ]
        )
    note = (
        "Gain retained: the share of what the whole context is worth. Another's memory: the same with the memory of"
        " another context. Below random, above full: how many nats a token the answers cost less than with as many"
        " random rows, and more than with the whole context."
    )
    return [Section("Kinds of compression", [Paragraph(note), Table(columns, rows)], rank=4)]


def _interval(of: dict[str, Any]) -> str:
    low, high = (of[name] for name in ("low", "high"))
    return f"{of['value']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
