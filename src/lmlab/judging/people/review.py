"""A queue of answers that people should grade: as CSV and as a page in which they grade, and back again."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from lmlab.errors import UserError
from lmlab.files import read_json, sha256_json, write_text
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.parser import HALF_POINTS

_FIXED = ("item_id", "system", "group", "content_hash", "question", "key_points", "answer")
_NOTE = "note"
_JOINED = ("item_id", "system", "group", "answer_length", "judge", "human", "note")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class PersonGrades:
    """What a person said of an answer.

    Attributes:
        content_hash: of the answer that was graded.
        grades: by criterion; None where none was given.
    """

    item_id: str
    system: str
    content_hash: str
    grades: Mapping[str, float | None]
    note: str = ""


def review_queue(
    items: Sequence[AnswerItem], rows: Sequence[Mapping[str, Any]] | None = None, only_flagged: bool = False
) -> list[AnswerItem]:
    """The answers that people should look at: all, or those that have no grade, and those on which a panel disagrees.

    Arguments:
        rows: of grades, one an item.
    """
    if not only_flagged:
        return list(items)
    if rows is None:
        raise UserError("Which answers are flagged is known from rows of grades.", "Name the folder of a run.")
    flagged = [
        item
        for item, row in zip(items, rows, strict=True)
        if row["status"] not in ("ok", "empty_answer") or "disagreement" in row["flags"]
    ]
    return flagged


def write_review_csv(path: str | Path, items: Iterable[AnswerItem], criteria: Sequence[str]) -> int:
    """Write a table with an empty column for each criterion, and one for a note. Cells that a spreadsheet would take
    for formulas begin with an apostrophe.

    Returns:
        the number of rows.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED, *criteria, _NOTE])
    count = 0
    for item in items:
        points = "\n".join(f"- {point}" for point in item.key_points)
        cells = (item.id, item.system, item.group, item.content_hash, item.question, points, item.answer)
        writer.writerow([*map(_cell, cells), *[""] * (len(criteria) + 1)])
        count += 1
    write_text(Path(path), text.getvalue())
    return count


def write_review_page(
    path: str | Path, items: Sequence[AnswerItem], criteria: Mapping[str, str], scale: Scale = HALF_POINTS
) -> int:
    """Write a page that needs no network: it shows one answer after the other, without what judges said of it, keeps
    the grades in the browser, and gives them as a JSON file to save. All texts are escaped.

    Arguments:
        criteria: with their definitions.

    Returns:
        the number of answers.
    """
    template = (resources.files("lmlab.judging.people") / "review.html").read_text("utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    key = sha256_json([[item.content_hash for item in items], list(criteria)])[:16]
    labels = [f"{each:g}" for each in scale.labels()]
    write_text(Path(path), page.render(items=items, criteria=criteria, labels=labels, queue=key))
    return len(items)


def read_review(path: str | Path, criteria: Sequence[str], scale: Scale = HALF_POINTS) -> list[PersonGrades]:
    """What people have filled in, from the CSV or from the file that the page gives; answers without any grade are left
    out.

    Raises:
        UserError: it is neither, or a grade is no number of the scale; with its row.
    """
    path = Path(path)
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    found = []
    for number, row in enumerate(rows, 1):
        grades = {name: _grade(row.get(name), name, scale, f"'{path}', row {number}") for name in criteria}
        if any(value is not None for value in grades.values()):
            texts = [str(row.get(name) or "") for name in ("item_id", "system", "content_hash", _NOTE)]
            found.append(PersonGrades(texts[0], texts[1], texts[2], grades, texts[3]))
    return found


def joined_with_rows(
    people: Sequence[PersonGrades], rows: Sequence[Mapping[str, Any]], criterion: str
) -> list[dict[str, Any]]:
    """The grades of people beside those of a judge, for `lmlab judge validate`: a row an answer that people graded.

    Raises:
        UserError: people graded answers that the rows do not have.
    """
    by_hash = {row["content_hash"]: row for row in rows}
    unknown = [each.item_id for each in people if each.content_hash not in by_hash]
    if unknown:
        raise UserError(
            f"{len(unknown)} graded answers are not among the rows, such as that of '{unknown[0]}'.",
            "Name the run that the review was made from; an answer that has changed is another one.",
        )
    found = []
    for each in people:
        row = by_hash[each.content_hash]
        known = {name: row[name] for name in ("item_id", "system", "group", "answer_length")}
        found.append(
            known
            | {"judge": row["grades"].get(criterion), "human": each.grades[criterion], "note": each.note}
            | sample_columns(row, criterion)
        )
    return found


def sample_columns(row: Mapping[str, Any], criterion: str) -> dict[str, Any]:
    """The grades of each sample of a row, for `lmlab judge validate --sample-columns`: `judge_1`, `judge_2`, ..."""
    return {f"judge_{number}": each.get(criterion) for number, each in enumerate(row.get("samples") or (), 1)}


def write_joined(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write grades of both as a table; its cells are safe for a spreadsheet, as those of `write_review_csv`."""
    text, kept = io.StringIO(), list(rows)
    columns = dict.fromkeys([*_JOINED, *(name for row in kept for name in row)])
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in kept:
        writer.writerow({name: _cell(value) if isinstance(value, str) else value for name, value in row.items()})
    write_text(Path(path), text.getvalue())


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not UTF-8 text.", "Save it as CSV in UTF-8.") from None
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"'{path}' is no CSV: {error}.") from None
    if not rows or "content_hash" not in rows[0]:
        raise UserError(f"'{path}' is no review: it lacks the column content_hash.", "Keep the columns of the export.")
    return [{name: _uncell(value) for name, value in row.items() if name} for row in rows]


def _uncell(value: str | None) -> str | None:
    return value[1:] if value and value[0] == "'" and value[1:].startswith(_FORMULA) else value


def _json_rows(path: Path) -> list[dict[str, Any]]:
    found = read_json(path)
    rows = found.get("grades") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "content_hash" in row for row in rows):
        raise UserError(f"'{path}' is no review.", "Save the file that the page gives.")
    return rows


def _grade(value: Any, name: str, scale: Scale, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        grade = float(str(value).strip().replace(",", "."))
    except ValueError:
        grade = math.nan
    if not scale.minimum <= grade <= scale.maximum:
        raise UserError(
            f"{where}: '{json.dumps(value)[:80]}' in '{name}' is no grade from {scale.minimum:g} to {scale.maximum:g}."
        )
    return grade
