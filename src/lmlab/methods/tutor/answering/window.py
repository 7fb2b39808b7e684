"""What becomes of prompts that exceed a model's window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.tutor.answering.prompts import Asking, user_message
from lmlab.methods.tutor.config import Overflow
from lmlab.methods.tutor.items.item import Book, TutorItem

_CUT = "\n\n[...]\n\n"


class ContextOverflow(UserError):
    """Prompts with their answers exceed the window."""


@dataclass(frozen=True)
class Prompt:
    """A question as tokens.

    Attributes:
        ids: of the whole prompt; empty where the question is left out.
        cut: tokens of the chapter that are left out of its middle.
    """

    item: TutorItem
    ids: list[int]
    cut: int = 0


def prompts_for(
    asking: Asking, items: Sequence[TutorItem], book: Book, limit: int, answer_tokens: int, overflow: Overflow
) -> list[Prompt]:
    """The prompts of questions, each within `limit` tokens with its answer.

    Arguments:
        overflow: as in `AnswerConfig`.

    Raises:
        ContextOverflow: with `error`, all that are too long, before any is answered; with `truncate_middle`, one that
            is too long without a chapter.
    """
    room = limit - answer_tokens
    if room <= 0:
        raise ContextOverflow(
            f"ContextOverflow: an answer of {answer_tokens} tokens leaves no room in a window of {limit}.",
            "Lower --max-new-tokens.",
        )
    found = [Prompt(item, asking.ids(user_message(item, book))) for item in items]
    long = [each for each in found if len(each.ids) > room]
    if not long or overflow == "skip":
        return [each if len(each.ids) <= room else Prompt(each.item, []) for each in found]
    if overflow == "error":
        told = ", ".join(f"{each.item.id} ({len(each.ids)} tokens)" for each in long)
        raise ContextOverflow(
            f"ContextOverflow: {len(long)} of {len(found)} prompts do not fit {room} tokens (a window of {limit} with"
            f" {answer_tokens} for the answer): {told}.",
            "Set --overflow truncate_middle or skip, raise --window with --rope-theta auto, or lower --max-new-tokens.",
        )
    return [each if len(each.ids) <= room else _shortened(asking, each.item, book, room) for each in found]


def _shortened(asking: Asking, item: TutorItem, book: Book, room: int) -> Prompt:
    """A prompt whose chapter has lost its middle: what is left are its first and its last tokens, half of each."""
    text = asking.tokenizer.encode(item.chapter, "as_text") if book == "open" else []

    def build(kept: int) -> list[int]:
        return asking.ids(user_message(item, book, _middle_cut(asking.tokenizer, text, kept)))

    kept = _largest(lambda kept: len(build(kept)) <= room, len(text))
    if kept is None or kept <= 0:
        raise ContextOverflow(
            f"ContextOverflow: question '{item.id}' does not fit {room} tokens even without its chapter.",
            "Raise --window, or leave it out with --overflow skip.",
        )
    return Prompt(item, build(kept), len(text) - kept)


def _middle_cut(tokenizer: Tokenizer, ids: Sequence[int], kept: int) -> str:
    head = (kept + 1) // 2
    tail = kept - head
    last = tokenizer.decode(ids[len(ids) - tail :]) if tail else ""
    return tokenizer.decode(ids[:head]) + _CUT + last


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest number below `most` that fits, by halving; it need not be exact to the token."""
    if most <= 0 or not fits(0):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
