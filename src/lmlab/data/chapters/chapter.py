"""A chapter: a text of a book with its title; how long it may be, and what a file becomes before it is one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

_SPACES = re.compile(r"[^\S\n]+")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter.

    Attributes:
        path: the file that it is from, as it is called within its source, with `#` and a number where that holds
            several; kept as provenance, since books have licenses. It names the chapter wherever the books lie.
        title: its heading; empty where it has none.
        text: paragraphs with blank lines between them; formulas as LaTeX, headings behind `#`.
        book, domain: what it belongs to.
    """

    path: str
    title: str
    text: str
    book: str = ""
    domain: str = "text"

    @property
    def num_words(self) -> int:
        """How long it is, in words between spaces."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class Part:
    """What a reader finds in a file: a chapter without a place."""

    title: str
    text: str


def tidy(paragraphs: Sequence[str]) -> str:
    """Paragraphs as one text: single blank lines between them, none at the ends."""
    return "\n\n".join(text for each in paragraphs if (text := each.strip("\n").rstrip()))


def flowed(text: str) -> str:
    """Running text on one line, with single spaces."""
    return " ".join(text.split())


def cut_at_paragraph(chapter: Chapter, max_words: int) -> Chapter:
    """The paragraphs from the beginning that fit a number of words.

    Of a first paragraph that is longer by itself, so many words are left, with the spaces between them.
    """
    if chapter.num_words <= max_words:
        return chapter
    kept, words = list[str](), 0
    for paragraph in _PARAGRAPHS.split(chapter.text):
        words += len(paragraph.split())
        if words > max_words:
            break
        kept.append(paragraph)
    while kept and kept[-1].startswith("#"):  # a heading without what it heads
        kept.pop()
    if not kept:
        found = re.match(rf"\s*(?:\S+\s+){{{max_words - 1}}}\S+", chapter.text)
        kept = [found[0] if found else chapter.text]
    return replace(chapter, text="\n\n".join(kept))


def split_at_paragraphs(chapter: Chapter, max_words: int) -> list[Chapter]:
    """A chapter in parts of so many words at most, each of whole paragraphs; a heading stands before what it heads.

    All parts have the path of the chapter. Of a paragraph that is longer by itself, its beginning is a part.
    """
    parts: list[list[str]] = [[]]
    words = 0
    for paragraph in _PARAGRAPHS.split(chapter.text):
        own = len(paragraph.split())
        if words + own > max_words and parts[-1]:
            moved: list[str] = []
            while parts[-1] and parts[-1][-1].startswith("#"):
                moved.insert(0, parts[-1].pop())
            parts.append(moved)
            words = sum(len(each.split()) for each in moved)
        parts[-1].append(paragraph)
        words += own
    found = [replace(chapter, text="\n\n".join(part)) for part in parts if part]
    return [cut_at_paragraph(each, max_words) for each in found]


def without_indent(lines: Sequence[str]) -> list[str]:
    """Lines without the spaces that all of them begin with; blank lines have none."""
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:].rstrip() if line.strip() else "" for line in lines]


def squeezed(text: str) -> Iterator[str]:
    """The paragraphs of a text that has blank lines between them, each with single spaces within its lines."""
    for paragraph in _PARAGRAPHS.split(text.replace("\r\n", "\n")):
        if lines := [_SPACES.sub(" ", line).strip() for line in paragraph.split("\n") if line.strip()]:
            yield "\n".join(lines)
