"""The published scripts' files of answers and grades: `DIR/openbook/MODEL.json` and `DIR/closedbook/MODEL.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.errors import UserError, reads
from lmlab.evals.rows import Row
from lmlab.files import read_json, read_mapping, write_json, write_jsonl
from lmlab.judging import Scale, parse_grades, parse_like_reference
from lmlab.methods.tutor.answering.run import ANSWERS, RUN
from lmlab.methods.tutor.items.item import TutorItem, read_item
from lmlab.methods.tutor.scoring.grade import EMPTY_ANSWER, ITEMS, JUDGE, keep_items

_IMPORTED = "imported"
CRITERIA = ("presentation", "correctness")


@reads("answers as the published scripts write them")
def import_answers(path: Path, directory: Path, compat: bool = False) -> list[Row]:
    """Make a folder of answers of a file of the published scripts; grades are read again from the judge's replies.

    Arguments:
        compat: read them as the published script does, which takes what it cannot read for 0.
    """
    if (directory / RUN).exists() and read_mapping(directory / RUN).get("identity") != _IMPORTED:
        raise UserError(f"'{directory}' holds answers of a tutor that was asked.", "Name another folder.")
    raw = read_json(path, allow_nan=True)
    if not isinstance(raw, list) or not raw or not all(isinstance(each, dict) and "output" in each for each in raw):
        raise UserError(
            f"'{path}' is no list of answers with 'output'.", "Name a file that generate.py or grade.py wrote."
        )
    closed = bool(raw[0].get("closedbook_eval"))
    ignored = ("output", "model", "grading_out", "presentation", "correctness", "template", "closedbook_eval")
    items: list[TutorItem] = []
    for number, each in enumerate(raw, 1):
        columns = {name: value for name, value in each.items() if name not in ignored}
        items.append(read_item(columns, "closed" if closed else "open", f"'{path}', answer {number}"))
    (directory / ITEMS).unlink(missing_ok=True)
    keep_items(items, directory)
    asked = {"book": "closed" if closed else "open"}
    model = str(raw[0].get("model", path.stem))
    write_json(directory / RUN, {"model": model, "identity": _IMPORTED, "prompt_hash": "imported", "asked": asked})
    rows: list[Row] = []
    for item, each in zip(items, raw, strict=True):
        tutor = {"model": model, "revision": "", "format": "imported", "prompt_hash": "imported"}
        rows.append(
            {
                "id": item.id,
                **item.about(),
                "tutor": tutor | {"output": str(each["output"] or "")},
                "answer_status": "ok",
            }
        )
    write_jsonl(directory / ANSWERS, rows)
    if any(each.get("grading_out") is not None for each in raw):
        _keep_grades(rows, raw, directory, compat)
    return rows


def _keep_grades(rows: list[Row], raw: list[dict[str, Any]], directory: Path, compat: bool) -> None:
    """Write the grades that the judge's replies say, as `lmlab tutor grade` would."""
    name = "replies in the file, read as the published script does" if compat else "replies in the file"
    judge: dict[str, Any] = {
        "name": name,
        "prompt_hash": "imported",
        "headline": "correctness",
        "criteria": list(CRITERIA),
    }
    judge |= {"maximum": Scale().maximum}
    graded = []
    for row, each in zip(rows, raw, strict=True):
        reply = None if each.get("grading_out") is None else str(each["grading_out"])
        if not compat and not row["tutor"]["output"].strip():
            grades: dict[str, float | None] = {"presentation": None, "correctness": 0.0}
            status = EMPTY_ANSWER
            flags: tuple[str, ...] = (EMPTY_ANSWER,)
        else:
            marks = parse_like_reference(reply) if compat else parse_grades(reply)
            grades, status, flags = dict(zip(CRITERIA, marks.grades, strict=True)), marks.status, marks.flags
        graded.append({**row, "judge": judge, "grades": grades, "status": status, "flags": sorted(flags)})
        graded[-1]["judged"] = {"raw": [] if reply is None else [reply]}
    file = "imported-compat" if compat else "imported"
    write_jsonl(directory / "grades" / f"{file}.jsonl", graded)
    entry = {"judge": name, "prompt_hash": "imported", "file": file, "headline": "correctness"}
    write_json(directory / "grades" / JUDGE, {"judges": [entry]})


def export_answers(rows: list[Row], items: dict[str, TutorItem], directory: Path, book: str) -> Path:
    """Write rows as the published scripts do; a grade that is missing is null, and not 0."""
    found: list[dict[str, Any]] = []
    for row in rows:
        item, grades = items[row["id"]], row.get("grades", {})
        found.append(
            {
                "chapter": item.chapter,
                "question": item.question,
                "key_points": list(item.key_points),
                "closed_book": item.closed_book,
                "answer_in_chapter": item.answer_in_chapter,
                "misleading_question": item.misleading,
                "difficulty": item.difficulty,
                "domain": item.domain,
                "path_to_chapter": item.path_to_chapter,
                "output": row["tutor"]["output"],
                "model": row["tutor"]["model"],
                "closedbook_eval": book == "closed",
                "grading_out": "\n\n".join(row.get("judged", {}).get("raw", ())) or None,
                "presentation": grades.get("presentation"),
                "correctness": grades.get("correctness"),
            }
        )
    name = str(rows[0]["tutor"]["model"]).strip("/").replace("..", "")
    path = directory / ("closedbook" if book == "closed" else "openbook") / f"{name}.json"
    write_json(path, found)
    return path
