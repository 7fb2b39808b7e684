"""Documents: the unit of text from a source to a tokenised shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lmlab.errors import UserError
from lmlab.files import read_jsonl


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


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not become a document, and why."""

    where: str
    reason: str


class Source(Protocol):
    """Anything that yields documents; records it cannot read come out as `Reject`s, never as exceptions."""

    def read(self) -> Iterator[Document | Reject]:
        """Yield all documents in a fixed order."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the documents depend on, for deciding whether work must be done again."""
        ...


def read_documents(path: Path | str) -> Iterator[Document]:
    """Yield the documents of a JSON lines file that `collect` wrote."""
    for number, row in enumerate(read_jsonl(Path(path)), 1):
        if not {"id", "text"} <= set(row) <= {"id", "text", "domain", "group"} or not all(
            isinstance(value, str) for value in row.values()
        ):
            raise UserError(
                f"'{path}', line {number}: not a document; it needs the keys id, text, domain and group, with texts.",
                "Name a file that a stage collect wrote, or tokenize yours first: lmlab tokenize --help",
            )
        yield Document(**row)
