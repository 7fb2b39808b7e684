"""Rules that stand for a matrix between two variables: what one value says of another.

Shapes: R values of the one that asks (the query of a head, or what an answer reads), C values of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Value = str | int
Kind = Literal["same", "shift", "is", "both", "less", "more", "below", "above", "rising", "every"]
_MOST_PAIRS = 400  # of values: of more, rules for single pairs are a table again
_FARTHEST = 3  # places that a rule may look away: what looks farther is rarer, and a table says it


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        kind: `same`: b == a; `shift`: b == a + by; `is`: b is one value, whatever a; `both`: a is one value and b
            another; `less`, `more`: b < a, b > a; `below`, `above`: by how much b is, 0 otherwise; `rising`: the
            number b itself; `every`: b stands a multiple of `by` places, and `what` more, before a. What is no number
            counts as -1, below all.
        by: of a shift, and of every so many.
        of, what: the values of a and b of the others.
    """

    kind: Kind
    by: int = 0
    of: Value | None = None
    what: Value | None = None

    def matrix(self, asks: Sequence[Value], answers: Sequence[Value]) -> Tensor:
        """What it gives for every pair, [R, C]."""
        return torch.tensor([[self.of_pair(a, b) for b in answers] for a in asks]).float()

    def of_pair(self, a: Value, b: Value) -> float:
        """What it gives for one pair."""
        if self.kind == "same":
            return float(a == b)
        if self.kind == "is":
            return float(b == self.what)
        if self.kind == "both":
            return float(a == self.of and b == self.what)
        x, y = number(a), number(b)
        if self.kind == "every":
            return float((x - y) % self.by == self.what)
        found = {
            "rising": y,
            "shift": y == x + self.by,
            "less": y < x,
            "more": y > x,
            "below": max(0, x - y),
            "above": max(0, y - x),
        }
        return float(found[self.kind])

    def record(self) -> dict[str, Value]:
        """As JSON."""
        found = {"kind": self.kind, "by": self.by or None, "of": self.of, "what": self.what}
        return {name: value for name, value in found.items() if value is not None}


def number(value: Value) -> int:
    """The number that a value is, or is written as; -1 for what is none, such as a mark."""
    return value if isinstance(value, int) else int(value) if value.isdecimal() else -1


def candidates(asks: Sequence[Value], answers: Sequence[Value]) -> Iterator[Rule]:
    """The rules that can hold between the values of two variables."""
    shared = set(asks) & set(answers)
    if len(shared) > 1:
        yield Rule("same")
    if sum(number(each) >= 0 for each in answers) > 2:
        yield Rule("rising")
        if sum(number(each) >= 0 for each in asks) > 2:
            yield from (Rule("less"), Rule("more"), Rule("below"), Rule("above"))
            if all(isinstance(each, int) for each in (*asks, *answers)):
                yield from (Rule("shift", by) for by in range(-_FARTHEST, _FARTHEST + 1) if by)
                yield from (Rule("every", by, what=rest) for by in (2, 3) for rest in range(by))
    yield from (Rule("is", what=each) for each in answers)
    if len(asks) > 1:
        small = len(asks) * len(answers) <= _MOST_PAIRS
        yield from (Rule("both", of=a, what=b) for a in asks for b in answers if small)
