"""The inline scripts of a page, and the content security policy that allows these, no others, and no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from lmlab.reports.blocks import Block, Columns, Details, Figure, Graph

# Plotly compiles the drawing code of these trace types at run time.
_COMPILED_TRACES = frozenset(
    {
        "cone",
        "isosurface",
        "mesh3d",
        "parcoords",
        "scatter3d",
        "scattergl",
        "scatterpolargl",
        "splom",
        "streamtube",
        "surface",
        "volume",
    }
)


@dataclass(frozen=True)
class Scripts:
    """The scripts of a page as markup, empty where the page has no figure, and the policy for them."""

    theme: Markup
    plotly: Markup
    figures: Markup
    graphs: Markup
    policy: str


def scripts_for(blocks: Sequence[Block]) -> Scripts:
    """Return the scripts that a page with these blocks needs."""
    figures = [block for block in _flat(blocks) if isinstance(block, Figure)]
    theme = resource("theme.js")
    plotly = _plotly_js() if figures else ""
    drawing = resource("figures.js") if figures else ""
    graphs = resource("graph.js") if any(isinstance(block, Graph) for block in _flat(blocks)) else ""
    compiles = any(trace.type in _COMPILED_TRACES for block in figures for trace in block.figure.data)
    policy = _policy([script for script in (theme, plotly, drawing, graphs) if script], compiles)
    return Scripts(Markup(theme), Markup(plotly), Markup(drawing), Markup(graphs), policy)


@cache
def resource(name: str) -> str:
    """The text of a file among the templates."""
    return files("lmlab.reports").joinpath("templates", name).read_text("utf-8")


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Details):
            yield from _flat(block.blocks)
        elif isinstance(block, Columns):
            for each in block.columns:
                yield from _flat(each)


def _policy(scripts: Sequence[str], compiles: bool) -> str:
    sources = [_hash(script) for script in scripts]
    directives = {
        "default-src": "'none'",
        "script-src": " ".join([*sources, "'unsafe-eval'"] if compiles else sources),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
