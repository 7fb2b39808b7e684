"""What a task gives for one context: questions whose context can hold more or fewer items, drawn from one seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Draft:
    """One question before its length is settled; the fields are those of `Instance`."""

    context: str
    question: str
    answer: tuple[str, ...]
    prefix: str = ""
    demos: str = ""
    depth: float | None = None
    options: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A context that can be made of any number of items between `least` and `most`; more items, more tokens.

    Attributes:
        make: the questions about the context with so many items; they all have the same context.
        filler: text of which a part may stand before the context, where items alone do not give the exact length;
            None where nothing may.
        partial: an answer that is longer than the budget counts as far as it goes.
    """

    make: Callable[[int], list[Draft]]
    least: int
    most: int
    instruction: str = ""
    budget: int = 16
    stop: tuple[str, ...] = ("\n",)
    filler: str | None = None
    partial: bool = False


@dataclass(frozen=True)
class Draw:
    """The one source of chance of a context.

    Attributes:
        context_index: its number.
        length: that the instance is to have.
        questions, demos: how many are wanted.
    """

    task: str
    variant: str
    length: int
    context_index: int
    seed: int
    questions: int
    demos: int

    @property
    def random(self) -> random.Random:
        """A fresh generator, the same whenever it is asked for."""
        parts = ("1", self.task, self.variant, self.length, self.context_index, self.seed)
        digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
        return random.Random(int.from_bytes(digest[:8], "big"))


def spread_over(count: int, total: int) -> list[int]:
    """The places of `count` items among `total`, each in the middle of its share; each place once."""
    return list(dict.fromkeys((2 * number + 1) * total // (2 * count) for number in range(count)))


def end_to_end(count: int, total: int) -> list[int]:
    """The places of `count` items among `total` from the first to the last, evenly; each place once."""
    if count < 2 or total < 2:
        return [total // 2] if total else []
    return list(dict.fromkeys(round(number * (total - 1) / (count - 1)) for number in range(count)))


def depth_of(place: int, total: int) -> float:
    """Of the item at a place: 0 for the first, 1 for the last."""
    return round(place / (total - 1), 4) if total > 1 else 0.0


def laid_out(items: Sequence[str], gap: str = "\n\n") -> str:
    """Items as one text."""
    return gap.join(items)
