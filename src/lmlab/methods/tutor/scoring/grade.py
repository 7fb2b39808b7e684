"""Grades of the answers in a folder, by a judge of the core; resumable to the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.evals.rows import Row, RowFile, read_rows
from lmlab.files import read_mapping, sha256_json, write_json, write_jsonl
from lmlab.judging import AnswerGrades, AnswerItem, AnswerJudge, judge_answers
from lmlab.methods.tutor.answering.run import ANSWERS, RUN
from lmlab.methods.tutor.items.item import TutorItem, load_items
from lmlab.progress import progress
from lmlab.words import counted

ITEMS, JUDGE, EMPTY_ANSWER = "items.jsonl", "judge.json", "empty_answer"
_AT_ONCE = 64  # answers that are shown to a judge together; a killed command loses no more than these


def keep_items(items: Sequence[TutorItem], directory: Path) -> None:
    """Write the questions beside their answers, so that judges see what the tutor saw. Those of a command that ended
    before it asked anything are replaced.
    """
    path = directory / ITEMS
    if not path.exists() or not (directory / RUN).exists():
        write_jsonl(path, [{"id": item.id, "chapter": item.chapter, **_columns(item)} for item in items])


def kept_items(directory: Path) -> dict[str, TutorItem]:
    """The questions of a folder of answers, by id.

    Raises:
        UserError: there are none.
    """
    if not (directory / ITEMS).exists():
        raise UserError(f"'{directory}' holds no answers of a tutor.", "Write them: lmlab tutor generate --help")
    return {
        item.id: item for item in load_items(directory / ITEMS, "closed" if _book(directory) == "closed" else "open")
    }


def read_answers(directory: Path) -> list[Row]:
    """The rows of answers, in the order of the questions.

    Raises:
        UserError: there are none, or not yet all.
    """
    path = directory / ANSWERS
    if not path.exists():
        parts = [*directory.glob("answers.part-*.jsonl")]
        told = "has answers to some questions only" if parts else "holds no answers of a tutor"
        raise UserError(f"'{directory}' {told}.", "Run lmlab tutor generate to its end.")
    return list(read_rows([path]))


def grade_run(
    directory: str | Path,
    judge: AnswerJudge,
    new_run: bool = False,
    only: Sequence[str] | None = None,
    flag: str | None = None,
) -> tuple[list[Row], Path]:
    """Grade the answers of a folder; what is graded is kept. Each judge and wording has a file of its own.

    Arguments:
        new_run: let another judge grade beside the one that has graded here before.
        only: ids of questions; None for all.
        flag: of every row, such as `self_judging`.

    Returns:
        the rows, each the answer's with `judge`, `grades`, `status` and `flags`; and the file.

    Raises:
        UserError: another judge has graded these answers before.
    """
    directory = Path(directory)
    answers, items = read_answers(directory), kept_items(directory)
    name = sha256_json([judge.name, judge.prompt_hash])[:12]
    folder = directory / "grades"
    _check_judge(folder, judge, name, new_run)
    closed = _book(directory) == "closed"
    rows = RowFile(folder / f"{name}.jsonl")
    done = rows.done()
    chosen = list({row["id"]: row for row in answers if only is None or row["id"] in set(only)}.values())
    left = [row for row in chosen if row["id"] not in done or done[row["id"]]["status"] == "endpoint_error"]
    own = () if flag is None else (flag,)
    unasked = [row for row in left if row["answer_status"] != "ok"]
    for row in unasked:
        rows.append(_graded(row, judge, {}, row["answer_status"], own))
    shown = [row for row in left if row["answer_status"] == "ok"]
    with progress("grade", len(shown), "answers") as advance:
        for start in range(0, len(shown), _AT_ONCE):
            for graded in judge_block(shown[start : start + _AT_ONCE], items, judge, closed, own, advance):
                rows.append(graded)
    if only is not None:
        rows.close()
        known = rows.done()
        if all(row["id"] in known for row in answers):  # the last ones were among them: reports have a file to read
            rows.finish([row["id"] for row in answers])
        return [known[id] for id in dict.fromkeys(only) if id in known], rows.path
    return rows.finish([row["id"] for row in answers]), rows.path


def judge_block(
    block: Sequence[Row],
    items: Mapping[str, TutorItem],
    judge: AnswerJudge,
    closed: bool,
    flags: Sequence[str] = (),
    advance: Callable[[int], None] | None = None,
) -> list[Row]:
    """Grade rows of answers together: each with `judge`, `grades`, `status`, `flags` and `judged`.

    Arguments:
        items: the questions by id.
        closed: they were asked without their chapters.
        flags: of every row.
        advance: gets the number of answers that are done.
    """
    found = judge_answers(judge, [_item(row, items[row["id"]], closed) for row in block], advance)
    return [
        _graded(row, judge, grades.grades, grades.status, (*grades.flags, *flags)) | {"judged": kept_of(grades)}
        for row, grades in zip(block, found, strict=True)
    ]


def estimate_grading(directory: Path, judge: AnswerJudge) -> str:
    """What grading will ask for and cost, without asking."""
    items, closed = kept_items(directory), _book(directory) == "closed"
    shown = [row for row in read_answers(directory) if row["answer_status"] == "ok" and row["tutor"]["output"].strip()]
    found = judge.estimate([_item(row, items[row["id"]], closed) for row in shown])
    return f"{counted(len(shown), 'answers')} to grade; " + (
        "nobody is asked, and it costs nothing." if found is None else str(found)
    )


def latest_rows(directory: Path) -> list[Row]:
    """Graded rows where there are some, else the answers."""
    return graded_rows(directory) if _graded_files(directory) else read_answers(directory)


def shared_chapters(first: Path, second: Path) -> dict[str, list[str]]:
    """The ids of the questions that two folders share, by chapter."""
    other = {row["id"] for row in read_answers(second)}
    found: dict[str, list[str]] = {}
    for row in read_answers(first):
        if row["id"] in other and row["id"] not in found.setdefault(row["cluster"], []):
            found[row["cluster"]].append(row["id"])
    return {name: ids for name, ids in found.items() if ids}


def graded_rows(directory: str | Path, judge: str | None = None) -> list[Row]:
    """The rows of the last judge that has graded a folder, or of the one of this name.

    Raises:
        UserError: none has.
    """
    directory = Path(directory)
    files = {name: path for name, path in _graded_files(directory).items() if judge in (None, name)}
    if not files:
        known = ", ".join(f"'{name}'" for name in _graded_files(directory)) or "nobody yet"
        raise UserError(f"'{directory}' is graded by {known}.", "Grade it: lmlab tutor grade --help")
    return list(read_rows([next(reversed(files.values()))]))


def _graded_files(directory: Path) -> dict[str, Path]:
    """The finished files of grades by their judges, the last one last."""
    path = directory / "grades" / JUDGE
    known = read_mapping(path).get("judges", []) if path.exists() else []
    found: dict[str, Path] = {}
    for each in known:
        if (file := path.with_name(f"{each['file']}.jsonl")).exists():
            found.pop(each["judge"], None)
            found[each["judge"]] = file
    return found


def _check_judge(folder: Path, judge: AnswerJudge, name: str, new_run: bool) -> None:
    path = folder / JUDGE
    known = read_mapping(path)["judges"] if path.exists() else []
    others = sorted({each["judge"] for each in known} - {judge.name})
    if others and not any(each["judge"] == judge.name for each in known) and not new_run:
        raise UserError(
            f"'{folder.parent}' is graded by '{others[0]}', and grades of two judges do not mix.",
            "Grade beside it with --new-run: each judge keeps a file of its own.",
        )
    known = [each for each in known if each["file"] != name]
    entry: dict[str, Any] = {"judge": judge.name, "prompt_hash": judge.prompt_hash, "file": name}
    entry |= {
        "headline": judge.headline,
        "criteria": list(judge.criteria),
        "maximum": judge.scale.maximum,
        "minimum": judge.scale.minimum,
    }
    write_json(path, {"judges": [*known, entry]})


def _graded(row: Row, judge: AnswerJudge, grades: Mapping[str, float | None], status: str, flags: Sequence[str]) -> Row:
    return {
        **row,
        "judge": {"name": judge.name, "prompt_hash": judge.prompt_hash, "headline": judge.headline,
                  "criteria": list(judge.criteria), "maximum": judge.scale.maximum},
        "grades": {name: grades.get(name) for name in judge.criteria},
        "status": status,
        "flags": sorted(set(flags)),
    }  # fmt: skip


def kept_of(grades: AnswerGrades) -> dict[str, Any]:
    """What is kept of a judgment beside its grades. Its seconds enter no report, as they differ from run to run."""
    found = grades.to_dict()
    kept = ("raw", "details", "scores", "samples", "usage", "cost_usd", "requests", "attempts")
    return {**{name: found[name] for name in kept}, "seconds": round(grades.seconds, 4)}


def _item(row: Row, item: TutorItem, closed: bool) -> AnswerItem:
    fields = {"domain": item.domain, "difficulty": item.difficulty}
    return AnswerItem(
        item.id,
        item.question,
        row["tutor"]["output"],
        item.key_points,
        None if closed or not item.chapter else item.chapter,
        row["tutor"]["model"],
        item.cluster,
        fields=fields,
    )


def _columns(item: TutorItem) -> dict[str, Any]:
    about = item.about()
    extra = about.pop("extra", {})
    for name in ("cluster", "chapter_words"):
        about.pop(name)
    return {**extra, **about}


def _book(directory: Path) -> str:
    return str(read_mapping(directory / RUN)["asked"]["book"])


Grade = Callable[[Sequence[str]], list[Row]]
"""What gives graded rows of questions by their ids."""


def grader_of(directory: Path, judge: AnswerJudge | None, flag: str | None = None) -> Grade:
    """Graded rows of a folder as they are asked for: by a judge, whose rows get the flag, or as they stand there."""
    if judge is not None:
        return lambda ids: grade_run(directory, judge, only=ids, flag=flag)[0]
    known = {row["id"]: row for row in graded_rows(directory)}
    return lambda ids: [known[id] for id in ids if id in known]
