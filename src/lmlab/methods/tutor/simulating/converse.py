"""Conversations of a tutor with a simulated student, through the client of endpoints: resumable, and paid for once."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.endpoints import Backend, ChatRequest, Endpoint, Reply, answer, make_backend
from lmlab.errors import UserError
from lmlab.evals.rows import Row, RowFile
from lmlab.files import sha256_json
from lmlab.judging import AnswerItem, AnswerJudge, GradingRubric, fenced, judge_answers
from lmlab.judging.wording import fill
from lmlab.methods.tutor.answering.prompts import endpoint_messages
from lmlab.methods.tutor.config import AnswerConfig, StudentConfig
from lmlab.methods.tutor.dialogues.wording import chapter_part
from lmlab.methods.tutor.endpoints import UNANSWERED, without_private
from lmlab.methods.tutor.items.item import TutorItem
from lmlab.methods.tutor.scoring.grade import kept_of
from lmlab.progress import progress

RUBRIC = Path(__file__).with_name("dialogue-v1.yaml")
ROWS, REPLIES = "conversations.jsonl", "replies.sqlite"
DONE = "[UNDERSTOOD]"
_AT_ONCE = 32  # conversations side by side; each is written when its block ends, so that a stop costs no more
_LEAK = 0.7  # share of a key point's content words in one turn that gives it away
_SYSTEM = (
    "You play a {level} student who talks with a tutor{about}. You want to understand this: {goal} You have"
    " understood one thing wrongly, and believe: {misconception} You hold to it until the tutor has made you see why"
    " it is wrong; then you say in your own words what you have understood, and end with {done}. Say one turn at a"
    " time, in one to three sentences, and write nothing of the tutor. You do not know the right answer, though the"
    " examiner has it here, so that you can tell when you have reached it; never say it before you have been led"
    " there:\n{points}"
)
_WORD = re.compile(r"[^\W_]{3,}")


@dataclass
class Conversation:
    """A conversation under way; the student's turn comes first."""

    item: TutorItem
    misconception: str
    turns: list[str] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def transcript(self) -> str:
        """All turns with their numbers and speakers."""
        return "\n\n".join(
            f"Turn {number} ({'student' if number % 2 else 'tutor'}): {turn}"
            for number, turn in enumerate(self.turns, 1)
        )


def rubric() -> GradingRubric:
    """By what a conversation is graded."""
    return GradingRubric.load(RUBRIC)


def misconception_of(item: TutorItem, seed: int) -> str:
    """What the student believes: that one of the key points, drawn by the seed, is not so. A column `misconception` of
    the question goes before.
    """
    if given := item.extra.get("misconception"):
        return given
    if not item.key_points:
        return "what the question supposes is the whole answer."
    point = random.Random(f"{seed}:{item.id}").choice(item.key_points)
    return f"it is not so that {point[:1].lower()}{point[1:].rstrip('.')}."


def converse(
    items: Sequence[TutorItem],
    tutor: Endpoint,
    student: Endpoint,
    config: StudentConfig,
    answers: AnswerConfig,
    directory: Path,
    backends: tuple[Backend | None, Backend | None] = (None, None),
    redact: tuple[str, ...] = (),
) -> list[Row]:
    """Let a tutor talk with a student about each question; rows have the turns, why they ended, and which turns of the
    tutor give the answer away before the student has tried.

    Arguments:
        redact: what these regular expressions find is not sent to anybody.

    Raises:
        UserError: the folder holds conversations of others about these questions, or by other settings.
        BudgetExceeded, EndpointUnavailable, Interrupted: as `lmlab.endpoints.answer`; everything that came is kept.
    """
    made = [
        backend or (make_backend(each) if each.backend == "local" else None)
        for backend, each in zip(backends, (tutor, student), strict=True)
    ]
    names = [f"{each.backend}:{each.model}" for each in (tutor, student)]
    asked = [config.model_dump(), answers.book, answers.max_new_tokens, *redact]
    keys = {item.id: sha256_json([names, asked, _SYSTEM, item.id, item.chapter])[:16] for item in items}
    rows = RowFile(directory / ROWS)
    known = {id: row for id, row in rows.done().items() if id in keys}
    _refuse_others(directory, known, names, keys)
    done = {id for id, row in known.items() if row["stop_reason"] not in UNANSWERED}
    left = [Conversation(item, misconception_of(item, config.seed)) for item in items if item.id not in done]

    def from_student(talk: Conversation) -> ChatRequest:
        return without_private(student_request(talk, config, answers), redact)

    def from_tutor(talk: Conversation) -> ChatRequest:
        return without_private(tutor_request(talk, answers), redact)

    with progress("talk", len(left), "conversations") as advance:
        for start in range(0, len(left), _AT_ONCE):
            block = left[start : start + _AT_ONCE]
            for _ in range(config.turns):
                _round(block, student, made[1], directory, from_student, True)
                _round(block, tutor, made[0], directory, from_tutor, False)
            for each in block:
                each.stop_reason = each.stop_reason or "turns"
                rows.append(_row(each, names, keys[each.item.id]))
                advance(1)
    return rows.finish([item.id for item in items])


