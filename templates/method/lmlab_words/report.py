"""How the results are shown."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.reports import Section, Table


def words_section(words: Sequence[tuple[str, int]]) -> Section:
    """A table of words and counts."""
    return Section("Words", [Table(["word", "count"], [list(each) for each in words])], "The most frequent words.")
