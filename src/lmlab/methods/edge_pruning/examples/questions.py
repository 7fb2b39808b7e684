"""Pairs of prompts from questions with several options, such as which line follows: how a model of one's own does its
own task.

The prompt is the end of what a context with its right and with a wrong option have in common, as the tokenizer writes
both; the answer and the distractor are the tokens with which they part. The corrupted prompt is that of another
question, of as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Question
from lmlab.methods.edge_pruning.examples.tasks import side_of


def pairs_of_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, splits: Mapping[str, int], tokens: int = 32
) -> list[dict[str, Any]]:
    """Make examples; a hash of its context says to which split a question belongs.

    Questions with fewer tokens in common are left out.

    Arguments:
        splits: how many examples of each.
        tokens: of each prompt.

    Raises:
        UserError: a split has fewer.
    """
    usable: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for question in questions:
        split = side_of(question.context)
        row = _row(question, tokenizer, tokens) if split in usable else None
        if row is not None and all(row["clean"] != other["clean"] for other in usable[split]):
            usable[split].append({**row, "split": split})
    rows = []
    for split, count in splits.items():
        found = usable[split]
        if len(found) < max(2, count):
            raise UserError(
                f"Of {len(questions):,} questions {len(found):,} give examples of the split {split}, not {count:,}.",
                f"Ask for fewer, lower tokens ({tokens}), or make more questions.",
            )
        chosen = found[:count]
        others = [*found[1:], found[0]]  # of the same split, so that no prompt is in two
        rows += [{**row, "corrupted": other["clean"]} for row, other in zip(chosen, others, strict=False)]
    return rows


def _row(question: Question, tokenizer: Tokenizer, tokens: int) -> dict[str, Any] | None:
    if question.contexts is not None:
        return None
    whole = [tokenizer.encode(question.context + option) for option in question.options]
    right = whole.pop(question.gold)
    for wrong in whole:
        shared = next((n for n, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), 0)
        if shared >= tokens:
            return {"clean": right[shared - tokens : shared], "answer": right[shared], "distractor": wrong[shared]}
    return None
