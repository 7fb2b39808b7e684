"""The HTML page of a program: what comes from outside is escaped by Jinja, or is JSON that the script puts in as
text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

_TEMPLATE = "page.html"


def render(
    title: str,
    data: Mapping[str, Any],
    figures: Mapping[str, float],
    size: Mapping[str, int],
    confusions: Sequence[tuple[str, str, int]],
    dead: Sequence[tuple[str, str]],
    num_dead: int,
) -> str:
    """The page.

    Arguments:
        data: what the script shows, JSON.
        figures: shares, and whole numbers.
        confusions: right label, answer, how often.
        dead: variable and branch; `num_dead` says how many there are in all.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    # inside a script element only these could end it
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    source = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        title=title, data=Markup(text), figures=figures, size=size, confusions=confusions, dead=dead, num_dead=num_dead
    )
