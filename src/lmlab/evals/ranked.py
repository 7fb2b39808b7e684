"""Ranked classification: a model's answer is the option that it needs the fewest bits a byte for, after the context.

A task is a JSON lines file; each row has `id`, `context`, `options` (a list of texts), `gold` (the right option's number) and `domain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.config import Config, validate
from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.perplexity import Measurement
from lmlab.evals.scoring import Window, log_likelihoods
from lmlab.files import read_jsonl
from lmlab.models import Transformer


class RankedItem(Config):
    """One question."""

    id: str
    context: str
    options: list[str]
    gold: int
    domain: str = "text"


@dataclass(frozen=True)
class RankedResult:
    """Accuracy by domain (and "all"), with one row a question: option bits, bytes, gold, prediction."""

    accuracy: dict[str, Measurement]
    chance: dict[str, float]
    rows: list[dict[str, Any]]


def read_items(path: Path) -> list[RankedItem]:
    """Read a task file; a row that is not an item is a `UserError` with its line."""
    items = []
    for number, row in enumerate(read_jsonl(path), 1):
        item = validate(RankedItem, row, f"'{path}', line {number}")
        if not 0 <= item.gold < len(item.options):
            raise UserError(f"'{path}', line {number}: gold {item.gold} is not the number of one of the {len(item.options)} options.")
        items.append(item)
    if not items:
        raise UserError(f"The task file '{path}' is empty.")
    return items


def option_bits(model: Transformer, tokenizer: Tokenizer, items: Sequence[RankedItem], label: str = "rank") -> list[list[float]]:
    """The bits of every option after its context.

    An option's tokens are those of the joined text beyond the context's own number of tokens, as EleutherAI's harness counts them.

    Raises:
        UserError: an item is longer than the model's `max_seq_len`.
    """
    pairs = [(item, option) for item in items for option in item.options]
    contexts = tokenizer.encode_batch([item.context for item, _ in pairs])
    joined = tokenizer.encode_batch([item.context + option for item, option in pairs])
    windows = []
    for (item, option), context, ids in zip(pairs, contexts, joined, strict=True):
        scored = len(ids) - len(context)
        if scored < 1:
            raise UserError(f"Item '{item.id}': the option {option!r} adds no token to its context.")
        if len(ids) > model.config.max_seq_len:
            raise UserError(f"Item '{item.id}' has {len(ids)} tokens, more than the model's {model.config.max_seq_len}.")
        windows.append(Window([tokenizer.bos_id, *ids], scored))
    flat = iter(log_likelihoods(model, windows, label=label))
    return [[-next(flat) / math.log(2) for _ in item.options] for item in items]


def score_ranking(items: Sequence[RankedItem], bits: Sequence[Sequence[float]]) -> RankedResult:
    """Accuracy of taking the option with the fewest bits a byte, with binomial standard errors."""
    rows = []
    for item, values in zip(items, bits, strict=True):
        sizes = [len(option.encode()) for option in item.options]
        rates = [value / size for value, size in zip(values, sizes, strict=True)]
        prediction = min(range(len(rates)), key=rates.__getitem__)
        rows.append({"id": item.id, "domain": item.domain, "gold": item.gold, "prediction": prediction, "bits": list(values), "bytes": sizes})
    groups = {"all": list(range(len(items)))}
    for number, item in enumerate(items):
        groups.setdefault(item.domain, []).append(number)
    accuracy = {name: _accuracy([rows[number] for number in numbers]) for name, numbers in groups.items()}
    chance = {name: sum(1 / len(items[number].options) for number in numbers) / len(numbers) for name, numbers in groups.items()}
    return RankedResult(accuracy, chance, rows)


def _accuracy(rows: Sequence[dict[str, Any]]) -> Measurement:
    share = sum(row["prediction"] == row["gold"] for row in rows) / len(rows)
    error = math.sqrt(share * (1 - share) / (len(rows) - 1)) if len(rows) > 1 else None
    return Measurement(share, error, len(rows))
