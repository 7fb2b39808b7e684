"""Documents from JSON: lines, arrays, and objects one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, ClassVar, Literal

from lmlab.data.documents import Reject
from lmlab.data.sources.reading.files import Encoding, open_text
from lmlab.data.sources.reading.records import RecordSource, parse_json
from lmlab.files import DamagedError, is_folder, without_compression
from lmlab.redaction import redact

_BUFFER_BYTES = 2**20  # read at once: less makes more calls, more takes memory for each file that is open
_PEEK_BYTES = 4096  # from which it is told whether values stand on lines; a longer first line is taken for one
_LISTS = re.compile(rb"\[[^\n]*\][ \t\r]*\n\[")  # a list a line, each a record of its own
_OUTSIDE, _INSIDE = re.compile(rb'["{}\[\]]'), re.compile(rb'["\\]')
_BETWEEN = b" \t\r\n,"


class JsonlSource(RecordSource):
    """JSON lines. A file that begins with `[` is an array of records, and one named `.json` may hold records of several
    lines.

    Attributes:
        encoding: of the files; `auto` is UTF-8, or what a byte order mark says.
    """

    kind: Literal["jsonl"] = "jsonl"
    encoding: Encoding = "auto"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def _found(self) -> list[str]:
        """Of a folder with JSON lines, files of plain JSON are none of them, as they tend to describe the others;
        those that are compressed are data. Where no file is named as lines, all are, and so are files of a glob.
        """
        found = super()._found()
        if not is_folder(self.path) or all(without_compression(path).lower().endswith(".json") for path in found):
            return found
        return [path for path in found if not path.lower().endswith(".json")]

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a line, or a value; empty lines are none."""
        with open_text(self, path, self.encoding) as file:
            head = file.peek(_PEEK_BYTES)[:_PEEK_BYTES].lstrip()  # type: ignore[attr-defined]
            whole = without_compression(path).lower().endswith(".json")
            if not whole and _LISTS.match(head):
                yield from self._lines(file, path)
            elif re.match(rb"\[\s*(?:[{\]]|\Z)", head):
                yield from _values(file, path, 1, self.max_record_bytes)
            elif whole and head.startswith(b"{") and not _is_line(head):
                yield from _values(file, path, 0, self.max_record_bytes)
            else:
                yield from self._lines(file, path)

    def _lines(self, file: IO[bytes], path: str) -> Iterator[tuple[str, Any]]:
        shown = redact(path)
        for number, line in enumerate(bounded_lines(file, self.max_record_bytes), 1):
            where = f"{shown}:{number}"
            if line is None:
                yield where, too_long(where, "a line", self.max_record_bytes)
            elif line.strip():
                record = parse_json(line, where)
                if isinstance(record, Reject) and not line.endswith(b"\n"):
                    raise DamagedError(where, f"the last line is cut short or no JSON, {record.reason}")
                yield where, record


def too_long(where: str, what: str, limit: int) -> Reject:
    """The reject of what is longer than a source reads."""
    return Reject(where, f"{what} of more than {limit} bytes (max_record_bytes)")


def bounded_lines(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a file; None for one of more than `limit` bytes, which is passed over in pieces."""
    while line := file.readline(limit + 2):
        if len(line.rstrip(b"\r\n")) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_BUFFER_BYTES)
        yield None


def _is_line(head: bytes) -> bool:
    """Whether the first line is a value of its own, or longer than what is seen of it."""
    line, newline, _ = head.partition(b"\n")
    return (len(head) >= _PEEK_BYTES and not newline) or not isinstance(parse_json(line, ""), Reject)


def _values(file: IO[bytes], path: str, base: int, limit: int) -> Iterator[tuple[str, Any]]:
    """The objects and lists at a depth, counted from 1: those of an array (1), or one after the other (0).

    Raises:
        DamagedError: the last is cut short.
    """
    shown, number, depth, quoted = redact(path), 0, 0, False
    held, size = list[bytes](), 0  # the beginning of a value that is under way, and its length
    while data := file.read(_BUFFER_BYTES):
        place = start = 0
        while match := (_INSIDE if quoted else _OUTSIDE).search(data, place):
            mark, at, place = match[0], match.start(), match.end()
            if mark == b"\\":
                if place == len(data):
                    data += file.read(1)
                place += 1
            elif mark == b'"':
                quoted = not quoted
            elif mark in b"{[":
                if depth == base:
                    if data[start:at].strip(_BETWEEN + b"["):
                        number += 1
                        yield _place(shown, number), Reject(_place(shown, number), "neither an object nor a list")
                    start, held, size = at, [], 0
                depth += 1
            else:
                depth -= 1
                if depth == base:
                    number += 1
                    size += place - start
                    where = _place(shown, number)
                    held.append(data[start:place])
                    yield (
                        where,
                        too_long(where, "a value", limit) if size > limit else parse_json(b"".join(held), where),
                    )
                    start, held, size = place, [], 0
                elif depth < base:
                    start = place
                    if depth < 0:
                        raise DamagedError(shown, f"a bracket is closed that none opened, after value {number}")
        if depth > base:
            size += len(data) - start
            held = [*held, data[start:]] if size <= limit else []
    if depth > 0 or quoted:
        raise DamagedError(
            _place(shown, number + 1), "the JSON ends early", "how many values should follow cannot be told"
        )


def _place(path: str, number: int) -> str:
    return f"{path}:{number}"
