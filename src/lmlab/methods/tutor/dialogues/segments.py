"""Dialogues as segments: pieces of text, each learned or not, in the plain format that published tutors learned from.

E is the end token and B the begin token, as ids. Text never becomes one of them, whatever it spells.

| kind | segments (learned in capitals) |
|---|---|
| `openbook` | chapter E newline B; then `user:` turns, and ASSISTANT: TURNS, each with E |
| `closedbook` | B; then ASSISTANT: TURNS and `user:` turns |
| `studentstart` | chapter E newline B; then questions, and ANSWERS |
| `teacherstart` | B; then ALL TURNS |
| `generateexam` | B; then ALL TURNS, by one of three pairs of roles |
| MetaMath | B AND TEN QUESTIONS WITH THEIR ANSWERS, by one of six pairs of roles |
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lmlab.files import sha256_json
from lmlab.methods.tutor.dialogues.record import EmptyConversation, Kind, MissingRoleKey, kind_of, turns_of

USER, ASSISTANT = "\nuser: ", "\nassistant: "
EXAM_ROLES = (("\nquestion: ", "\nanswer: "), (USER, ASSISTANT), (ASSISTANT, USER))
"""How the turns of an exam may be called; one pair is drawn for each record."""
MATH_ROLES = (
    ("\nquestion: ", "\nanswer: "),
    ("\nQuestion: ", "\nAnswer: "),
    ("\nProblem: ", "\nSolution: "),
    ("\nproblem: ", "\nsolution: "),
    (USER, ASSISTANT),
    (ASSISTANT, USER),
)
"""How the turns of MetaMath may be called; one pair is drawn for each sequence."""
_ROLE_WORDS: dict[Kind, tuple[str, str]] = {
    "generateexam": ("QUESTION", "ANSWER"),
    "studentstart": ("STUDENT", "TEACHER"),
    "teacherstart": ("TEACHER", "STUDENT"),
}
_MARK = "###"


class Special(Enum):
    """A token that no text spells."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True)
class Segment:
    """A turn, or what stands before all turns.

    Attributes:
        pieces: texts and special tokens, in order.
        learned: whether the loss counts its tokens.
    """

    pieces: tuple[str | Special, ...]
    learned: bool

    def text(self, begin: str, end: str) -> str:
        """What it reads as, with special tokens spelled as the tokenizer does."""
        spelled = {Special.BEGIN: begin, Special.END: end}
        return "".join(spelled[each] if isinstance(each, Special) else each for each in self.pieces)


BEGINNING = Segment((Special.BEGIN,), learned=False)


def chapter_segment(chapter: str) -> Segment:
    """The chapter that a dialogue is about, before its turns."""
    return Segment((chapter, Special.END, "\n", Special.BEGIN), learned=False)


def turn_segment(role: str, text: str, learned: bool) -> Segment:
    """A turn behind its role, with the end token."""
    return Segment((role + text, Special.END), learned)


def segments_of(record: Mapping[str, Any], seed: int = 0) -> list[Segment]:
    """The segments of a record of TutorChat.

    Arguments:
        seed: of the roles of exams. The draw depends on it and on the record alone.

    Raises:
        UnfitRecord: nothing can be made of it; its class says why.
    """
    kind, turns = kind_of(record), turns_of(record)
    if kind == "openbook":
        spoken = [(ASSISTANT if n % 2 == 0 else USER, turn) for n, turn in enumerate(turns)][1:]
        return [chapter_segment(turns[0]), *(turn_segment(r, t, r == ASSISTANT) for r, t in spoken)]
    if kind == "closedbook":
        spoken = [(ASSISTANT if n % 2 == 0 else USER, turn) for n, turn in enumerate(turns)]
        return [BEGINNING, *(turn_segment(r, t, r == ASSISTANT) for r, t in spoken)]
    if kind == "studentstart":
        if len(turns) < 2:
            raise EmptyConversation("a dialogue that a student starts needs its chapter before it")
        first, roles = chapter_segment(turns[0]), (USER, ASSISTANT)
    else:
        roles = (ASSISTANT, USER) if kind == "teacherstart" else _drawn(EXAM_ROLES, seed, sha256_json(turns))
        first = BEGINNING
    spoken = split_dialogue(turns[-1], kind, roles)
    masked = USER if kind == "studentstart" else None
    return [first, *(turn_segment(role, turn, role != masked) for role, turn in spoken)]


def clean_dialogue(text: str) -> str:
    """A dialogue without what a model wrote around it: up to the first `###` if that lies in the first half, and from
    the last one if it lies in the second; other marks are deleted.
    """
    first = text.find(_MARK)
    if 0 <= first <= len(text) // 2:
        text = text[first + len(_MARK) :]
    last = text.rfind(_MARK)
    if last >= 0 and last >= len(text) // 2:
        text = text[:last]
    return text.replace(_MARK, "").strip()


def split_dialogue(text: str, kind: Kind, roles: tuple[str, str]) -> list[tuple[str, str]]:
    """The turns of a dialogue that was written in one piece, each behind its role; a turn without its counterpart, and
    an empty one, is left out.

    Raises:
        MissingRoleKey: a word that tells who speaks is missing.
        EmptyConversation: no turn is left.
    """
    text = clean_dialogue(text)
    opening, closing = _ROLE_WORDS[kind]
    for word in (opening, closing):
        if word not in text:
            raise MissingRoleKey(f"the dialogue has no '{word}'")
    pairs = [pair for each in text.split(opening) if len(pair := each.split(closing)) == 2]
    spoken = [(role, turn.strip(": \n\t\r")) for pair in pairs for role, turn in zip(roles, pair, strict=True)]
    spoken = [(role, turn) for role, turn in spoken if turn]
    if not spoken:
        raise EmptyConversation(f"no {opening} is followed by one {closing}")
    return spoken


def math_segments(pairs: Sequence[tuple[str, str]], seed: int, number: int) -> list[Segment]:
    """Questions and answers of MetaMath as one sequence, all of it learned.

    Arguments:
        seed, number: of the roles, and which sequence it is.
    """
    roles = _drawn(MATH_ROLES, seed, str(number))
    turns = [turn_segment(role, text, True) for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return [Segment((Special.BEGIN,), learned=True), *turns]


def _drawn(roles: Sequence[tuple[str, str]], seed: int, key: str) -> tuple[str, str]:
    return random.Random(f"{seed}:{key}").choice(roles)
