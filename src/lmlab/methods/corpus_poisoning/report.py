"""One page: what the attack reaches undefended and defended, and what each defense costs in clean quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import write_json, write_text
from lmlab.reports import Bounds, Code, Facts, Figure, Note, Page, Paragraph, Section, Series, Table, line_chart
from lmlab.words import counted

_NOTES = 3  # of passages, that a page shows
NO_DEFENSES = (
    "This report has no table of defenses, as was asked for (--no-defenses). An attack figure alone says little."
)
PURPOSE = (
    "This measures the robustness of one's own retriever on one's own corpora. Crafted passages are an overlay that is"
    " marked and has a list of ids to remove; nothing was written into a corpus or posted to an index."
)


def build(attacks: Sequence[dict[str, Any]], defenses: Sequence[dict[str, Any]] | None) -> Page:
    """The page.

    Arguments:
        attacks: `name`, `found` (figures of `evaluate_on`), `examples` (texts with id, stopped, payload), `summary`
            (of the crafting).
        defenses: rows of `DefenseRow`; None where the user wants none.

    Raises:
        UserError: there are no rows of defenses, and the user did not say that none are wanted.
    """
    if defenses is not None and not defenses:
        raise UserError("A report of attacks needs a table of defenses beside them.", "Or say --no-defenses.")
    sections = [_overview(attacks, defenses), _attacks(attacks)]
    if defenses:
        sections.append(_defenses(defenses))
    return Page("Robustness of a retriever", PURPOSE, [*sections, _examples(attacks, defenses or [])])


def _overview(attacks: Sequence[dict[str, Any]], defenses: Sequence[dict[str, Any]] | None) -> Section:
    facts = {}
    for each in attacks:
        found = each["found"]
        if "20" in found["asr"]:
            facts[f"{each['name']}: ASR@20, undefended"] = f"{100 * found['asr']['20']:.1f} %"
        own = [row for row in defenses or [] if row["attack"] == each["name"] and row["defense"] == "stack"]
        if own and "20" in own[0]["asr"]:
            facts[f"{each['name']}: ASR@20, defended"] = f"{100 * own[0]['asr']['20']:.1f} %"
            if own[0]["ndcg_change"] is not None:
                facts["Clean nDCG@10, change by the defense"] = f"{own[0]['ndcg_change']:+.4f}"
    blocks: list[Any] = [Facts(facts)] if facts else []
    blocks += [Note(NO_DEFENSES, "warning")] if defenses is None else []
    return Section("Undefended, defended, and the cost", blocks or [Paragraph(PURPOSE)], rank=0)


def _attacks(attacks: Sequence[dict[str, Any]]) -> Section:
    rows: list[list[Any]] = []
    curves = []
    for each in attacks:
        found = each["found"]
        for k, value in found["asr"].items():
            low, high = found["interval"][k]
            ceiling = (found["perfect"] or {}).get(k)
            rows.append(
                [
                    each["name"],
                    found["passages"],
                    int(k),
                    100 * value,
                    Bounds.of(100 * low, 100 * high),
                    None if ceiling is None else 100 * ceiling,
                    100 * found["share"][k],
                ]
            )
        curves.append(Series(each["name"], [int(k) for k in found["asr"]], [100 * v for v in found["asr"].values()]))
    columns = ["Attack", "Passages", "k", "ASR@k %", "95 % interval", "Ceiling %", "Share of results %"]
    caption = "Share of held-out queries of which some passage is among the first k; the ceiling is that of centroids."
    cost: list[list[Any]] = [
        [
            each["name"],
            each["found"]["ndcg_before"],
            each["found"]["ndcg_after"],
            each["found"]["mean_rank"],
            100 * each["found"]["poison_rate"],
            each.get("summary", {}).get("cpu_seconds"),
            each.get("summary", {}).get("evaluations"),
        ]
        for each in attacks
    ]
    blocks: list[Any] = [
        Table(columns, rows, caption),
        Table(
            ["Attack", "nDCG@10 before", "nDCG@10 after", "Mean rank", "% of corpus", "CPU s", "Evaluations"],
            cost,
            "What the passages displace, and what they took to craft.",
        ),
    ]
    for each in attacks:
        if notes := each.get("notes"):
            more = f" {counted(len(notes), 'passages have')} notes." if len(notes) > _NOTES else ""
            blocks.append(Note(f"{each['name']}: {' '.join(notes[:_NOTES])}{more}", "info"))
    if any(len(series.x) > 1 for series in curves):
        blocks.append(Figure(line_chart(curves, "k", "ASR@k (%)", log_x=True), "Success over the depth of results."))
    added = [
        Series(each["name"], [int(n) for n in curve["asr"]], [100 * rate for rate in curve["asr"].values()])
        for each in attacks
        if len((curve := each["found"].get("by_count", {"asr": {}}))["asr"]) > 1
    ]
    if added:
        k = attacks[0]["found"]["by_count"]["k"]
        chart = line_chart(added, "passages", f"ASR@{k} (%)", log_x=True)
        blocks.append(Figure(chart, "Success over the number of passages, in the order in which they were crafted."))
    return Section("The attack, undefended", blocks, rank=1)


def _defenses(rows: Sequence[dict[str, Any]]) -> Section:
    rates = sorted({rate for row in rows for rate in row["tpr"]}, key=float)  # the gate has a rate of its own
    depths = sorted({k for row in rows for k in row["asr"]}, key=int)
    table = [
        [
            row["defense"],
            row["attack"],
            row["auroc"],
            *(None if rate not in row["tpr"] else 100 * row["tpr"][rate] for rate in rates),
            *(100 * row["asr"][k] for k in depths),
            None if row["fpr"] is None else 100 * row["fpr"],
            row["ndcg_change"],
        ]
        for row in rows
    ]
    columns = ["Defense", "Attack", "AUROC", *(f"Refused at {100 * float(rate):g} % clean" for rate in rates)]
    columns += [f"ASR@{k} % left" for k in depths] + ["Clean refused %", "Clean nDCG@10"]
    return Section(
        "Defenses",
        [
            Table(
                columns,
                table,
                "Detectors are fitted on a third of the clean documents, thresholds set on another. Of detectors that"
                " run a network for each passage all this is on a sample, from which the change of nDCG is scaled up.",
            )
        ],
        "An attacker who knows a defense works around it: compare rows of adaptive attacks, where there are some.",
        rank=2,
    )


def _examples(attacks: Sequence[dict[str, Any]], defenses: Sequence[dict[str, Any]]) -> Section:
    blocks: list[Any] = []
    for each in attacks:
        for example in each["examples"][:3]:
            told = f"{each['name']}, {example['id']}"
            if example.get("payload"):
                told += f"; payload: {example['payload']}"
            if carried := each["found"].get("carriers", {}).get(example["id"]):
                told += f"; carried by: {', '.join(token for token, _ in carried)}"
            blocks.append(Code(example["text"], told))
    for row in defenses:
        if row["defense"] == "stack":
            blocks += [Code(text, f"{row['attack']}: escaped the gate") for text in row["escaped"]]
    return Section("Examples", blocks or [Paragraph("There are none.")], rank=5)


def write(page: Page, attacks: Sequence[dict[str, Any]], defenses: Sequence[dict[str, Any]] | None, out: Path) -> None:
    """Write `report.html`, `report.json` and `report.md`."""
    page.write(out / "report.html")
    write_json(
        out / "report.json", {"attacks": list(attacks), "defenses": None if defenses is None else list(defenses)}
    )
    write_text(out / "report.md", _markdown(attacks, defenses))


def _markdown(attacks: Sequence[dict[str, Any]], defenses: Sequence[dict[str, Any]] | None) -> str:
    lines = ["# Robustness of a retriever", "", PURPOSE, "", "| attack | passages | k | ASR@k % |", "|---|---|---|---|"]
    for each in attacks:
        found = each["found"]
        for k, value in found["asr"].items():
            lines.append(f"| {_cell(each['name'])} | {found['passages']} | {k} | {100 * value:.2f} |")
    if defenses is None:
        return "\n".join([*lines, "", NO_DEFENSES, ""])
    lines += ["", "| defense | attack | refused | ASR@k % left | clean nDCG@10 |", "|---|---|---|---|---|"]
    for row in defenses:
        refused = ", ".join(f"{100 * value:.0f} % at {100 * float(rate):g} %" for rate, value in row["tpr"].items())
        left = ", ".join(f"@{k} {100 * value:.1f}" for k, value in row["asr"].items())
        change = "" if row["ndcg_change"] is None else f"{row['ndcg_change']:+.4f}"
        lines.append(f"| {row['defense']} | {_cell(row['attack'])} | {refused} | {left} | {change} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text in a table of Markdown, without markup."""
    shown = "".join(f"\\{each}" if each in "\\`*_{}[]()#+!|<>&~" else each for each in text)
    return shown.replace("\n", " ")
