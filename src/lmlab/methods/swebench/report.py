"""The page of an evaluation: which issues are resolved, why others are not, patch and log beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmlab.methods.swebench.grading.find_logs import OUTPUT
from lmlab.methods.swebench.harness.evaluate import Evaluated
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.reports import (
    Block,
    Code,
    Columns,
    Details,
    Facts,
    Note,
    Page,
    Paragraph,
    Section,
    Table,
    Tone,
    format_duration,
)
from lmlab.words import counted

_MOST_SHOWN = 200  # instances with patch and log; a page of thousands is no page
_LOG_TAIL, _MOST_OF_A_PATCH = 6_000, 20_000  # characters


def evaluation_page(
    done: Evaluated, instances: Sequence[Instance], predictions: Mapping[str, Prediction], logs: Path
) -> Page:
    """The page of one model's run.

    Arguments:
        logs: the folder with one folder an instance.
    """
    summary, share = done.summary, done.share
    low, high = (100 * each for each in share.interval.bounds)
    facts = {
        "Resolved": f"{share.resolved} of {share.total}",
        "Share": f"{100 * share.interval.value:.1f} %",
        "95 % interval, %": f"{low:.1f} to {high:.1f}",
        "Isolation": summary["provenance"]["isolation"],
        "Time": format_duration(summary["seconds"]),
    }
    if "cost_usd" in summary:
        each = summary["cost_usd_per_resolved"]
        facts["Cost, USD"] = f"{summary['cost_usd']:.4g}" + ("" if each is None else f", {each:.4g} an issue resolved")
    if "full_suite" in summary:
        facts["Break other tests"] = f"{summary['full_suite']['broken']} of {summary['full_suite']['checked']} resolved"
    if "impossible" in summary:
        facts["Impossible, passed"] = f"{summary['impossible']['passed']} of {summary['impossible']['total']}"
    first = [Facts(facts)]
    controlled = summary["provenance"]["control"]
    notes = [] if controlled else [Note("Without control runs a pass can be forged.", "warning")]
    if summary["statuses"].get("infra"):
        lost = summary["statuses"]["infra"]
        notes.append(Note(f"No verdict for {_patches(lost)}: the surroundings have failed.", "bad"))
    rows = [
        [name, each["status"], each["reason"].splitlines()[0][:200] if each["reason"] else "", each["test_s"]]
        for name, each in summary["instances"].items()
    ]
    verdicts = Table(["instance", "status", "reason", "seconds of tests"], rows)
    known = {each.instance_id: each for each in instances}
    details = [
        Details(f"{name}: {done.results[name].status}", _blocks(known[name], predictions[name], done, logs / name))
        for name in list(summary["instances"])[:_MOST_SHOWN]
    ]
    held = ", ".join(f"{limit} by {how}" for limit, how in summary["provenance"]["enforced"].items())
    return Page(
        "Issues resolved",
        f"{next(iter(predictions.values())).model}, {_patches(len(predictions))}",
        [
            Section("Result", [*first, *notes, verdicts], rank=0),
            Section("Patches and logs", [*_left_out(len(verdicts.rows)), *details], _ABOUT_DETAILS),
            Section("Surroundings", [Paragraph(f"Limits were held: {held}."), Code(_lines(summary["provenance"]))]),
        ],
    )


_ABOUT_DETAILS = "What each patch is, and what the tests said of it."


def _left_out(count: int) -> list[Block]:
    if count <= _MOST_SHOWN:
        return []
    return [Note(f"The first {_MOST_SHOWN} of {counted(count, 'instances')}; the folders of logs have all of them.")]


def model_sections(results: Mapping[str, Any]) -> list[Section]:
    """A row for each model of the stage `swe_evaluate`."""
    rows = [
        [
            each["model"],
            f"{each['resolved']} of {each['total']}",
            f"{100 * each['share']:.1f}",
            f"{100 * each['low']:.1f} to {100 * each['high']:.1f}",
            ", ".join(f"{count} {status}" for status, count in each["statuses"].items()),
            each["page"],
        ]
        for each in results["models"]
    ]
    columns = ["model", "resolved", "share, %", "95 % interval, %", "statuses", "patches and logs"]
    notes = [] if results["control"] else [Note("Without control runs a pass can be forged.", "warning")]
    told = f"Which issues the patches resolve, by their hidden tests in a sandbox ({results['isolation']})."
    return [Section("Issues resolved", [*notes, Table(columns, rows)], told)]


def _blocks(instance: Instance, prediction: Prediction, done: Evaluated, folder: Path) -> list[Block]:
    result = done.results[instance.instance_id]
    found: list[Block] = [Paragraph(instance.problem_statement[:4000])]
    if result.touches_test_infra:
        paths = ", ".join(result.touches_test_infra)
        found.append(Note(f"It changes how tests are found or judged; the verdict is without: {paths}.", "warning"))
    suite = result.evidence.get("full_suite") or {}
    if suite.get("broken"):
        found.append(Note(f"It breaks other tests: {', '.join(suite['names'][:10])}.", "warning"))
    elif "why_not" in suite:
        found.append(Note(f"Which other tests it breaks is not known: {suite['why_not']}", "warning"))
    left = [_patch("the patch", prediction.patch or "")]
    if instance.patch.strip() and instance.patch.strip() != (prediction.patch or "").strip():
        left.append(_patch("the reference solution", instance.patch))
    right: list[Block] = []
    if result.failures:
        right.append(Code("\n".join(result.failures[:50]), "not as expected"))
    log = folder / OUTPUT
    if log.exists():
        text = log.read_text("utf-8", "replace")[-_LOG_TAIL:]
        right.append(Code(text, "the end of the log", _tones(text, _TONES_OF_LOGS)))
    found.append(Columns([left, right]) if right else left[0])
    return found


def _patch(caption: str, text: str) -> Block:
    if len(text) > _MOST_OF_A_PATCH:
        caption += f", its first {_MOST_OF_A_PATCH:,} characters of {len(text):,}"
        text = text[:_MOST_OF_A_PATCH]
    return Code(text, caption, _tones(text, _TONES_OF_PATCHES))


# The first that a line begins with
_TONES_OF_PATCHES: Mapping[str, Tone] = {
    **dict.fromkeys(("diff ", "index ", "--- ", "+++ ", "new file ", "deleted file "), "muted"),
    "@@": "accent",
    "+": "good",
    "-": "bad",
}
_TONES_OF_LOGS: Mapping[str, Tone] = {
    "PASSED": "good",
    **dict.fromkeys(("FAILED", "ERROR", "E  "), "bad"),
    **dict.fromkeys(("SKIPPED", "XFAIL", "XPASS"), "warning"),
    **dict.fromkeys(("====", "____"), "accent"),
}


def _tones(text: str, known: Mapping[str, Tone]) -> dict[int, Tone]:
    found = {}
    for number, line in enumerate(text.split("\n")):
        for begin, tone in known.items():
            if line.startswith(begin):
                found[number] = tone
                break
    return found


def _patches(count: int) -> str:
    return counted(count, "patches")


def _lines(values: Mapping[str, Any]) -> str:
    """A line for each value, of mappings one for each of theirs, in words of YAML."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip()
