"""How a tokenizer writes years, and what the greater-than task can ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError

_CENTURIES = range(11, 21)  # 1100 to 2099: more centuries make more examples
_LEAST_DECADES, _LEAST_YEARS = 20, 50  # of 100 and 1,000: with fewer tokens of their own, most questions would be alike
_START = "The war lasted from the year "


@dataclass(frozen=True)
class YearForm:
    """One way to ask for a later year.

    Attributes:
        tail: what the prompt ends with, from the century.
        value_of: what is compared, of a century and a year within it.
        tokens: the token of each value among which the model chooses.
        shown: whether the tokenizer writes this year, of a century, in the way that the task needs.
        same_is_wrong: the value of the year shown is a wrong answer; a decade is not, as later years are in it.
        pairs: values are pairs of digits.
    """

    tokenizer: Tokenizer
    tail: Callable[[int], str]
    value_of: Callable[[int, int], int]
    tokens: Mapping[int, int]
    shown: Callable[[int, int], bool]
    same_is_wrong: bool
    pairs: bool = False

    def row(self, start: str, century: int, year: int, other: int, other_year: int) -> dict[str, Any] | None:
        """An example, or nothing where the years cannot be written in this form.

        The answer is the next value, the distractor the one before; `answers` and `distractors` are all that are
        right and wrong.
        """
        if not (self.shown(century, year) and self.shown(other, other_year)):
            return None
        value = self.value_of(century, year)
        usable = [each for each in self.tokens if self._may_follow(century, each)]
        above, below = [each for each in usable if each > value], [each for each in usable if each < value]
        if not above or not below:
            return None
        wrong = [each for each in self.tokens if each < value or (each == value and self.same_is_wrong)]
        clean, corrupted = (
            f"{start}{c}{y:02d} to the year{self.tail(c)}" for c, y in ((century, year), (other, other_year))
        )
        return {
            "clean": clean,
            "corrupted": corrupted,
            "answer": self.tokens[min(above)],
            "distractor": self.tokens[max(below)],
            "answer_set": list(self.tokens.values()),
            "answers": [token for each, token in self.tokens.items() if each > value],
            "distractors": [self.tokens[each] for each in wrong],
            "year": 100 * century + year,
        }

    def _may_follow(self, century: int, value: int) -> bool:
        """The years next to the one shown are asked for in the way that the tokenizer writes them."""
        return not self.pairs or self.shown(century, value)


def year_forms(tokenizer: Tokenizer) -> YearForm:
    """The first form of the task that the tokenizer can express: pairs of digits (GPT-2), the digit of the decade
    (tokenizers with single digits), the first three digits (those with groups of three), whole years.

    Raises:
        UserError: it can express none.
    """
    for form in (_pairs, _digits, _triples, _years):
        found = form(tokenizer)
        if found is not None:
            return found
    pieces = [tokenizer.backend.decode([each]) for each in tokenizer.encode(f"{_START}1743")][-4:]
    raise UserError(
        "This tokenizer has neither single digits nor pairs or triples of digits as tokens, which greater-than needs;"
        f" 1743 ends in {pieces}.",
        "Take another tokenizer.",
    )


def _after(tokenizer: Tokenizer, prompt: str, text: str) -> list[int] | None:
    """The tokens of a text after a prompt; None where the prompt's own tokens change."""
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    return whole[len(before) :] if whole[: len(before)] == before else None


def _first_tokens(tokenizer: Tokenizer, cases: Mapping[int, Sequence[tuple[str, str]]], count: int) -> dict[int, int]:
    """For each value the token with which a text of so many tokens begins after its prompt, from the first case where
    that is so.
    """
    found: dict[int, int] = {}
    for value, tries in cases.items():
        for prompt, text in tries:
            ids = _after(tokenizer, prompt, text)
            if ids is not None and len(ids) == count:
                found[value] = ids[0]
                break
    return found if len(set(found.values())) == len(found) else {}


def _pairs(tokenizer: Tokenizer) -> YearForm | None:
    cases = {year: [(f"{_START}{c}", f"{year:02d}") for c in _CENTURIES] for year in range(100)}
    tokens = _first_tokens(tokenizer, cases, 1)
    if len(tokens) < 100:
        return None

    def shown(century: int, year: int) -> bool:
        return _after(tokenizer, f"{_START}{century}", f"{year:02d}") == [tokens[year]]

    return YearForm(tokenizer, lambda c: f" {c}", lambda c, year: year, tokens, shown, True, True)


def _digits(tokenizer: Tokenizer) -> YearForm | None:
    cases = {decade: [(f"{_START}{c}", f"{decade}3") for c in _CENTURIES] for decade in range(10)}
    tokens = _first_tokens(tokenizer, cases, 2)
    if len(tokens) < 10:
        return None

    def shown(century: int, year: int) -> bool:
        ids = _after(tokenizer, f"{_START}{century}", f"{year:02d}")
        return ids is not None and len(ids) == 2 and ids[0] == tokens[year // 10]

    return YearForm(tokenizer, lambda c: f" {c}", lambda c, year: year // 10, tokens, shown, False)


def _triples(tokenizer: Tokenizer) -> YearForm | None:
    for space, lead in ((" ", ""), ("", " ")):
        cases = {
            10 * c + decade: [(f"{_START.rstrip()}{space}", f"{lead}{c}{decade}3")]
            for c in _CENTURIES
            for decade in range(10)
        }
        tokens = _first_tokens(tokenizer, cases, 2)
        if len(tokens) < _LEAST_DECADES:
            continue

        def shown(century: int, year: int, space: str = space, lead: str = lead, own: dict[int, int] = tokens) -> bool:
            ids = _after(tokenizer, f"{_START.rstrip()}{space}", f"{lead}{century}{year:02d}")
            return ids is not None and len(ids) == 2 and ids[0] == own.get(10 * century + year // 10)

        def tail(century: int, space: str = space) -> str:
            return space

        return YearForm(tokenizer, tail, lambda c, year: 10 * c + year // 10, tokens, shown, False)
    return None


def _years(tokenizer: Tokenizer) -> YearForm | None:
    cases = {year: [(_START.rstrip(), f" {year}")] for year in range(1100, 2100)}
    tokens = _first_tokens(tokenizer, cases, 1)
    if len(tokens) < _LEAST_YEARS:
        return None
    return YearForm(
        tokenizer, lambda c: "", lambda c, year: 100 * c + year, tokens, lambda c, y: 100 * c + y in tokens, True
    )
