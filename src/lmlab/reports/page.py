"""A report page: sections of blocks, rendered to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.files import write_text
from lmlab.reports._render import render
from lmlab.reports.blocks import Block


@dataclass(frozen=True)
class Section:
    """A part of a page with an entry in its table of contents.

    Args:
        title: the heading.
        blocks: what the section shows, in order.
        intro: a sentence or two below the heading.
        rank: where it stands in the report of a run: what a reader asks for first has 0, details 9.
    """

    title: str
    blocks: Sequence[Block]
    intro: str = ""
    rank: int = 9


@dataclass(frozen=True)
class Page:
    """One report.

    Args:
        title: the heading of the page and the name of its browser tab.
        subtitle: one sentence below the title.
        sections: the parts of the page, in order.
        generated: when the page was made, as the reader should see it; `None` shows nothing, so that equal content
            gives an equal file.
    """

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = ()
    generated: str | None = None

    def to_html(self) -> str:
        """Return the page as one HTML document that loads nothing from anywhere; plotly.js is in it if a figure is."""
        return render(self)

    def write(self, path: str | Path) -> Path:
        """Write the page as UTF-8 to `path`, whole or not at all, and return `path`. Missing folders are made.

        Raises:
            OSError: the file cannot be written; a previous one is left as it was.
        """
        path = Path(path)
        write_text(path, self.to_html())
        return path
