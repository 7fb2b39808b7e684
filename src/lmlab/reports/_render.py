"""From a page to HTML: Jinja2 templates with autoescape, everything inlined, nothing loaded from outside."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from lmlab.redaction import redact, redact_all
from lmlab.reports._figure_json import escape_json, figure_json
from lmlab.reports._palette import light_to_dark
from lmlab.reports._scripts import resource, scripts_for
from lmlab.reports._table import columns_of
from lmlab.reports.blocks import Block, Graph

if TYPE_CHECKING:
    from jinja2 import Environment

    from lmlab.reports.page import Page

_READABLE = 150  # edges that a reader can follow at first
_TILE_WORD, _TILE_TEXT = 12, 24  # characters of large type that fit in a line and in two lines of a tile
_SURROGATE = re.compile("[\ud800-\udfff]")


def render(page: Page) -> str:
    """Return the HTML document of a page."""
    html = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            section_ids=_section_ids([section.title for section in page.sections]),
            style=Markup(resource("style.css")),
            scripts=scripts_for([block for section in page.sections for block in section.blocks]),
            palette=Markup(escape_json(json.dumps(light_to_dark()))),
            figures=_FigureList(),
        )
    )
    return _SURROGATE.sub("\ufffd", html)  # half of a surrogate pair has no UTF-8 encoding


@dataclass
class _FigureList:
    """Numbers the figures of a page in the order in which they are rendered."""

    ids: list[str] = field(default_factory=list)

    def add(self) -> str:
        self.ids.append(f"figure-{len(self.ids) + 1}")
        return self.ids[-1]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lmlab.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: redact(value) if type(value) is str else value,  # a page is passed on
    )
    environment.globals["template_of"] = _template_of
    environment.globals["columns_of"] = columns_of
    environment.filters["wordy"] = _wordy
    environment.filters["paragraphs"] = _paragraphs
    environment.filters["figure_json"] = lambda figure: Markup(figure_json(figure))
    environment.filters["graph_json"] = _graph_json
    return environment


def _template_of(block: Block) -> str:
    return f"blocks/{type(block).__name__.lower()}.html"


def _graph_json(graph: Graph) -> Markup:
    content = {
        "nodes": graph.nodes,
        "edges": graph.edges,
        "kinds": graph.kinds,
        "total": graph.total,
        "kept": graph.kept,
        "whole": graph.whole,
        "first": min(graph.kept, _READABLE),
        "weight": graph.weight,
        "links": graph.links,
    }
    return Markup(escape_json(json.dumps(redact_all(content), allow_nan=False)))


def _wordy(text: str) -> bool:
    """Whether a text is too long for the large type of a tile."""
    return len(text) > _TILE_TEXT or any(len(word) > _TILE_WORD for word in text.split())


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _section_ids(titles: Sequence[str]) -> list[str]:
    """Readable and unique fragment names: the n-th title that gives the same name gets the suffix "-n"."""
    ids: list[str] = []
    for title in titles:
        ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        name = "section-" + (re.sub(r"[^a-z0-9]+", "-", ascii_title).strip("-") or "untitled")
        number, unique = 1, name
        while unique in ids:
            number += 1
            unique = f"{name}-{number}"
        ids.append(unique)
    return ids
