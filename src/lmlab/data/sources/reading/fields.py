"""Which fields and which split of records are read: what sources and commands share; it loads nothing."""

from __future__ import annotations

from typing import Any

from lmlab.config import Config


class TextFields(Config):
    """Which fields of a record hold its text and its domain.

    Attributes:
        text_field: dotted field that holds the text of a record, as meta.text.
        domain_field: dotted field with the domain of a record, for figures by domain; a fixed `domain` of a source goes
            before it.
    """

    text_field: str = "text"
    domain_field: str | None = None


class RecordFields(TextFields):
    """Which fields of a record hold what.

    Attributes:
        id_field: dotted field with the id of a record, by default its place.
    """

    id_field: str | None = None


class SplitOption(Config):
    """Which part of a source is read.

    Attributes:
        split: which split is read, by name, or all; by default train where there are several.
    """

    split: str | None = None


class ReadingOptions(RecordFields, SplitOption):
    """What a command may say of how records are read."""

    def given(self) -> dict[str, Any]:
        """Those that are not None, as settings of a source."""
        return {name: value for name, value in self if value is not None}
