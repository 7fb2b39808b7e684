"""Instances of an exact length: the most items that fit, then words of filler until at most 3 % are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lmlab.errors import UserError
from lmlab.evals.long.asking import Asking
from lmlab.evals.long.config import LongSettings
from lmlab.evals.long.draft import Draft, Draw, Plan
from lmlab.evals.long.instance import Header, Instance
from lmlab.evals.long.tasks.registry import PLANS
from lmlab.evals.long.texts import count_words, cut_words, origin
from lmlab.progress import progress

TOLERANCE = 0.03
"""What share of a length may be missing before an instance counts as short."""


class NoRoom(UserError):
    """A length at which not even the smallest context of a task fits."""


def build_instances(asking: Asking, settings: LongSettings, left_out: list[str] | None = None) -> Iterator[Instance]:
    """Build instances, one context after the other; the same settings, tokenizer and texts give the same.

    Arguments:
        left_out: receives a sentence for each task and length that leave no room; without it, that is an error.

    Raises:
        NoRoom: a length leaves no room for a task.
    """
    lengths, contexts = settings.chosen_lengths(), settings.chosen_contexts()
    chosen = settings.chosen()
    with progress("build", len(chosen) * len(lengths) * contexts, "contexts") as advance:
        for task, variant in chosen:
            for length in lengths:
                for index in range(contexts):
                    draw = Draw(task, variant, length, index, settings.seed, settings.questions, settings.demos)
                    advance()
                    try:
                        yield from build_context(asking, draw)
                    except NoRoom as error:
                        if left_out is None:
                            raise
                        left_out.append(error.message)


def build_context(asking: Asking, draw: Draw) -> list[Instance]:
    """The questions about one context.

    Raises:
        NoRoom: not even the smallest context fits.
    """
    plan = PLANS[draw.task](draw)
    room = draw.length - plan.budget
    sizes = _Sizes(asking, draw, plan)
    count = _largest(lambda n: sizes.of(n) <= room, plan.least, plan.most)
    if count is None:
        raise NoRoom(
            f"{draw.length} tokens leave no room for the task {draw.task}.{draw.variant}, whose smallest prompt has"
            f" {sizes.of(plan.least)} and whose answer up to {plan.budget}.",
            "Ask for longer ones.",
        )
    filler = ""
    if plan.filler is not None and sizes.of(count) < room * (1 - TOLERANCE):
        most = count_words(plan.filler)
        found = _largest(lambda n: sizes.of(count, cut_words(plan.filler or "", n)) <= room, 0, most)
        filler = cut_words(plan.filler, found or 0)
    found_drafts = sizes.drafts(count, filler)
    # the longest question was measured alone; none may be longer than the room
    instances = [
        _instance(asking, draw, plan, draft, number, count)
        for number, draft in enumerate(found_drafts)
        if _can_be_written(asking, draft, plan)
    ]
    fits = [each for each in instances if each.prompt_tokens <= room]
    if not fits:
        raise NoRoom(
            f"In {draw.length} tokens the task {draw.task}.{draw.variant} has nothing to ask that can be answered in"
            f" {plan.budget} tokens.",
            "Ask for longer ones.",
        )
    short = max(each.prompt_tokens for each in fits) < room * (1 - TOLERANCE)
    return [each.model_copy(update={"short": True}) if short else each for each in fits]


def header_of(asking: Asking, settings: LongSettings) -> Header:
    """The header of a file of these instances."""
    said: dict[str, Any] = {
        "lengths": settings.chosen_lengths(),
        "tasks": [".".join(each) for each in settings.chosen()],
        "contexts": settings.chosen_contexts(),
        "questions": settings.questions,
        "demos": settings.demos,
        "seed": settings.seed,
    }
    return Header(
        tokenizer=asking.tokenizer.fingerprint, template=asking.template, settings=said, origin=dict(origin())
    )


class _Sizes:
    """Tokens of the longest prompt of a context with so many items."""

    def __init__(self, asking: Asking, draw: Draw, plan: Plan) -> None:
        self.asking, self.draw, self.plan = asking, draw, plan
        self._known: dict[tuple[int, str], int] = {}

    def of(self, count: int, filler: str = "") -> int:
        key = (count, filler)
        if key not in self._known:
            drafts = self.drafts(count, filler)
            # the context is the same for all: the one with the most characters beside it has the most tokens, nearly
            longest = max(
                drafts, key=lambda each: len(each.demos) + len(each.question) + len(each.prefix), default=None
            )
            self._known[key] = 0
            if longest is not None:
                self._known[key] = _instance(self.asking, self.draw, self.plan, longest, 0, count).prompt_tokens
        return self._known[key]

    def drafts(self, count: int, filler: str) -> list[Draft]:
        found = self.plan.make(count)
        if not filler:
            return found
        return [_behind(each, filler) for each in found]


def _behind(draft: Draft, filler: str) -> Draft:
    """A question whose context stands behind filler, and so deeper than before."""
    context = f"{filler}\n\n{draft.context}" if draft.context else filler
    if draft.depth is None:
        return replace(draft, context=context)
    place = len(context) - (1 - draft.depth) * len(draft.context)
    return replace(draft, context=context, depth=round(place / len(context), 4))


def _can_be_written(asking: Asking, draft: Draft, plan: Plan) -> bool:
    """Whether an answer fits the budget, so that a model can be right; an abstract (no budget of its own) may be
    told in part.
    """
    if plan.partial:
        return True
    return any(len(asking.tokenizer.encode(answer, "as_text")) <= plan.budget for answer in draft.answer)


def _instance(asking: Asking, draw: Draw, plan: Plan, draft: Draft, number: int, count: int) -> Instance:
    name = draw.task if draw.variant == "default" else f"{draw.task}.{draw.variant}"
    instance = Instance.model_construct(
        id=f"{name}/{draw.length}/{draw.context_index}/{number}",
        task=draw.task,
        variant=draw.variant,
        length=draw.length,
        context_index=draw.context_index,
        question_index=number,
        instruction=plan.instruction,
        context=draft.context,
        demos=draft.demos,
        question=draft.question,
        prefix=draft.prefix,
        answer=list(draft.answer),
        options=list(draft.options),
        depth=draft.depth,
        n_items=count,
        budget=plan.budget,
        stop=list(plan.stop),
        meta=draft.meta,
    )
    return instance.model_copy(update={"prompt_tokens": len(asking.ids(instance))})


def _largest(fits: Any, least: int, most: int) -> int | None:
    """The largest number from `least` to `most` that fits, where all below it do; None if none does."""
    if not fits(least):
        return None
    step = 1
    while least + step <= most and fits(least + step):  # most contexts are far smaller than the largest one
        least, step = least + step, step * 2
    low, high = least, min(most, least + step)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def summary_of(instances: Sequence[Instance]) -> list[list[Any]]:
    """For each task and length: instances, contexts, items, tokens of the prompts, and how many are short."""
    rows: dict[tuple[str, int], list[Instance]] = {}
    for instance in instances:
        rows.setdefault((instance.name, instance.length), []).append(instance)
    return [
        [
            name,
            length,
            len(found),
            len({each.context_index for each in found}),
            round(sum(each.n_items for each in found) / len(found), 1),
            max(each.prompt_tokens for each in found),
            sum(each.short for each in found),
        ]
        for (name, length), found in rows.items()
    ]
