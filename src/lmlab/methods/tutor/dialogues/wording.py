"""How a chapter is put before a question: the same words where a tutor is asked and where it learns."""

from __future__ import annotations

from lmlab.judging import fenced

_OPENING = "I am trying to understand the following passage of a textbook:"


def chapter_part(chapter: str) -> str:
    """The beginning of an open-book prompt, which all questions about a chapter share."""
    return f"{_OPENING}\n{fenced(chapter)}\n\n"
