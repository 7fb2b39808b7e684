"""What a tutor is asked, and how that becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmlab.data import Tokenizer, encode_for_answer
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.methods.tutor.dialogues.segments import ASSISTANT, USER
from lmlab.methods.tutor.dialogues.wording import chapter_part
from lmlab.methods.tutor.items.item import Book, TutorItem

Format = Literal["template", "plain"]
STOPS = ("\nuser:", "\nstudent:")
"""What ends an answer besides the end token: weak models go on with the student's next turn."""
SYSTEM = (
    "You are a kind and patient teacher of science who helps an eager student. Answer what the student asks, explain"
    " the steps that matter, and encourage the student to go on thinking. Be accurate: check what you claim, say so"
    " where you are not sure, and never mislead the student."
)
"""The system message for models behind an API."""


def user_message(item: TutorItem, book: Book, chapter: str | None = None) -> str:
    """The student's message: the chapter and the question, or the question alone. Texts are put in as they are.

    Arguments:
        chapter: what stands in place of the item's own.
    """
    shown = item.chapter if chapter is None else chapter
    return item.question if book == "closed" or not shown.strip() else chapter_part(shown) + item.question


@dataclass(frozen=True)
class Asking:
    """How messages become the tokens of a prompt.

    Attributes:
        format: the tokenizer's chat template, or the plain format of the published tutors.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    tokenizer: Tokenizer
    format: Format = "template"

    def __post_init__(self) -> None:
        if self.format == "template" and self.tokenizer.chat_template is None:
            raise UserError("The model has no chat template.", "Ask in the plain format: --format plain.")

    def ids(self, message: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The tokens up to where the answer begins. What a message spells never becomes a special token, and none is
        there twice.

        Arguments:
            before: earlier turns, each with its role (user or assistant).
        """
        turns = [*before, ("user", message)]
        if self.format == "template":
            return encode_for_answer(self.tokenizer, [{"role": role, "content": text} for role, text in turns])
        ids = [self.tokenizer.bos_id]
        for role, text in turns:
            opened = USER if role == "user" else ASSISTANT
            ids += [*self.tokenizer.encode(opened + text, "as_text"), self.tokenizer.eos_id]
        return [*ids, *self.tokenizer.encode(ASSISTANT.rstrip(), "as_text")]

    @property
    def prompt_hash(self) -> str:
        """What tells one wording from another."""
        probe = TutorItem("", "?", "!")
        shown = [self.ids(user_message(probe, book)) for book in ("open", "closed")]
        return sha256_json([self.format, shown, STOPS])[:16]


def endpoint_messages(message: str, before: Sequence[tuple[str, str]] = ()) -> tuple[dict[str, str], ...]:
    """The messages to a model behind an API."""
    turns = [*before, ("user", message)]
    return ({"role": "system", "content": SYSTEM}, *({"role": role, "content": text} for role, text in turns))


def endpoint_prompt_hash() -> str:
    """What tells one wording from another, for models behind an API."""
    probe = TutorItem("", "?", "!")
    return sha256_json([SYSTEM, user_message(probe, "open")])[:16]