def _refuse_others(directory: Path, known: Mapping[str, Row], names: Sequence[str], keys: Mapping[str, str]) -> None:
    """Conversations of others are not mixed with these, and not replaced unasked.

    Raises:
        UserError: there are some.
    """
    for id, row in known.items():
        if row["made_by"] != keys[id]:
            who = [row["tutor"]["model"], row["student"]]
            what = "by other settings" if who == list(names) else f"of {who[0]} with {who[1]}"
            raise UserError(
                f"'{directory}' holds conversations {what}.",
                "Name another folder, or begin anew with --new-run, which moves these aside.",
            )


def student_request(talk: Conversation, config: StudentConfig, answers: AnswerConfig) -> ChatRequest:
    """The student's next turn."""
    item = talk.item
    chapter = answers.book == "open" and item.chapter
    system = fill(
        _SYSTEM,
        level=config.level,
        about=" about a chapter of a textbook" if chapter else "",
        goal=item.question,
        misconception=talk.misconception,
        done=DONE,
        points=fenced("\n".join(f"- {point}" for point in item.key_points)),
    )
    said = [
        {"role": "assistant" if place % 2 == 0 else "user", "content": turn} for place, turn in enumerate(talk.turns)
    ]
    begin = {"role": "user", "content": "Begin: say what you want to understand, and what you believe."}
    return ChatRequest(({"role": "system", "content": system}, begin, *said), max_tokens=config.max_tokens)


def tutor_request(talk: Conversation, answers: AnswerConfig) -> ChatRequest:
    """The tutor's next turn. In open-book conversations the chapter stands before the student's first turn."""
    turns = [("user" if place % 2 == 0 else "assistant", turn) for place, turn in enumerate(talk.turns)]
    if answers.book == "open" and talk.item.chapter:
        turns[0] = ("user", chapter_part(talk.item.chapter) + turns[0][1])
    return ChatRequest(endpoint_messages(turns[-1][1], turns[:-1]), max_tokens=answers.max_new_tokens)


def _round(
    talks: Sequence[Conversation], who: Endpoint, backend: Backend | None, directory: Path, request: Any, student: bool
) -> None:
    going = [each for each in talks if each.stop_reason is None]
    if not going:
        return

    def take(number: int, reply: Reply) -> None:
        talk = going[number]
        if reply.status != "ok" or not (reply.text or "").strip():
            talk.stop_reason = "empty" if reply.status == "ok" else reply.status
            return
        text = str(reply.text)
        if student and DONE in text:
            talk.stop_reason = "understood"
        talk.turns.append(text.replace(DONE, "").strip())

    answer(who, [request(each) for each in going], take, directory / REPLIES, backend)


def leaks(talk: Conversation) -> list[int]:
    """The numbers of the tutor's turns that say most of a key point's words before the student has tried: before a turn
    of the student, after the first, that says something and does not only ask.
    """
    tried = next(
        (number for number, turn in enumerate(talk.turns, 1) if number > 1 and number % 2 and _tries(turn)),
        len(talk.turns) + 1,
    )
    points = [found for point in talk.item.key_points if len(found := _words(point)) >= 2]
    asked = _words(talk.item.question)
    return [
        number
        for number, turn in enumerate(talk.turns, 1)
        if number % 2 == 0 and number < tried and any(_given_away(point - asked, _words(turn)) for point in points)
    ]


def _given_away(point: set[str], said: set[str]) -> bool:
    return bool(point) and len(point & said) >= _LEAK * len(point)


def _tries(turn: str) -> bool:
    return any(part.strip() and not part.rstrip().endswith("?") for part in re.split(r"(?<=[.!?])\s+", turn))


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _row(talk: Conversation, names: Sequence[str], key: str) -> Row:
    given = leaks(talk)
    return {
        "id": talk.item.id,
        **talk.item.about(),
        "misconception": talk.misconception,
        "tutor": {"model": names[0], "output": talk.transcript},
        "student": names[1],
        "turns": talk.turns,
        "stop_reason": talk.stop_reason,
        "leaks": given,
        "answer_status": "ok" if len(talk.turns) > 1 else "endpoint_error",
        "made_by": key,
    }


def grade_conversations(
    rows: Sequence[Row], items: Sequence[TutorItem], judge: AnswerJudge, book: str, flags: Sequence[str] = ()
) -> list[Row]:
    """Rows with grades for each criterion; those that have no turn of the tutor stay without.

    Arguments:
        flags: of every row, such as `self_judging`.
    """
    by_id = {item.id: item for item in items}
    shown = [row for row in rows if row["answer_status"] == "ok"]

    def item_of(row: Row) -> AnswerItem:
        item = by_id[row["id"]]
        goal = f"{row['question']}\nBelieves: {row['misconception']}"
        chapter = item.chapter if book == "open" and item.chapter else None
        return AnswerItem(item.id, goal, row["tutor"]["output"], item.key_points, chapter, group=item.cluster)

    found = dict(zip((row["id"] for row in shown), judge_answers(judge, [item_of(row) for row in shown]), strict=True))
    about: dict[str, Any] = {"name": judge.name, "prompt_hash": judge.prompt_hash, "headline": judge.headline}
    about |= {"criteria": list(judge.criteria), "maximum": judge.scale.maximum}
    graded = []
    for row in rows:
        grades = found.get(row["id"])
        graded.append(
            {
                **row,
                "judge": about,
                "grades": dict.fromkeys(judge.criteria) if grades is None else dict(grades.grades),
                "status": row["answer_status"] if grades is None else grades.status,
                "flags": [*(() if grades is None else grades.flags), *flags],
                "judged": {} if grades is None else kept_of(grades),
            }
        )
    return graded
