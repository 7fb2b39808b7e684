"""Prompts as a model reads them: plain text, or a user's turn of its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.data import Tokenizer, encode_for_answer
from lmlab.errors import UserError
from lmlab.evals.long.instance import Instance, prompt_of
from lmlab.files import sha256_json


@dataclass(frozen=True)
class Asking:
    """How prompts become tokens.

    Attributes:
        chat: prompts are a user's turn, and the answer begins with the instance's prefix.
    """

    tokenizer: Tokenizer
    chat: bool = False

    def __post_init__(self) -> None:
        if self.chat and self.tokenizer.chat_template is None:
            raise UserError("The model has no chat template.", "Ask in plain text: leave --chat out.")

    @property
    def template(self) -> str:
        """What tells one wording from another: `plain`, or the fingerprint of the chat template."""
        if not self.chat:
            return "plain"
        shown = encode_for_answer(self.tokenizer, [{"role": "user", "content": "?"}])
        return sha256_json(shown)[:16]

    def ids(self, instance: Instance, context: str | None = None) -> list[int]:
        """The tokens of a prompt, those of the chat template included."""
        if not self.chat:
            return self.tokenizer.encode_prompt(prompt_of(instance, context), "as_text")
        whole = prompt_of(instance.model_copy(update={"prefix": ""}), context)
        ids = encode_for_answer(self.tokenizer, [{"role": "user", "content": whole}])
        return ids + (self.tokenizer.encode(instance.prefix, "as_text") if instance.prefix else [])

    def answer_ids(self, prompt_ids: Sequence[int], instance: Instance, answer: str) -> list[int]:
        """The tokens of an answer behind a prompt.

        Where the tokenizer gives prompt and answer together other tokens than the prompt alone, the answer is encoded
        by itself.
        """
        gap = "" if answer[:1].isspace() or not self._wants_gap(instance) else " "
        if not self.chat:
            whole = self.tokenizer.encode_prompt(prompt_of(instance) + gap + answer, "as_text")
            if len(whole) > len(prompt_ids) and whole[: len(prompt_ids)] == list(prompt_ids):
                return whole[len(prompt_ids) :]
        return self.tokenizer.encode(gap + answer, "as_text")

    def option_ids(self, prompt_ids: Sequence[int], instance: Instance) -> dict[str, list[int]]:
        """The tokens of every option behind a prompt, as `answer_ids` gives them; the prompt is read once for all.

        What follows a prompt can only change its last tokens, so that its last line is encoded with each option, where
        that line has tokens of its own.
        """
        tail = "" if self.chat else prompt_of(instance).rpartition("\n")[2]
        own = self.tokenizer.encode(tail, "as_text") if tail else []
        if not own or list(prompt_ids[-len(own) :]) != own:
            return {option: self.answer_ids(prompt_ids, instance, option) for option in instance.options}
        found = {}
        for option in instance.options:
            gap = "" if option[:1].isspace() or not self._wants_gap(instance) else " "
            both = self.tokenizer.encode(tail + gap + option, "as_text")
            alone = len(both) <= len(own) or both[: len(own)] != own
            found[option] = self.tokenizer.encode(gap + option, "as_text") if alone else both[len(own) :]
        return found

    @staticmethod
    def _wants_gap(instance: Instance) -> bool:
        """Whether a space stands between what the answer begins with and the answer."""
        return bool(instance.prefix) and instance.prefix[-1] not in "\"'([\n"
