"""Documents from tables of text: CSV and TSV, with named columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from lmlab.data.documents import Reject
from lmlab.data.sources.jsonl import bounded_lines, too_long
from lmlab.data.sources.reading.files import Encoding, open_text
from lmlab.data.sources.reading.records import RecordSource, parse_text
from lmlab.errors import UserError
from lmlab.files import DamagedError, without_compression
from lmlab.redaction import redact

_FIRST_ROW = 2**13  # bytes in which the first row is looked at; a header is rarely longer


class CsvSource(RecordSource):
    """CSV and TSV, quoted as RFC 4180 has it: a quoted value may hold line ends.

    Attributes:
        encoding: of the files; `auto` is UTF-8, or what a byte order mark says.
        delimiter: between values; by default a tab in files named `.tsv` or `.tab`, else a comma, or what stands in the
            first row where no comma does: a semicolon, a tab, or an upright line.
        column_names: of files without a first row that names the columns.
    """

    kind: Literal["csv"] = "csv"
    encoding: Encoding = "auto"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    column_names: tuple[str, ...] | None = Field(default=None, min_length=1)
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab")

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a row; its place is the line on which it ends."""
        shown = redact(path)
        with open_text(self, path, self.encoding) as file:
            lines = _Lines(bounded_lines(file, self.max_record_bytes), shown)
            delimiter = self.delimiter or _delimiter(file, without_compression(path).endswith((".tsv", ".tab")))
            # the limit of the module is one for all readers of the process: it only ever grows
            csv.field_size_limit(max(csv.field_size_limit(), self.max_record_bytes))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            names = self._names_of(reader, shown, columns)
            while names is not None:
                lines.length, lines.torn, began = 0, False, lines.number + 1
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    if lines.ended and "unexpected end" in str(error):
                        raise DamagedError(
                            f"{shown}:{began}", "a quote is opened on this line and never closed"
                        ) from None
                    yield f"{shown}:{lines.number}", Reject(f"{shown}:{lines.number}", f"not valid CSV ({error})")
                    continue
                where = f"{shown}:{lines.number}"
                yield from ((where, reject) for reject in lines.rejects)
                lines.rejects.clear()
                if row is None:
                    return
                if lines.torn:
                    yield where, Reject(where, "one of the lines of a quoted value cannot be read")
                elif lines.length > self.max_record_bytes:
                    yield where, too_long(where, "a row", self.max_record_bytes)
                elif row and len(row) != len(names):
                    if len(row) < len(names) and lines.cut:
                        raise DamagedError(where, f"the last row is cut short: {len(row)} of {len(names)} values")
                    yield where, Reject(where, f"not as many values as columns ({len(row)} of {len(names)})")
                elif row:
                    yield where, dict(zip(names, row, strict=True))

    def _names_of(self, reader: Any, shown: str, wanted: Sequence[str] | None) -> list[str] | None:
        if self.column_names is not None:
            return list(self.column_names)
        names = next(reader, None)
        # records of conversations are read whole, and have no field of text
        if names is not None and self.text_field in (wanted or ()) and self.text_field not in names:
            raise UserError(
                f"'{shown}' has no column '{self.text_field}'; its columns are {', '.join(names)[:300]}.",
                "Name one with text_field, or all with column_names where the first row names none.",
            )
        return names


def _delimiter(file: Any, tabs: bool) -> str:
    """What stands between values, by the first row: where numbers are written with commas, programs take semicolons."""
    first = re.sub(rb'"[^"]*"', b"", file.peek(_FIRST_ROW)[:_FIRST_ROW].splitlines()[0]) if file.peek(1) else b""
    usual = "\t" if tabs else ","
    if usual.encode() in first:
        return usual
    return next((sign for sign in (";", "\t", "|", ",") if sign.encode() in first), usual)


class _Lines:
    """Lines of text for `csv`, which puts those of a quoted value together again."""

    def __init__(self, lines: Iterator[bytes | None], shown: str) -> None:
        self._lines, self._shown = lines, shown
        self.number = self.length = 0
        self.rejects: list[Reject] = []
        self.ended = self.cut = False
        self.torn = False  # a line was left out after others of the same row

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        while True:
            line = next(self._lines, b"")
            self.number += 1
            where = f"{self._shown}:{self.number}"
            if line == b"":
                self.ended = True
                raise StopIteration
            if line is None:
                self.rejects.append(Reject(where, "a line that is longer than max_record_bytes"))
                self.torn |= self.length > 0
                continue
            self.cut = not line.endswith((b"\n", b"\r"))
            text = parse_text(line, where)
            if not isinstance(text, Reject):
                self.length += len(line)
                return text
            self.rejects.append(text)
            self.torn |= self.length > 0
