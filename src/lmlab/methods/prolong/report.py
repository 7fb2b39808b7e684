"""Pages of the suite: scores over length with intervals, depth by length, controls, models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmlab.evals.long import check_comparable
from lmlab.evals.long.config import category_of
from lmlab.evals.long.helmet.results import HelmetResults
from lmlab.methods.prolong.short import ShortCost
from lmlab.reports import (
    Block,
    Bounds,
    Cell,
    Details,
    Facts,
    Figure,
    Note,
    Sample,
    Section,
    Series,
    Table,
    heat_map,
    line_chart,
)
from lmlab.words import counted

_DEPTHS = ("0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %")
_VERDICTS: Mapping[str, Literal["good", "bad", "warning"]] = {
    "kept": "good",
    "lost": "bad",
    "unclear": "warning",
}
_SAMPLES = 3  # of each task: more make the page long


def headline(results: dict[str, Any]) -> str:
    """The average of the categories at each length, in one sentence."""
    lengths = [(length, value) for length, value in results["average"].items() if length != "all" and value is not None]
    if not lengths:
        return "no category has a score in this mode."
    return ", ".join(f"{value:.3f} at {counted(int(length), 'tokens')}" for length, value in lengths) + (
        f" (mean of {', '.join(results['categories'])})."
    )


def factor_summary(found: dict[str, Any]) -> str:
    """What a search of factors has reached, in one sentence."""
    held = found["heldout_nll"]
    rules = ", ".join(f"{name} {value:.3f}" for name, value in held.items() if name != "searched")
    same = "" if found["from_rule"] is None else f", which is what {found['from_rule']} gives"
    return (
        f"{held['searched']:.3f} nats a token of answers on other contexts ({found['candidates']} candidates{same});"
        f" {rules}."
    )


def factor_section(found: dict[str, Any]) -> Section:
    """The factors that a search has found, and how probable answers become by them and by the rules."""
    rows: list[list[Cell]] = [[name, value, found["heldout_nll"][name]] for name, value in found["nll"].items()]
    pairs = list(range(len(found["factors"])))
    chart = line_chart([Series("searched", pairs, list(found["factors"]))], "pair of dimensions", "divisor")
    return Section(
        "Rotary frequencies",
        [
            Table(
                ["factors", "searched on", "other contexts"],
                rows,
                "Nats a token of right answers at the new length: lower is better. The search saw the first column.",
            ),
            Figure(chart, "By what the frequency of each pair is divided, the fastest pair first.", "Factors"),
        ],
        rank=4,
    )


def probe_summary(found: dict[str, Any]) -> str:
    """What a checkpoint recalls after its short extension, in one sentence."""
    cells = [f"{cell['score']:.3f} at {int(length):,}" for length, cell in found["after"].items()]
    (before,) = found["before"].values()
    old, new = found["window"]
    return (
        f"after {found['tokens']:,} tokens a window of {old:,} recalls {', '.join(cells)} of {new:,} tokens"
        f" ({before['score']:.3f} before, within it)."
    )


def probe_section(found: dict[str, Any]) -> Section:
    """Recall of a checkpoint before and after its short extension."""
    rows: list[list[Cell]] = []
    for when in ("before", "after"):
        for length, cell in found[when].items():
            bounds = Bounds.of(cell["low"], cell["high"])
            rows.append([when, int(length), cell["score"], bounds, cell["token_accuracy"], cell["nll"]])
    caption = (
        "Share of right answers, all of whose tokens are the likeliest ones, with a 95 % interval over contexts, none"
        " of which was learned from; share of tokens right; nats a token of right answers."
    )
    columns = ["", "tokens", "recall", "95 % interval", "tokens right", "NLL"]
    return Section("Extended for a short while", [Table(columns, rows, caption)], rank=4)


def helmet_section(found: Sequence[HelmetResults]) -> Section:
    """Results in HELMET's layout side by side, sets and means of them by their names in olmo-eval."""
    names = [each.model for each in found]
    if len(set(names)) < len(names):
        names = [f"{number}. {name}" for number, name in enumerate(names, 1)]
    rows: list[list[Cell]] = [
        [name, *(part(each).get(name) for each in found)]
        for part in (lambda each: each.suites, lambda each: each.tasks)
        for name in sorted({name for each in found for name in part(each)})
    ]
    caption = (
        "0 to 100. A set whose judge has not spoken has no figure, and a mean that would lack one is left out. HELMET's"
        " wording of prompts is not ours, so that figures of both are near each other at best."
    )
    return Section("HELMET", [Table(["", *names], rows, caption)])


