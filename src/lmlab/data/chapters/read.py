"""Chapters from files and folders, by the form of each file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from lmlab.data.chapters.chapter import Part, tidy
from lmlab.data.chapters.docbook import read_docbook
from lmlab.data.chapters.hypertext import read_html
from lmlab.data.chapters.latex import read_latex
from lmlab.data.chapters.rst import read_rst
from lmlab.files import without_compression

_HEADING = re.compile(r"#{1,6} +(.+)")


def read_plain(text: str) -> list[Part]:
    """Plain text or Markdown, which is a chapter as it is; its title is its first heading, if it has one."""
    found = tidy([text.replace("\r\n", "\n")])
    title = next((match[1] for line in found.split("\n") if (match := _HEADING.fullmatch(line.strip()))), "")
    return [Part(title, found)] if found else []


READERS: dict[str, Callable[[str], list[Part]]] = {
    ".docbook": read_docbook,
    ".dbk": read_docbook,
    ".xml": read_docbook,
    ".rst": read_rst,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".tex": read_latex,
    ".ltx": read_latex,
    ".md": read_plain,
    ".txt": read_plain,
    ".text": read_plain,
}
"""What reads files by the ends of their names."""


def reader_of(path: str) -> Callable[[str], list[Part]] | None:
    """What reads a file; the sources beside pages of Sphinx (`NAME.rst.txt`) are reStructuredText."""
    name = PurePosixPath(without_compression(path))
    if name.suffix == ".txt" and PurePosixPath(name.stem).suffix == ".rst":
        return read_rst
    return READERS.get(name.suffix.lower())
