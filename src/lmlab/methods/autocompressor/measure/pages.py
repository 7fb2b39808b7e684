"""Sections of the pages of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.methods.autocompressor.measure import ppl, rag, rerank
from lmlab.methods.autocompressor.measure.icl import icl
from lmlab.reports import Facts, Figure, Section, Series, Table, line_chart
from lmlab.words import counted


def measured_sections(places: Sequence[Path]) -> list[Section]:
    """What the measurements in folders found: perplexity, demonstrations, retrieval, re-ranking.

    Raises:
        UserError: a folder holds none of them.
    """
    sections = []
    for place in places:
        known = [(name, make) for name, make in _PAGES.items() if (place / name).is_file()]
        if not known:
            raise UserError(f"'{place}' holds none of {', '.join(_PAGES)}.", "Name folders of --out.")
        sections += [make(read_mapping(place / name), place) for name, make in known]
    return sections


def ppl_section(found: Mapping[str, Any], place: Path) -> Section:
    """Perplexity over context by line, and what summaries gain."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, cell in found["lines"].items():
        line, _, context = name.partition("/")
        curves.setdefault(line, []).append((int(context), cell["perplexity"]))
    drawn = [Series(line, [x for x, _ in points], [y for _, y in points]) for line, points in curves.items()]
    caption = "Perplexity of the same tokens after other contexts."
    retained = {
        f"Gain retained at {context} tokens": "no gain that can be told"
        if each["share"] is None
        else f"{each['share']:.0%}"
        for context, each in found["gain_retained"].items()
    }
    columns = ["line", "context", "perplexity", "gain in nats (95 %)", "summaries better by"]
    blocks: list[Any] = [
        Facts({"Texts": f"{found['texts']:,}", "Too short": f"{found['too_short']:,}", **retained}),
        Figure(line_chart(drawn, "tokens of context", "perplexity"), caption, caption),
        Table(columns, list(ppl.table(found)), "Intervals are over documents, paired (bootstrap)."),
    ]
    return Section(f"Perplexity after compressed context ({place.name})", blocks)


def _icl_section(found: Mapping[str, Any], place: Path) -> Section:
    rows = [[n, f"{s['accuracy']:.3f}", s["vectors"], str(s["soft"]), s["plain"]] for n, s in enumerate(found["seeds"])]
    spread = "" if found["sd"] is None else f" (sd {found['sd']:.1%})"
    facts = {"Accuracy": f"{found['accuracy']:.1%}{spread}", "Always the commonest": f"{found['majority']:.1%}"}
    table = Table(["draw", "accuracy", "vectors", "compressed", "plain"], rows, "Draws of demonstrations")
    return Section(f"Demonstrations: {found['task']} ({place.name})", [Facts(facts), table])


def _rag_section(found: Mapping[str, Any], place: Path) -> Section:
    table = Table(["line", "passages", "perplexity", "gain", "95 %"], list(rag.table(found)), "Retrieved passages")
    return Section(f"Retrieved passages ({place.name})", [table])


def _rerank_section(found: Mapping[str, Any], place: Path) -> Section:
    rows = [[n, f"{c['recall']:.3f}", c.get("questions_per_second")] for n, c in found["ways"].items()]
    columns = ["ranked by", f"recall@{found['k']}", "questions a second"]
    return Section(f"Re-ranking ({place.name})", [Table(columns, rows, f"{counted(found['questions'], 'questions')}")])


_PAGES = {
    ppl.RESULTS: ppl_section,
    icl.RESULTS: _icl_section,
    rag.RESULTS: _rag_section,
    rerank.RESULTS: _rerank_section,
}
