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
Kind = Literal["same", "shift", "is", "both", "less", "more", "rising"]
_FARTHEST = 3  # places that a rule may look away: what looks farther is rarer, and a table says it


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        kind: `same`: b == a; `shift`: b == a + by; `is`: b is one value, whatever a; `both`: a is one value and b
            another; `less`, `more`: b < a, b > a; `rising`: the number b itself.
        by: of a shift.
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
        if self.kind == "rising":
            return 0.0 if y is None else float(y)
        if x is None or y is None:
            return 0.0
        return float({"shift": y == x + self.by, "less": y < x, "more": y > x}[self.kind])

    def record(self) -> dict[str, Value]:
        """As JSON."""
        found = {"kind": self.kind, "by": self.by or None, "of": self.of, "what": self.what}
        return {name: value for name, value in found.items() if value is not None}


def number(value: Value) -> int | None:
    """The number that a value is, or is written as."""
    return value if isinstance(value, int) else int(value) if value.isdecimal() else None


def candidates(asks: Sequence[Value], answers: Sequence[Value]) -> Iterator[Rule]:
    """The rules that can hold between the values of two variables."""
    shared = set(asks) & set(answers)
    if len(shared) > 1:
        yield Rule("same")
    numbers = [number(each) for each in answers]
    if sum(each is not None for each in numbers) > 2:
        yield Rule("rising")
        if sum(number(each) is not None for each in asks) > 2:
            yield from (Rule("less"), Rule("more"))
            if all(isinstance(each, int) for each in (*asks, *answers)):
                yield from (Rule("shift", by) for by in range(-_FARTHEST, _FARTHEST + 1) if by)
    yield from (Rule("is", what=each) for each in answers)
    if len(asks) > 1:
        small = len(asks) * len(answers) <= _MOST_PAIRS
        yield from (Rule("both", of=a, what=b) for a in asks for b in answers if small)


_MOST_PAIRS = 400
