"""How the results of the stage `evaluate` are told: a line on the terminal, a table, sections of the report."""

from __future__ import annotations

from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from lmlab.evals import find_kind, metric_of
from lmlab.reports import Details, Figure, Note, Section, Table, bar_chart
from lmlab.runs import Results

Figures = dict[str, dict[str, Any]]


class EvaluateResults(Results):
    """Figures of the tasks, and of the model beside its baselines, by name and domain."""

    scorer: str
    tasks: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, Any]]
    chance: dict[str, float] | None


_FURTHER = ("bits_per_byte", "cross_entropy", "calibration_error")
_TASK_NOTE = (
    "± is one standard error over questions. Accuracy ranks the options by log-probability {normalizations}. Bits per"
    " byte are those of the right answer, cross-entropy (nats) is that of the right option after a softmax over the"
    " options' scores, and calibration error compares confidence with accuracy."
)


def summary_of(results: EvaluateResults) -> str:
    """One line: the main figure of each task, bits per byte by domain, accuracy."""
    parts = [f"{name} {value_text(found)}" for name, found in results.tasks.items()]
    found = results.measured.get("model", {})
    parts += [
        f"{domain} {value['value']:.3f} bits per byte" for domain, value in found.get("bits_per_byte", {}).items()
    ]
    if "accuracy" in found:
        value = found["accuracy"]["all"]
        parts.append(
            f"ranked accuracy {value['value']:.1%} ± {value['standard_error'] or 0:.1%} (chance"
            f" {(results.chance or {})['all']:.0%})"
        )
    return "; ".join(parts)


def headline_of(results: EvaluateResults) -> dict[str, str]:
    """The figures for the top of the report."""
    facts = {}
    if (average := average_accuracy(results.tasks)) is not None:
        facts["Average accuracy"] = f"{average:.1%}"
    found = results.measured.get("model", {})
    facts |= {
        f"Bits per byte, {domain}": f"{value['value']:.3f}" for domain, value in found.get("bits_per_byte", {}).items()
    }
    if "accuracy" in found:
        facts["Ranked accuracy"] = f"{found['accuracy']['all']['value']:.1%}"
    return facts


def average_accuracy(tasks: dict[str, Any]) -> float | None:
    """The unweighted mean over the tasks that are known by their accuracy; None for fewer than two."""
    values = [
        found["figures"]["accuracy"]["value"]
        for found in tasks.values()
        if "accuracy" in found["figures"] and found["metric"] == "accuracy"
    ]
    return sum(values) / len(values) if len(values) > 1 else None


def value_text(found: dict[str, Any], name: str | None = None) -> str:
    """A task's figure, by default its main one, with its standard error."""
    name = name or found["metric"]
    value = found["figures"].get(name)
    if value is None:
        return "-"
    scale, digits, unit = (100, 1, " %") if metric_of(found["kind"], name).is_share else (1, 3, "")
    error = "" if value["standard_error"] is None else f" ± {value['standard_error'] * scale:.{digits}f}"
    return f"{value['value'] * scale:.{digits}f}{error}{unit}"