def sections(results: Sequence[dict[str, Any]], rows: Sequence[Sequence[dict[str, Any]]] = ()) -> list[Section]:
    """The sections of one run, or of several side by side, the first of which the others are compared with.

    Raises:
        UserError: the runs cannot be compared.
    """
    check_comparable(results)
    found = [Section("Long context", _overview(results), rank=1)]
    found.append(Section("By task and length", _tasks(results), rank=2))
    found.append(Section("Where in the context", _depths(results), rank=3))
    controls = _controls(results)
    if controls:
        found.append(Section("Controls", controls, rank=4))
    judged = _judged(results)
    if judged:
        found.append(Section("Judged", judged, rank=4))
    short = _short(results)
    if short:
        found.append(Section("Short tasks", short, rank=5))
    if rows and rows[0]:
        found.append(Section("Answers", _samples(rows[0]), rank=6))
    return [section for section in found if section.blocks]


def _over_length(series: Sequence[Series], title: str) -> Any:
    """A figure of scores, from zero."""
    chart = line_chart(series, "tokens of prompt and answer", title, log_x=True)
    chart.update_yaxes(rangemode="tozero")
    return chart


def _names(results: Sequence[dict[str, Any]]) -> list[str]:
    """What runs are called: by their model; those of one model by their directory and precision too."""
    names = [str(each["model"]) for each in results]
    if len(set(names)) == len(names):
        return names
    told = [", ".join(part for part in (_directory(each), _precision(each)) if part) for each in results]
    longer = [f"{name} ({more})" if more else name for name, more in zip(names, told, strict=True)]
    if len(set(longer)) == len(longer):
        return longer
    return [f"{number}. {name}" for number, name in enumerate(longer, 1)]


def _directory(results: dict[str, Any]) -> str:
    return str(results.get("directory") or "")


def _precision(results: dict[str, Any]) -> str:
    """Of `lmlab, bf16 on cuda` the part behind the comma."""
    return str(results.get("device") or "").partition(", ")[2]


