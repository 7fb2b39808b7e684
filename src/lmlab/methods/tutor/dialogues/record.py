"""Dialogues as they are published (TutorChat): what a record holds, and why one cannot be learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

Mode = Literal["openbook", "closedbook", "singleturn"]
Kind = Literal["openbook", "closedbook", "studentstart", "teacherstart", "generateexam"]
MODES: tuple[Mode, ...] = ("openbook", "closedbook", "singleturn")
SINGLE: tuple[Kind, ...] = ("generateexam", "studentstart", "teacherstart")
"""Dialogues that were written by a single request, in the order in which a record's name is looked through."""


class UnfitRecord(ValueError):
    """A record that nothing can be learned from; `kind` is what it is counted under."""

    kind: ClassVar[str] = "UnfitRecord"


class UnknownMode(UnfitRecord):
    """`mode`, or the `name` of a dialogue of a single turn, says nothing known."""

    kind = "UnknownMode"


class EmptyConversation(UnfitRecord):
    """There are no turns, or too few."""

    kind = "EmptyConversation"


class EmptyTurn(UnfitRecord):
    """A turn holds nothing but blanks, or is no text."""

    kind = "EmptyTurn"


class MissingRoleKey(UnfitRecord):
    """A dialogue that was written in one piece lacks the words that tell who speaks."""

    kind = "MissingRoleKey"


class NothingLearned(UnfitRecord):
    """No token of it would be learned."""

    kind = "NothingLearned"


def kind_of(record: Mapping[str, Any]) -> Kind:
    """Which of the five kinds of dialogues it is.

    Raises:
        UnknownMode: none.
    """
    mode = record.get("mode")
    if mode in ("openbook", "closedbook"):
        return cast(Kind, mode)
    if mode != "singleturn":
        raise UnknownMode(f"the mode {mode!r} is none of {', '.join(MODES)}")
    name = str(record.get("name") or "")
    found = next((kind for kind in SINGLE if kind in name), None)
    if found is None:
        raise UnknownMode(f"the name {name!r} says none of {', '.join(SINGLE)}")
    return found


def turns_of(record: Mapping[str, Any]) -> list[str]:
    """The elements of `conversation`.

    Raises:
        EmptyConversation: there are none.
        EmptyTurn: one is blank or no text.
    """
    found = record.get("conversation")
    if not isinstance(found, list | tuple) or not found:
        raise EmptyConversation("'conversation' is no list of turns, or is empty")
    for number, turn in enumerate(found):
        if not isinstance(turn, str) or not turn.strip():
            raise EmptyTurn(f"turn {number} is {'blank' if isinstance(turn, str) else 'no text'}")
    return list(found)
