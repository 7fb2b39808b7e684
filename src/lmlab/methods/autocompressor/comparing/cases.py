"""Contexts with questions about them, as token ids: what is compressed, what is asked, what is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long import Asking, Instance, LongSettings, build_instances, by_context
from lmlab.methods.autocompressor.comparing.config import CompareConfig
from lmlab.models import common_beginning

_SUMS = "arithmetic"
_LEAST = 8  # tokens: less than this is no context


@dataclass(frozen=True)
class Question:
    """What follows a context, and the answer to it."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One context.

    Attributes:
        task: with its length, such as json_kv/512.
        length: that was asked for; the context may be some tokens shorter.
        context: its ids.
    """

    task: str
    length: int
    name: str
    context: tuple[int, ...]
    questions: tuple[Question, ...]


def build_cases(tokenizer: Tokenizer, config: CompareConfig, window: int) -> list[Case]:
    """The same for the same tokenizer and settings.

    Raises:
        UserError: a task that there is not, a length beyond the model's window, or less than two contexts of a task,
            whose memories could not be taken for each other.
    """
    if config.contexts < 2:
        raise UserError("contexts is 1: the control reads another context's memory.", "Ask for at least 2 contexts.")
    if max(config.lengths) > window:
        raise UserError(f"A length of {max(config.lengths)} exceeds the model's window of {window} tokens.")
    cases: list[Case] = []
    asking = Asking(tokenizer)
    named = [task for task in config.tasks if task != _SUMS]
    if named:
        settings = LongSettings(
            tasks=named, lengths=config.lengths, contexts=config.contexts, questions=config.questions, seed=config.seed
        )
        instances = [each for each in build_instances(asking, settings) if each.task != "ppl_gain"]
        cases += [_case(asking, group) for group in by_context(instances)]
    if _SUMS in config.tasks:
        for length in config.lengths:
            cases += _sums(tokenizer, config, length)
    return cases


def _case(asking: Asking, group: list[Instance]) -> Case:
    first = group[0]
    prompts = [asking.ids(each) for each in group]
    # a question that nobody asks shows where the context ends when there is but one
    other = asking.ids(first.model_copy(update={"question": "?", "prefix": "", "demos": ""}))
    shared = common_beginning([*prompts, other])
    if shared < _LEAST:
        raise UserError(f"The task {first.name} has no context that could be compressed.", "Leave it out.")
    questions = tuple(
        Question(tuple(prompt[shared:]), tuple(asking.answer_ids(prompt, each, each.answer[0])[: each.budget]))
        for prompt, each in zip(prompts, group, strict=True)
    )
    return Case(f"{first.name}/{first.length}", first.length, first.context_id, tuple(prompts[0][:shared]), questions)


def _sums(tokenizer: Tokenizer, config: CompareConfig, length: int) -> Iterator[Case]:
    """Names with numbers, then what two of them are together: the context must be read, and calculated with."""
    for index in range(config.contexts):
        draw = random.Random(f"{config.seed} {length} {index}")
        names = [f"{first}{second}" for first in "BCDFGHJKLMNPQRSTVWZ" for second in "aeiou"]
        draw.shuffle(names)
        lines: list[str] = []
        prices: dict[str, int] = {}
        for name in names:
            price = draw.randrange(2, 10)
            if len(tokenizer.encode_prompt(_told([*lines, f"{name} costs {price}."]))) > length:
                break
            prices[name] = price
            lines.append(f"{name} costs {price}.")
        if len(prices) < 2:
            raise UserError(f"A length of {length} tokens leaves no room for two prices.", "Ask for a longer one.")
        ids = tokenizer.encode_prompt(_told(lines))
        questions = []
        for _ in range(config.questions):
            first, second = draw.sample(list(prices), 2)
            asked = f"\nQuestion: What do {first} and {second} cost together?\nAnswer:"
            answer = f" {prices[first] + prices[second]}"
            asked_ids, answer_ids = (tuple(tokenizer.encode(text, "as_text")) for text in (asked, answer))
            questions.append(Question(asked_ids, answer_ids))
        yield Case(f"{_SUMS}/{length}", length, f"{_SUMS}/{length}/{index}", tuple(ids), tuple(questions))


def _told(lines: list[str]) -> str:
    return "Prices:\n" + "\n".join(lines) + "\n"
