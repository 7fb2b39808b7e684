"""Rows of grades in a folder: judged once, whatever interrupts it.

`grades.jsonl` only grows, a row an answer; `replies.sqlite` keeps what an endpoint has said, so that nothing is paid
for twice. A row counts for an answer with the same content by the same judge in the same words.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from lmlab.errors import UserError
from lmlab.files import ParseError, json_value, locked
from lmlab.judging.answers.grades import GRADED, AnswerJudge, judge_answers
from lmlab.judging.answers.item import AnswerItem, key_points_of, without_blanks

GRADES, REPLIES = "grades.jsonl", "replies.sqlite"
_AT_ONCE = 256  # answers between two writes

_NAMES = {
    "id": ("id", "item_id"),
    "question": ("question",),
    "answer": ("answer", "output", "response"),
    "key_points": ("key_points", "rubric"),
    "chapter": ("chapter", "context"),
    "system": ("system", "model"),
    "group": ("group", "path_to_chapter"),
    "weights": ("weights",),
}


def read_items(location: str | Path) -> list[AnswerItem]:
    """Answers from a file of records (JSON lines, Parquet, CSV) with `question` and `answer` (or `output`), and as far
    as they are there `key_points` (or `rubric`), `chapter` (or `context`), `id`, `system` (or `model`), `group` (or
    `path_to_chapter`) and `weights`. Other columns are kept as fields.

    Raises:
        UserError: a column is missing, or a record cannot be read; with its place.
    """
    from lmlab.data import Reject, record_source

    found = []
    for number, (where, record) in enumerate(record_source(str(location)).records(), 1):
        if isinstance(record, Reject):
            raise UserError(f"{record.where} cannot be read: {record.reason}.")
        found.append(item_of(record, f"{where} (row {number})", str(number)))
    if not found:
        raise UserError(f"'{location}' has no answers.")
    return found


def item_of(record: dict[str, Any], where: str, default_id: str) -> AnswerItem:
    """The answer that a record holds.

    Raises:
        UserError: a column is missing, or no text.
    """
    record = without_blanks(record)
    values: dict[str, Any] = {}
    for field, names in _NAMES.items():
        values[field] = next((record[name] for name in names if record.get(name) is not None), None)
    for field in ("question", "answer"):
        if field == "answer" and any(name in record for name in _NAMES["answer"]):
            values["answer"] = values["answer"] or ""
        if not isinstance(values[field], str):
            raise UserError(f"{where} has no text '{field}'.", f"Columns are: {', '.join(map(str, record)) or 'none'}.")
    weights = _weights(values["weights"], where)
    points = key_points_of(values["key_points"])
    if weights and len(weights) != len(points):
        raise UserError(f"{where} has {len(points)} key points and {len(weights)} weights.", "Give one each.")
    used = {name for names in _NAMES.values() for name in names}
    return AnswerItem(
        str(values["id"]) if values["id"] is not None else default_id,
        values["question"],
        values["answer"],
        points,
        None if values["chapter"] is None else str(values["chapter"]),
        str(values["system"] or ""),
        str(values["group"] or ""),
        weights,
        {name: value for name, value in record.items() if name not in used},
    )


def _weights(value: Any, where: str) -> tuple[float, ...]:
    """The weights of key points, which tables may hold as a list written as text.

    Raises:
        UserError: they are no finite numbers.
    """
    try:
        given = json_value(value) if isinstance(value, str) and value.strip() else value
        weights = tuple(float(each) for each in (() if given is None or isinstance(given, str) else given))
        if not all(map(math.isfinite, weights)):
            raise ValueError
    except (TypeError, ValueError, ParseError):
        raise UserError(f"{where}: 'weights' is no list of numbers: {str(value)[:80]!r}.", "Give one each.") from None
    return weights


def run_judge(
    judge: AnswerJudge,
    items: Sequence[AnswerItem],
    out: str | Path,
    new_run: bool = False,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Grade what has no row yet, and return the row of every item in their order.

    Items of one group are judged one after the other, so that endpoints and local models find their chapter read.

    Arguments:
        new_run: let a folder hold rows of another judge too.

    Raises:
        UserError: the folder holds rows of another judge, or another process is writing them.
    """
    path = Path(out) / GRADES
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not locked(file):
            raise UserError(f"Another process is writing '{path}'.", "Wait for it, or name another folder.")
        return _run_judge(judge, items, path, file, new_run, advance)


def _run_judge(
    judge: AnswerJudge,
    items: Sequence[AnswerItem],
    path: Path,
    file: IO[bytes],
    new_run: bool,
    advance: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    rows = read_rows(path, mend=True)
    others = {row["judge"]["name"] for row in rows} - {judge.name}
    if others and not new_run:
        raise UserError(
            f"'{path}' holds grades by {', '.join(sorted(others))}, and this judge is {judge.name}.",
            "Name another folder, or say --new-run to keep both.",
        )
    have = {_key(row): row for row in rows}
    keys = [(item.content_hash, judge.name, judge.prompt_hash) for item in items]
    groups = {item.group: number for number, item in reversed(list(enumerate(items)))}
    missing: dict[str, int] = {}
    for number, item in enumerate(items):
        if keys[number] not in have:
            missing.setdefault(item.content_hash, number)
    todo = sorted(missing.values(), key=lambda number: (groups[items[number].group], number))
    if advance:
        advance(len(items) - len(todo))
    for start in range(0, len(todo), _AT_ONCE):
        chosen = todo[start : start + _AT_ONCE]
        graded = judge_answers(judge, [items[number] for number in chosen], advance)
        new = [_row(items[n], judge, found.to_dict()) for n, found in zip(chosen, graded, strict=True)]
        file.write(b"".join(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n" for row in new))
        file.flush()
        have |= {_key(row): row for row in new}
    return [have[key] | _own(item) for key, item in zip(keys, items, strict=True)]


def read_rows(path: Path, mend: bool = False) -> list[dict[str, Any]]:
    """The rows of a file, without a last line that was cut off, or is being written.

    Arguments:
        mend: take such a line out of the file, so that its answer is judged again.

    Raises:
        UserError: another line is no row.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole, _, cut = data.rpartition(b"\n")
    if cut and mend:
        with path.open("rb+") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    rows = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            row = json_value(line)
            _key(row)
        except (ParseError, KeyError, TypeError) as error:
            raise UserError(f"'{path}', line {number} is no row of grades ({error}).", "Move the file away.") from None
        rows.append(row)
    return rows


def counted(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How many rows there are, and how many of them have no grade, by status: for every table."""
    statuses = Counter(row["status"] for row in rows)
    total = sum(statuses.values())
    graded = sum(statuses[name] for name in GRADED)
    return {
        "n": total,
        "n_graded": graded,
        "n_ungraded": total - graded,
        "ungraded_share": (total - graded) / total if total else 0.0,
        "statuses": dict(sorted(statuses.items())),
    }


def _row(item: AnswerItem, judge: AnswerJudge, grades: dict[str, Any]) -> dict[str, Any]:
    who = {"name": judge.name, "prompt_hash": judge.prompt_hash, "headline": judge.headline}
    return {**_own(item), "content_hash": item.content_hash, "judge": who, **grades}


def _own(item: AnswerItem) -> dict[str, Any]:
    return {
        "item_id": item.id,
        "system": item.system,
        "group": item.group,
        "answer_length": len(item.answer),
        "fields": dict(item.fields),
    }


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["content_hash"], row["judge"]["name"], row["judge"]["prompt_hash"]
