"""Contexts of the suite with their questions and right answers, each as one text of which the answers count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long import Asking, Instance, LongSettings, build_instances, by_context
from lmlab.words import counted


@dataclass(frozen=True)
class Answered:
    """A context with its questions and right answers.

    Attributes:
        ids: the tokens.
        counted: the places of the answers' tokens.
    """

    ids: list[int]
    counted: list[int] = field(default_factory=list)


def answered(
    tokenizer: Tokenizer, tasks: Sequence[str], length: int, contexts: int, questions: int, seed: int
) -> list[Answered]:
    """Contexts of values to recall, as long as `length` tokens allow with all their questions.

    Arguments:
        contexts: of each task.
        questions: about each context, where a task has as many and they fit.

    Raises:
        UserError: no answer fits.
    """
    asking = Asking(tokenizer)
    built = LongSettings(tasks=list(tasks), lengths=[length], contexts=contexts, questions=questions, seed=seed)
    found = [_joined(asking, group, length) for group in by_context(list(build_instances(asking, built)))]
    if not any(text.counted for text in found):
        raise UserError(f"No answer of {', '.join(tasks)} fits {counted(length, 'tokens')}.", "Raise the window.")
    return found


def _joined(asking: Asking, group: Sequence[Instance], room: int) -> Answered:
    """Question after question with its answer, as far as they fit."""
    ids: list[int] = []
    places: list[int] = []
    for number, instance in enumerate(group):
        if number == 0:
            prompt = asking.ids(instance)
        else:
            prompt = asking.tokenizer.encode(f"\n\n{instance.question}\n{instance.prefix}", "as_text")
        answer = asking.answer_ids(asking.ids(instance), instance, instance.answer[0])
        if len(ids) + len(prompt) + len(answer) > room:
            break
        ids += prompt
        places += range(len(ids), len(ids) + len(answer))
        ids += answer
    return Answered(ids, places)
