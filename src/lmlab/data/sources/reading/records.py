"""What all sources of records share: fields, named by dotted paths, become documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lmlab.data.documents import Document, Reject, is_redteam
from lmlab.data.sources.reading.fields import RecordFields
from lmlab.data.sources.reading.files import FileSource
from lmlab.data.sources.reading.splits import ALL
from lmlab.files import ParseError, json_value

_SPLIT = "split"
_MARKS = ("redteam", "metadata", "metadata.redteam")  # where a record says that it was crafted
_NAMED_FIELDS = 8  # in a message: more would hide what it says
_KINDS = {dict: "a mapping", list: "a list", bool: "a truth value", int: "a number", float: "a number", bytes: "bytes"}
OF_SPLIT = "of the split "
"""How the reason of a record begins that is set aside because it is of another split."""


class RecordSource(FileSource, RecordFields):
    """Records with named fields.

    Attributes:
        group_field: dotted field with the group of a record.
        split_field: the field that says which split a record is of; by default `split`, where it says so.
        redteam: `drop` leaves out records that say they were crafted to attack a model (`redteam: true`, there or in
            `metadata`), as sets of `lmlab poison` do; `keep` reads them.
    """

    group_field: str | None = None
    split_field: str | None = None
    redteam: Literal["drop", "keep"] = "drop"

    def read(self) -> Iterator[Document | Reject]:
        """Yield a document for each record; those that are unfit are rejects that say where and why."""
        place = self._called()
        for where, record in self.records(self.columns):
            yield record if isinstance(record, Reject) else self._document(where, place(where), record)

    def records(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """Every record of the split with its place; in the place of one that cannot be read, a `Reject`.

        Arguments:
            columns: top-level fields that are enough, where leaving out the others saves work; None for all.

        Raises:
            DamagedError: a file cannot be read to its end, and `damaged` is `error`.
        """
        self._tell()
        choice = self._choice()
        wanted = self.split or choice.split
        if columns is not None:
            columns = sorted({*columns, (self.split_field or _SPLIT).split(".")[0], *_MARKS})
        for path in choice.files:
            for item in self._reading(path, lambda path=path: self.records_of(path, columns)):  # type: ignore[misc]
                if isinstance(item, Reject):
                    yield item.where, item
                    continue
                where, record = item
                yield where, self.of_split(where, record, wanted)

    def of_split(self, where: str, record: Any, wanted: str) -> Any:
        """A record of the split, or why it is set aside if it says itself that it is of another one, or that it was
        crafted for an attack.
        """
        if self.redteam == "drop" and is_redteam(record):
            return Reject(where, "crafted for an attack (redteam: true)", "redteam")
        name = None if isinstance(record, Reject) else self._split_of(record)
        return Reject(where, f"{OF_SPLIT}{name}", "split") if name and self._is_other(name, wanted) else record

    @property
    def wanted_split(self) -> str:
        """The split that is read, of records that name theirs."""
        return self.split or self._choice().split

    def records_of(self, path: str, columns: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
        """The records of one file."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str]:
        """The top-level fields that are needed."""
        named = (self.text_field, self.id_field, self.domain_field, self.group_field)
        return sorted({name.split(".")[0] for name in named if name} | {name for name in named if name})

    def _split_of(self, record: Any) -> str | None:
        value = field(record, self.split_field or _SPLIT)
        return value if isinstance(value, str) else None

    def _is_other(self, name: str, wanted: str) -> bool:
        if self.split_field is not None:
            return wanted not in (ALL, name) and self._other_split(name, wanted) | (name != wanted)
        return self._other_split(name, wanted)

    def _document(self, where: str, place: str, record: Any) -> Document | Reject:
        text = field(record, self.text_field)
        if not isinstance(text, str):
            if text is not None:
                return Reject(
                    where, f"the field '{self.text_field}' holds {_KINDS.get(type(text), 'a value')}, and no text"
                )
            return Reject(where, f"no text in the field '{self.text_field}'{_fields(record)}")
        if len(text) > self.max_record_bytes:
            return Reject(where, f"a text of more than {self.max_record_bytes} bytes (max_record_bytes)")
        names = {name: _name(record, path) for name, path in self._names.items()}
        broken = next(
            (name for name, value in ((self.text_field, text), *names.items()) if value and not _is_unicode(value)),
            None,
        )
        if broken is not None:
            return Reject(
                where,
                f"the field '{self._names.get(broken, broken)}' holds half of a surrogate pair, which is no character",
            )
        return Document(
            names.get("id") or self._prefix + place,
            text,
            self.domain or names.get("domain") or "text",
            names.get("group") or place,
        )

    @property
    def _names(self) -> dict[str, str]:
        paths = {"id": self.id_field, "domain": None if self.domain else self.domain_field, "group": self.group_field}
        return {name: path for name, path in paths.items() if path}


def field(record: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none. A key that holds dots itself goes before its parts."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def parse_text(data: bytes, where: str) -> str | Reject:
    """Bytes as UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reject(where, f"not UTF-8 (byte {error.start})")


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value, or why it is none."""
    text = parse_text(data, where)
    if isinstance(text, Reject):
        return text
    try:
        return json_value(text, allow_nan=True)  # as pandas writes it where a number is missing
    except ParseError as error:
        return Reject(where, f"not valid JSON: {error}")


def _fields(record: Any) -> str:
    """What a record holds in place of what was looked for."""
    if not isinstance(record, dict):
        return ""
    names = [str(name)[:40] for name in list(record)[:_NAMED_FIELDS]]
    return f" (its fields: {', '.join(names)}{', ...' if len(record) > _NAMED_FIELDS else ''})" if names else ""


def _name(record: Any, path: str | None) -> str | None:
    value = field(record, path) if path else None
    return None if value is None else str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
