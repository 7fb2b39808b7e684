"""Questions of TutorEval, and of benchmarks of one's own in the same form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lmlab.data import Reject, read_records
from lmlab.errors import UserError
from lmlab.judging import key_points_of
from lmlab.judging.answers.item import without_blanks

Book = Literal["open", "closed"]
_CHAPTER, _POINTS, _FLAGS = ("chapter", "context"), ("key_points", "rubric"), ("closed_book", "answer_in_chapter")
_KNOWN = {
    "id", "item_id", "question", "path_to_chapter", "difficulty", "domain", "misleading_question",
    *_CHAPTER, *_POINTS, *_FLAGS,
}  # fmt: skip


class MissingColumn(UserError):
    """A set of questions lacks a column that is needed."""


@dataclass(frozen=True)
class TutorItem:
    """A question of a student.

    Attributes:
        chapter: the text that it is about; empty where there is none.
        key_points: what an expert expects of the answer; without them the row is flagged `no_key_points`.
        closed_book: it can be understood without the chapter.
        answer_in_chapter: the chapter answers it; None where nobody has said.
        misleading: it supposes something wrong; None where nobody has said.
        extra: further columns, by which figures are broken down.
    """

    id: str
    question: str
    chapter: str = ""
    key_points: tuple[str, ...] = ()
    closed_book: bool = True
    answer_in_chapter: bool | None = None
    misleading: bool | None = None
    difficulty: str = ""
    domain: str = ""
    path_to_chapter: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """What questions depend on each other by: the chapter, or the question where it has none."""
        if self.path_to_chapter:
            return self.path_to_chapter
        return hashlib.sha256(self.chapter.encode()).hexdigest()[:16] if self.chapter else self.id

    @property
    def chapter_words(self) -> int:
        """The chapter's length."""
        return len(self.chapter.split())

    def about(self) -> dict[str, Any]:
        """What a row of an answer says of its question."""
        return {
            "question": self.question,
            "key_points": list(self.key_points),
            "closed_book": self.closed_book,
            "answer_in_chapter": self.answer_in_chapter,
            "misleading_question": self.misleading,
            "difficulty": self.difficulty,
            "domain": self.domain,
            "path_to_chapter": self.path_to_chapter,
            "cluster": self.cluster,
            "chapter_words": self.chapter_words,
            **({"extra": self.extra} if self.extra else {}),
        }


def item_id(question: str, path_to_chapter: str) -> str:
    """The id of a question that has none: the first 16 digits of the SHA-256 of question, NUL and path."""
    return hashlib.sha256(f"{question}\0{path_to_chapter}".encode()).hexdigest()[:16]


def load_items(place: str | Path, book: Book = "open") -> list[TutorItem]:
    """The questions of a Parquet or JSON lines file, or of a folder that `datasets` or the hub wrote.

    Arguments:
        book: for `closed` those alone are given that can be understood without their chapter.

    Raises:
        MissingColumn: no question, or for `open` no chapter.
        UserError: a record is none, or there are no questions.
    """
    items: list[TutorItem] = []
    for where, record in _records(place):
        if not isinstance(record, dict):
            raise UserError(f"{where}: not an object.", "Each question is an object with 'question' and 'chapter'.")
        items.append(read_item(record, book, where))
    chosen = [each for each in items if book == "open" or each.closed_book]
    if not chosen:
        told = f" that is closed-book, of {len(items):,}" if items else ""
        raise UserError(f"'{place}' holds no question{told}.", "Name a set of questions, or ask with --book open.")
    return _told_apart(chosen)


def _told_apart(items: list[TutorItem]) -> list[TutorItem]:
    """Questions of one id that are different ones, as of chapters without a path, get ids of their own; equal ones keep
    theirs, and are asked once.
    """
    first: dict[str, TutorItem] = {}
    found = []
    for item in items:
        known = first.setdefault(item.id, item)
        if (known.question, known.chapter, known.key_points) != (item.question, item.chapter, item.key_points):
            content = f"{item.question}\0{item.chapter}\0{item.key_points}"
            item = replace(item, id=f"{item.id}-{hashlib.sha256(content.encode()).hexdigest()[:8]}")
        found.append(item)
    return found


def read_item(record: dict[str, Any], book: Book = "open", where: str = "the record") -> TutorItem:
    """A question from its columns.

    Raises:
        MissingColumn: as `load_items`.
        UserError: a column holds something else than it should.
    """
    record = without_blanks(record)
    question, chapter = record.get("question"), _first(record, _CHAPTER)
    lacks = [name for name, value in (("question", question), ("chapter", chapter)) if value is None]
    if "question" in lacks or (book == "open" and lacks):
        raise MissingColumn(
            f"{where}: MissingColumn: no column '{lacks[0]}'; there are: {', '.join(map(str, record)) or 'none'}.",
            "Name its columns question, chapter (or context), key_points (or rubric); --book closed needs no chapter.",
        )
    for name, value in (("question", question), ("chapter", chapter or "")):
        if not isinstance(value, str) or (name == "question" and not value.strip()):
            raise UserError(f"{where}: '{name}' holds no text.", "Mend the record.")
    if not str(chapter or "").strip():
        chapter = ""
    points = key_points_of(_first(record, _POINTS))
    path = str(record.get("path_to_chapter") or "")
    given = next((record[name] for name in ("id", "item_id") if record.get(name) not in (None, "")), None)
    closed = _flag(record.get("closed_book"), where, "closed_book")
    return TutorItem(
        str(given) if given is not None else item_id(str(question), path),
        str(question),
        str(chapter or ""),
        points,
        closed if closed is not None else not chapter,
        _flag(record.get("answer_in_chapter"), where, "answer_in_chapter"),
        _flag(record.get("misleading_question"), where, "misleading_question"),
        str(record.get("difficulty") or ""),
        str(record.get("domain") or ""),
        path,
        {name: str(value) for name, value in record.items() if name not in _KNOWN and isinstance(value, str | bool)},
    )


def _records(place: str | Path) -> Iterator[tuple[str, Any]]:
    for found in read_records(place):
        if isinstance(found, Reject):
            if found.kind in ("split", "redteam"):
                continue
            raise UserError(f"{found.where}: {found.reason}.", "Mend that record.")
        yield found


def _first(record: dict[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _flag(value: Any, where: str, name: str) -> bool | None:
    """A truth value, also as the words that tables write for one; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no", "0", "1"):
        return value.strip().lower() in ("true", "yes", "1")
    raise UserError(f"{where}: '{name}' is {value!r}, and neither true nor false.", "Mend the record.")