def _lengths(results: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({int(length) for each in results for length in each["average"] if length != "all"})


def _overview(results: Sequence[dict[str, Any]]) -> list[Block]:
    lengths = _lengths(results)
    series = [
        Series(name, [n for n in lengths if _at(each["average"], n) is not None], _values(each["average"], lengths))
        for name, each in zip(_names(results), results, strict=True)
    ]
    blocks: list[Block] = [_runs(results)]
    if any(each.x for each in series):
        blocks.append(
            Figure(
                _over_length(series, "average score"),
                "Mean of the categories' scores at each length.",
                "Average over length",
            )
        )
    rows: list[list[Cell]] = []
    for name, each in zip(_names(results), results, strict=True):
        for category, scores in each["categories"].items():
            rows.append([name, category, *(scores.get(str(length)) for length in lengths)])
        rows.append([name, "Average", *(each["average"].get(str(length)) for length in lengths)])
    blocks.append(
        Table(
            ["model", "category", *(f"{length:,}" for length in lengths)],
            rows,
            "Scores by category and length, 0 to 1. Only runs with the same categories, lengths by the same tokenizer"
            " and the same wording are set side by side.",
        )
    )
    return blocks


def _runs(results: Sequence[dict[str, Any]]) -> Block:
    """What was measured: tiles of one run, a row of each of several."""
    told = [
        {
            "Model": str(each["model"]),
            "Precision": _precision(each) or "not noted",
            "Mode": str(each["mode"]),
            "Average": _shown(each["average"].get("all")),
            "Categories": ", ".join(each["categories"]) or "none",
            "Wording": str(each["template"]),
        }
        for each in results
    ]
    if len(told) == 1:
        return Facts(told[0])
    rows: list[list[Cell]] = [
        [_directory(each) or "not noted", *facts.values()] for each, facts in zip(results, told, strict=True)
    ]
    return Table(["Directory", *told[0]], rows, "The runs; the first is what the others are compared with.")


def _tasks(results: Sequence[dict[str, Any]]) -> list[Block]:
    names, blocks = _names(results), list[Block]()
    lengths = _lengths(results)
    for task in results[0]["tasks"]:
        series = []
        for name, each in zip(names, results, strict=True):
            cells = {int(length): cell for length, cell in each["tasks"].get(task, {}).items() if "score" in cell}
            if cells:
                known = sorted(cells)
                low, high = ([_number(cells[n][end]) for n in known] for end in ("low", "high"))
                series.append(Series(name, known, [cells[n]["score"] for n in known], (low, high)))
        if series and len(lengths) > 1:
            chance = _mean_chance(results[0]["tasks"][task])
            if chance:
                series.append(Series("chance", lengths, [chance] * len(lengths), dashed=True))
            blocks.append(
                Figure(
                    _over_length(series, f"{task}: score"),
                    f"{task}: score with 95 % bootstrap intervals over contexts.",
                    f"{task} over length",
                )
            )
    columns = ["model", "task", "tokens", "n", "metric", "score", "95 % interval", "chance", "items"]
    columns += ["unparsed", "declined", "cut off", "NLL", "tokens right"]
    rows: list[list[Cell]] = []
    for name, each in zip(names, results, strict=True):
        for task, cells in each["tasks"].items():
            for length, cell in cells.items():
                bounds = Bounds.of(cell.get("low"), cell.get("high"))
                main = cell.get("score", cell["figures"].get(cell["metric"]))
                shown = [cell.get(key) for key in ("unparsed", "refused", "cut", "nll", "token_accuracy")]
                items = None if cell["items"] is None else round(cell["items"], 1)
                rows.append(
                    [name, task, int(length), cell["n"], cell["metric"], main, bounds, cell["chance"], items, *shown]
                )
    said = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    columns, rows = [columns[place] for place in said], [[row[place] for place in said] for row in rows]
    blocks.append(Table(columns, rows, "Every task. Controls (niah, ppl_gain and variants) are in no average."))
    reached: list[list[Cell]] = [
        [name, task, known.get("length"), known.get("base"), str(known.get("why", ""))]
        for name, each in zip(names, results, strict=True)
        for task, known in each["effective_length"].items()
        if category_of(task.partition(".")[0]) is not None or task.startswith("niah")
    ]
    caption = "Effective length: the longest at which a score stays at 0.85 of that at the shortest one (NoLiMa)."
    blocks.append(Table(["model", "task", "effective length", "score at the shortest", "note"], reached, caption))
    return blocks


def _depths(results: Sequence[dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for name, each in zip(_names(results), results, strict=True):
        for task, cells in each["depths"].items():
            lengths = sorted({cell["length"] for cell in cells})
            known = {(cell["length"], round(cell["depth"] * 5)): cell["score"] for cell in cells}
            parts = sorted({part for _, part in known})
            if len(parts) < 2:
                continue
            values = [[known.get((length, part), float("nan")) for length in lengths] for part in parts]
            labels = [_DEPTHS[part] for part in parts]
            figure = heat_map(values, [f"{n:,}" for n in lengths], labels, "tokens", "depth", "score")
            blocks.append(Figure(figure, f"{name}: {task} by depth and length.", f"{task} by depth"))
    return blocks


def _controls(results: Sequence[dict[str, Any]]) -> list[Block]:
    rows: list[list[Cell]] = []
    for name, each in zip(_names(results), results, strict=True):
        for task, cells in each["tasks"].items():
            for length, cell in cells.items():
                for control in ("closed", "gold_only"):
                    if control in cell:
                        found = cell[control]
                        with_context = [cell.get("score"), cell.get("nll")]
                        rows.append(
                            [name, task, int(length), control, *with_context, found.get("score"), found.get("nll")]
                        )
    if not rows:
        return []
    columns = ["model", "task", "tokens", "control", "score", "NLL", "score of the control", "NLL of the control"]
    caption = "The same questions without the context (closed), and with the passage that answers alone (gold_only)."
    return [Table(columns, rows, caption)]


def _judged(results: Sequence[dict[str, Any]]) -> list[Block]:
    """What a judge made of summaries and answers."""
    rows: list[list[Cell]] = []
    by: dict[str, None] = {}
    for name, each in zip(_names(results), results, strict=True):
        judged = each.get("judged") or {}
        by |= dict.fromkeys(count["judge"] for count in judged.get("judged", {}).values())
        for task, cells in judged.get("tasks", {}).items():
            for length, cell in cells.items():
                bounds = Bounds.of(cell.get("low"), cell.get("high"))
                parts = [cell.get(part) for part in ("fluency", "correctness", "recall", "precision")]
                rows.append([name, task, int(length), cell["n"], cell["graded"], cell.get("score"), bounds, *parts])
    if not rows:
        return []
    columns = ["model", "task", "tokens", "n", "graded", "score", "95 % interval"]
    columns += ["fluency", "correctness", "recall", "precision"]
    caption = (
        "0 to 1: fluency times correctness, or for summaries times 2 P R / (P + R) of claims. Answers without a"
        f" readable grade are in no mean. Graded by {'; '.join(by)}."
    )
    return [Table(columns, rows, caption)]


def _short(results: Sequence[dict[str, Any]]) -> list[Block]:
    """Short tasks, and what models have kept of them against the first, or against what one was made from."""
    shown = [(name, each.get("short") or {}) for name, each in zip(_names(results), results, strict=True)]
    costs = [
        (name, each["short_cost"], shown[0][0])
        for (name, _), each in zip(shown, results, strict=True)
        if each.get("short_cost")
    ]
    for (name, _), each in zip(list(shown), results, strict=True):
        if base := each.get("short_base"):
            shown.append((f"{base['model']}, before", base["short"]))
            costs += [(name, base["cost"], str(base["model"]))] if base["cost"] else []
    if not any(found for _, found in shown):
        return []
    tasks = list(dict.fromkeys(task for _, found in shown for task in found))
    rows: list[list[Cell]] = [[name, *(_short_figure(found.get(task)) for task in tasks)] for name, found in shown]
    blocks: list[Block] = [Table(["model", *tasks], rows, "Tasks with short prompts.")]
    for name, cost, base in costs:
        told = ShortCost(**cost)
        blocks.append(Note(told.sentence(name, base), _VERDICTS[told.verdict]))
    return blocks


def _short_figure(summary: dict[str, Any] | None) -> float | None:
    if summary is None:
        return None
    figure = summary["figures"].get(summary["metric"])
    return None if figure is None else float(figure["value"])


def _samples(rows: Sequence[dict[str, Any]]) -> list[Block]:
    found: dict[str, list[Block]] = {}
    for row in rows:
        shown = found.setdefault(row["name"], [])
        if row.get("output") is not None and len(shown) < _SAMPLES:
            caption = f"{row['id']}: {row['metric']} {row['score']}"
            shown.append(Sample(f"right: {row['answer'][:300]}\nmodel: ", row["output"][:600], caption))
    return [Details(name, shown) for name, shown in found.items() if shown]


def _mean_chance(cells: dict[str, Any]) -> float | None:
    known = [cell["chance"] for cell in cells.values() if cell["chance"] is not None]
    return sum(known) / len(known) if known else None


def _at(scores: dict[str, Any], length: int) -> Any:
    return scores.get(str(length))


def _values(scores: dict[str, Any], lengths: Sequence[int]) -> list[float]:
    return [scores[str(length)] for length in lengths if scores.get(str(length)) is not None]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _number(value: float | None) -> float:
    """Not-a-number leaves a gap."""
    return float("nan") if value is None else value
