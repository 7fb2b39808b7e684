"""From a page to HTML: Jinja2 templates with autoescape, everything inlined, nothing loaded from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lmlab.reports._figure_json import escape_json, figure_json
from lmlab.reports._palette import light_to_dark
from lmlab.reports._table import columns_of
from lmlab.reports.blocks import Block, Details, Figure

if TYPE_CHECKING:
    from lmlab.reports.page import Page

_SURROGATE = re.compile("[\ud800-\udfff]")


def render(page: Page) -> str:
    """Return the HTML document of a page."""
    has_figures = any(_contains_figure(section.blocks) for section in page.sections)
    scripts = _Scripts(
        theme=_resource("theme.js"),
        figures=_resource("figures.js") if has_figures else "",
        plotly=_plotly_js() if has_figures else "",
    )
    html = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            section_ids=_section_ids([section.title for section in page.sections]),
            style=Markup(_resource("style.css")),
            scripts=scripts,
            palette=Markup(escape_json(json.dumps(light_to_dark()))),
            figures=_FigureList(),
        )
    )
    return _SURROGATE.sub("\ufffd", html)  # half of a surrogate pair has no UTF-8 encoding


class _Scripts:
    """The inline scripts of a page, and the content security policy that allows these and no others."""

    def __init__(self, theme: str, figures: str, plotly: str) -> None:
        self.theme, self.figures, self.plotly = Markup(theme), Markup(figures), Markup(plotly)

    @property
    def policy(self) -> str:
        sources = " ".join(_csp_hash(script) for script in (self.theme, self.plotly, self.figures) if script)
        directives = {
            "default-src": "'none'",
            "script-src": sources,
            "style-src": "'unsafe-inline'",
            "img-src": "data: blob:",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        return "; ".join(f"{name} {value}" for name, value in directives.items())


@dataclass
class _FigureList:
    """Numbers the figures of a page in the order in which they are rendered."""

    ids: list[str] = field(default_factory=list)

    def add(self) -> str:
        self.ids.append(f"figure-{len(self.ids) + 1}")
        return self.ids[-1]


def _contains_figure(blocks: Sequence[Block]) -> bool:
    folded = [inner for block in blocks if isinstance(block, Details) for inner in block.blocks]
    return any(isinstance(block, Figure) for block in blocks) or (bool(folded) and _contains_figure(folded))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lmlab.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["template_of"] = _template_of
    environment.globals["columns_of"] = columns_of
    environment.filters["paragraphs"] = _paragraphs
    environment.filters["figure_json"] = lambda figure: Markup(figure_json(figure))
    return environment


def _template_of(block: Block) -> str:
    return f"blocks/{type(block).__name__.lower()}.html"


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


@cache
def _resource(name: str) -> str:
    return files("lmlab.reports").joinpath("templates", name).read_text("utf-8")


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