def terminal_table(results: EvaluateResults) -> TerminalTable:
    """The tasks of one model; columns that say nothing are left out."""
    tasks = results.tasks
    rows = {
        name: [
            f"{found['questions']:,}",
            _metric(found),
            value_text(found),
            _chance(found),
            _beside(found),
            _left_out(found),
        ]
        for name, found in tasks.items()
    }
    if (average := average_accuracy(tasks)) is not None:
        rows["average"] = ["", "accuracy", f"{100 * average:.1f} %", "", "", ""]
    columns = ["questions", "metric", "value", "chance", "bits per byte", "left out"]
    used = [place for place in range(len(columns)) if any(row[place] for row in rows.values())]
    table = TerminalTable(box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    for place in used:
        table.add_column(columns[place], justify="left" if columns[place] in ("metric", "left out") else "right")
    for name, row in rows.items():
        table.add_row(name, *(row[place] for place in used))
    return table


def _beside(found: dict[str, Any]) -> str:
    return (
        value_text(found, "bits_per_byte")
        if found["metric"] != "bits_per_byte" and "bits_per_byte" in found["figures"]
        else ""
    )


def tasks_section(results: EvaluateResults, where: str = "") -> Section:
    """Benchmarks: a chart of accuracies, a table of all figures, domains of each task."""
    tasks: Figures = results.tasks
    blocks: list[Any] = [_left_out_note(tasks)] if any(_left_out(found) for found in tasks.values()) else []
    ranked = {
        name: found
        for name, found in tasks.items()
        if found["metric"] == "accuracy" and found["figures"] and found["chance"] is not None
    }
    if ranked:
        accuracy = [found["figures"]["accuracy"] for found in ranked.values()]
        values = {
            "model": [each["value"] for each in accuracy],
            "chance": [found["chance"] for found in ranked.values()],
        }
        errors = {"model": [each["standard_error"] or 0.0 for each in accuracy], "chance": [0.0] * len(ranked)}
        caption = "Accuracy beside chance. Bars show one standard error."
        blocks.append(
            Figure(
                bar_chart([found["title"] for found in ranked.values()], values, errors, "accuracy", None),
                caption,
                caption,
            )
        )
    blocks.append(_table(tasks))
    blocks += [_domains(name, found) for name, found in tasks.items() if found["domains"]]
    blocks += [block for found in tasks.values() for block in find_kind(found["kind"]).blocks(found)]
    used = sorted({found["normalization"] for found in ranked.values() if found["normalization"] not in (None, "none")})
    note = _TASK_NOTE.format(normalizations=f"as it is (none) or divided by {', '.join(used)}" if used else "as it is")
    return Section(f"Benchmarks{where}", blocks, f"Computed by {results.scorer}. {note}", rank=1)


def _table(tasks: Figures) -> Table:
    """All figures of all tasks; columns that say nothing are left out."""
    rows: list[list[Any]] = []
    for name, found in tasks.items():
        further = [value_text(found, each) for each in _FURTHER]
        by = found["normalization"] or ""
        rows.append(
            [
                name,
                found["questions"],
                _title(found),
                value_text(found),
                _chance(found),
                by,
                *further,
            ]
        )
        rows[-1].append(_left_out(found))
    if (average := average_accuracy(tasks)) is not None:
        rows.append(["average", None, "accuracy", f"{100 * average:.1f} %", *["" for _ in range(6)]])
    columns = [
        "task",
        "items",
        "metric",
        "value",
        "chance",
        "by",
        "bits per byte",
        "cross-entropy",
        "calibration error",
        "left out",
    ]
    says = [place for place in range(len(columns)) if any(row[place] not in ("", "-", "none", None) for row in rows)]
    if all(found["metric"] == "accuracy" for found in tasks.values()):
        says.remove(columns.index("metric"))
        columns[columns.index("value")] = "accuracy"
    align: list[Literal["left", "right"]] = [
        "left" if columns[place] in ("task", "metric", "by", "left out") else "right" for place in says
    ]
    return Table(
        [columns[place] for place in says], [[row[place] for place in says] for row in rows], "All tasks.", align=align
    )


def _metric(found: dict[str, Any]) -> str:
    by = {"none": "", None: "", "unconditional": ", without the question's prior"}.get(
        found["normalization"], f" by {found['normalization']}"
    )
    return _title(found) + (by if found["metric"] == "accuracy" else "")


def _title(found: dict[str, Any]) -> str:
    return metric_of(found["kind"], found["metric"]).title


def _chance(found: dict[str, Any]) -> str:
    return "" if found["chance"] is None or found["metric"] != "accuracy" else f"{100 * found['chance']:.1f} %"


def _left_out(found: dict[str, Any]) -> str:
    parts = [f"{found[key]} {word}" for key, word in (("truncated", "truncated"), ("skipped", "skipped")) if found[key]]
    return ", ".join(parts)


def _left_out_note(tasks: Figures) -> Note:
    told = "; ".join(f"{name}: {_left_out(found)}" for name, found in tasks.items() if _left_out(found))
    return Note(f"Some items were longer than the model's window ({told}). Skipped ones are in no figure.", "warning")


def _domains(name: str, found: dict[str, Any]) -> Details:
    wrapped = [
        [domain, value["count"], value_text({**found, "figures": {found["metric"]: value}})]
        for domain, value in sorted(found["domains"].items(), key=lambda pair: -pair[1]["value"])
    ]
    return Details(f"{name} by domain", [Table(["domain", "questions", _title(found)], wrapped)])


def comparison_section(results: EvaluateResults, where: str = "") -> Section:
    """Bits per byte and accuracy on held-out text, beside the baselines."""
    blocks: list[Any] = []
    measured = results.measured
    bits = {name: found["bits_per_byte"] for name, found in measured.items() if "bits_per_byte" in found}
    if bits:
        verdict = _verdict(bits)
        blocks += [*([verdict] if verdict else []), *_comparison(bits, "bits per byte", None, 3)]
    accuracy = {name: found["accuracy"] for name, found in measured.items() if "accuracy" in found}
    if accuracy:
        blocks += _comparison(accuracy, "accuracy", ("chance", (results.chance or {})["all"]), 3)
    intro = (
        "Measured on held-out text that no training document repeats. "
        "± is one standard error: over documents for bits per byte, over questions for accuracy."
    )
    return Section(f"Evaluation{where}", blocks, intro, rank=1)


def _verdict(bits: Figures) -> Note | None:
    """None where there is nothing to compare with."""
    if set(bits) == {"model"}:
        return None
    worse = [
        f"{name} on {domain} ({value['value']:.3f} against {bits['model'][domain]['value']:.3f})"
        for name, found in bits.items()
        if name != "model"
        for domain, value in found.items()
        if value["value"] <= bits["model"][domain]["value"]
    ]
    if worse:
        return Note("The model needs more bits than: " + "; ".join(worse) + ".", "warning")
    return Note("The model needs fewer bits than every baseline on every domain.", "good")


def _comparison(figures: Figures, title: str, reference: tuple[str, float] | None, digits: int) -> list[Any]:
    domains = list(figures["model"])
    groups = {
        name: [found[domain]["value"] for domain in domains]
        for name, found in figures.items()
        if all(domain in found for domain in domains)
    }
    errors = {name: [figures[name][domain]["standard_error"] or 0.0 for domain in domains] for name in groups}
    rows = [[name, *(_cell(found.get(domain), digits) for domain in domains)] for name, found in figures.items()]
    caption = f"{title[0].upper()}{title[1:]} by domain."
    align: list[Literal["left", "right"]] = ["left"]
    align += ["right"] * len(domains)
    return [
        Figure(
            bar_chart(domains, groups, errors, title, reference), caption + " Bars show one standard error.", caption
        ),
        Table(["", *domains], rows, caption, highlight_row=0, align=align),
    ]


def _cell(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    error = value["standard_error"]
    return f"{value['value']:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")
