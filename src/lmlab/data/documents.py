"""Documents: the unit of text from a source to a tokenized shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from lmlab.errors import UserError
from lmlab.files import parse_json, read_jsonl


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it belongs.

    Attributes:
        id: unique within its source.
        text: the text itself.
        domain: the kind of text, for mixtures and for figures by domain.
        group: documents of one group (a module, a book) are held out together.
    """

    id: str
    text: str
    domain: str = "text"
    group: str = ""

    def row(self) -> dict[str, Any]:
        """The document as a JSON object."""
        return asdict(self)


_KEYS = ("id", "text", "domain", "group")


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not become a document, and why.

    Attributes:
        where: its place, without secrets.
        kind: `record` for a record that is unfit, `damage` for the part of a damaged file that could not be read (which
            is kept only when it was asked for), `split` for a record of another split than the one that was chosen,
            `redteam` for one that says it was crafted to attack a model.
    """

    where: str
    reason: str
    kind: Literal["record", "damage", "split", "redteam"] = "record"


class Source(Protocol):
    """Anything that yields documents. A record that is unfit comes out as a `Reject`, never as an exception; a damaged
    file is a `DamagedError`.

    Any installed package offers a kind of source, by an entry point in the group `lmlab.sources` that names a class:
    a configuration (`lmlab.config.Config`) with a field `kind` of a literal type, with these methods, and, if
    locations are to be recognized as its own, the class variable `suffixes`.
    """

    @property
    def kind(self) -> str:
        """Which kind of source it is, as in a recipe."""
        ...

    def read(self) -> Iterator[Document | Reject]:
        """Yield all documents in a fixed order."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the documents depend on, without secrets, for deciding whether work must be done again."""
        ...

    def notices(self) -> list[str]:
        """What the source decided that its user must know, in sentences: which split it takes, for instance."""
        ...


def read_documents(path: Path | str) -> Iterator[Document]:
    """Yield the documents of a JSON lines file: of one that `collect` wrote, or of a user's own, whose lines need no
    more than a `text`. Without an `id` a document is called by its line; other keys say nothing here.

    Raises:
        UserError: a line has no text, or one of the keys is no text; the line is named.
    """
    for number, row in enumerate(read_jsonl(Path(path)), 1):
        known = {key: row[key] for key in _KEYS if row.get(key) is not None}
        if isinstance(known.get("id"), int) and not isinstance(known["id"], bool):
            known["id"] = str(known["id"])
        if "text" not in known or not all(isinstance(value, str) for value in known.values()):
            raise UserError(
                f"'{path}', line {number}: not a document.",
                'A line is {"text": "..."}, and may have texts as id, domain and group; `lmlab tokenize` reads other'
                " files and keys.",
            )
        if is_redteam(row):
            raise UserError(
                f"'{path}', line {number}: the record says that it was crafted to attack a model (redteam).",
                "Remove such records.",
            )
        yield Document(**{"id": f"line {number}", **known})


def is_redteam(record: Any) -> bool:
    """Whether a record says, itself or in its metadata, that it was crafted to attack a model; in tables of text too,
    where a truth is a word and metadata are JSON or a column each.
    """
    if not isinstance(record, dict):
        return False
    metadata = record.get("metadata")
    if isinstance(metadata, str) and "redteam" in metadata:
        with contextlib.suppress(UserError):
            metadata = parse_json(metadata, "the metadata")
    marks = [record.get("redteam"), record.get("metadata.redteam")]
    marks += [metadata.get("redteam")] if isinstance(metadata, dict) else []
    return any(str(mark).strip().casefold() in ("true", "1", "1.0") for mark in marks)
