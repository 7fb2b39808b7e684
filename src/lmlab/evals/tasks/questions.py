"""Questions with options, of which a model ranks one first by its probability.

A file of questions is JSON lines; each row has `id`, `context` (or `contexts`, one an option), `options` (a list of
texts), `gold` (the right option's number), and optionally `domain` and `unconditional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from lmlab.config import Config, validate
from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.config import TooLong
from lmlab.evals.prefix_sharing import Window
from lmlab.files import read_jsonl
from lmlab.words import counted


class Question(Config):
    """One question.

    Attributes:
        context: what stands before every option; or `contexts`, one for each.
        options: the texts that are ranked; with one alone only its probability is of interest.
        gold: number of the right option.
        domain: figures are given by it, too.
        unconditional: what stands before an option when its probability without the question is wanted.
    """

    id: str
    context: str = ""
    contexts: list[str] | None = None
    options: list[str] = Field(min_length=1)
    gold: int = Field(ge=0)
    domain: str = "text"
    unconditional: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Question:
        if self.gold >= len(self.options):
            raise ValueError(f"gold {self.gold} is not the number of one of {counted(len(self.options), 'options')}.")
        if self.contexts is not None and len(self.contexts) != len(self.options):
            raise ValueError(
                f"{counted(len(self.contexts), 'contexts stand')} beside {counted(len(self.options), 'options')}."
            )
        if "" in self.options:
            raise ValueError("an option is empty.")
        return self

    def pairs(self, unconditional: bool = False) -> list[tuple[str, str]]:
        """Context and continuation of each option; without the question if asked for."""
        if unconditional:
            return [(self.unconditional or "", option) for option in self.options]
        contexts = self.contexts or [self.context] * len(self.options)
        return list(zip(contexts, self.options, strict=True))


def read_questions(path: str | Path) -> list[Question]:
    """Read a file of questions; a row that is not one is a `UserError` with its line."""
    path = Path(path)
    questions = [validate(Question, row, f"'{path}', line {number}") for number, row in enumerate(read_jsonl(path), 1)]
    if not questions:
        raise UserError(f"The task file '{path}' is empty.")
    return questions


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Window]:
    """Tokens of contexts with their continuations, of which the continuation's are scored.

    As EleutherAI's harness does it: spaces at the end of a context go to its continuation, and what the joined text has
    beyond the context's own number of tokens is the continuation. It stands behind the context as it is encoded alone,
    also where the joined text merges the two into other tokens. What the tokenizer puts before every text stands there
    unless the text spells it itself. An empty context is the begin token, which is not scored where the continuation
    spells it.
    """
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    joined = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    windows = []
    for (context, _), alone, ids in zip(moved, contexts, joined, strict=True):
        scored = ids[len(alone) :]
        if context:
            before = [] if context.startswith(tokenizer.bos_token) else tokenizer.begin_ids
        else:
            before = [tokenizer.bos_id]
            scored = scored[1:] if scored[:1] == before else scored
        windows.append(Window([*before, *alone, *scored], len(scored)))
    return windows


def fit_window(window: Window, limit: int, policy: TooLong, what: str) -> tuple[Window | None, int]:
    """The window as a model with so many positions can read it, None if it is left out; and how many tokens were cut
    from its beginning.

    Raises:
        UserError: it is too long and the policy is `error`, or its scored part alone is too long.
    """
    too_many = len(window.ids) - 1 - limit
    if too_many <= 0:
        return window, 0
    if policy == "skip":
        return None, 0
    if policy == "error" or window.num_scored > limit:
        raise UserError(
            f"{what} has {len(window.ids) - 1} tokens, more than the {limit} that the model reads.",
            "Set too_long to truncate (cut its beginning, as EleutherAI's harness does) or to skip.",
        )
    return Window(window.ids[too_many:], window.num_scored), too_many
