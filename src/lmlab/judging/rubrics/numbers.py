"""One grade as it is written: a number, its denominator where there is one, and what both mean on a scale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_DIGITS = 30  # more is no grade that anybody wrote
_PROPER = "(?:1/[2-9]|2/[3-9]|3/[4-9]|4/[5-9]|5/[6-9]|6/[7-9]|7/[89]|8/9)"
# Neither the beginning of a longer number (2.5.1, 31 digits) nor of one with an exponent: those are no numbers here.
_ENDS = r"(?![0-9]|[.,][0-9]|[eE][+-]?[0-9])"
_DIGITS = rf"[0-9]{{1,{_MOST_DIGITS}}}"
NUMBER = rf"[+\-\u2212]?(?:{_DIGITS}[ \t]{{1,8}}{_PROPER}|{_DIGITS}[.,]{_DIGITS}|{_DIGITS}\.?|\.{_DIGITS}){_ENDS}"
_OUT_OF = rf"\s{{0,8}}(?:/|\bout\s{{1,8}}of\b)\s{{0,8}}(?P<of>{_DIGITS}(?:[.,]{_DIGITS})?(?![0-9])\.?)"
BARE = re.compile(rf"(?<![0-9A-Za-z_/])(?<![0-9][.,])(?P<number>{NUMBER}){_OUT_OF}", re.IGNORECASE)
LABELED = re.compile(
    rf"(?<![A-Za-z])(?:grade|score|rating)(?P<gap>\s{{0,8}}[:=]?\s{{0,8}})(?P<number>{NUMBER})(?:{_OUT_OF})?",
    re.IGNORECASE,
)
ALONE = re.compile(rf"\s*(?P<number>{NUMBER})(?:{_OUT_OF})?\s*", re.IGNORECASE)
# What may stand between a number and a cut that goes on to be its exponent, its fraction or its denominator.
_UNFINISHED = re.compile(
    r"(?:e[+-]?|[.,]|[ \t]{0,8}(?:[0-9]?/|[0-9]|o|ou|out(?:[ \t]{1,8}of?)?)?[ \t]{0,8})\Z", re.IGNORECASE
)
_REST_OF_LINE = re.compile(r"[ \t.]*(?:\n|\Z)")


@dataclass(frozen=True)
class Scale:
    """The grades that there are.

    Attributes:
        minimum, maximum: both may be given.
        step: distance of neighboring grades.
    """

    minimum: float = 0.0
    maximum: float = 3.0
    step: float = 0.5

    def labels(self) -> tuple[float, ...]:
        """All grades, rising."""
        return tuple(self.minimum + number * self.step for number in range(self.count))

    @property
    def count(self) -> int:
        """How many there are."""
        return round((self.maximum - self.minimum) / self.step) + 1


@dataclass(frozen=True)
class Written:
    """A grade as it stands in a reply: `denominator` is None where there is none, and `exempt` where none is due."""

    number: float
    denominator: float | None = None
    exempt: bool = False

    def on(self, scale: Scale) -> tuple[float | None, str, tuple[str, ...]]:
        """The grade, its status and its flags: another denominator is another scale, and nothing is rescaled."""
        if self.denominator is not None and self.denominator != scale.maximum:
            return None, "wrong_scale", ()
        if not scale.minimum <= self.number <= scale.maximum:
            return None, "out_of_range", ()
        flags = [] if self.denominator is not None or self.exempt else ["no_denominator"]
        steps = (self.number - scale.minimum) / scale.step
        if abs(steps - round(steps)) > 1e-9:
            flags.append("off_grid")
        return self.number + 0.0, "ok", tuple(flags)


def written(found: re.Match[str], exempt: bool = False) -> Written | None:
    """The grade of a match of one of this module's patterns; None for one with too many digits."""
    number, of = found["number"], found["of"]
    if sum(character in "0123456789" for character in number) > _MOST_DIGITS:
        return None
    return Written(_value(number), None if of is None else _value(of.rstrip(".")), exempt)


def labels_in(text: str, cut: bool = False) -> Iterator[re.Match[str]]:
    """The grades behind the word grade, score or rating; of a text that was cut without the one whose number the cut
    may have shortened: `GRADE: 2` of `GRADE: 2.5/3`.
    """
    for match in LABELED.finditer(text):
        if cut and match["of"] is None and _UNFINISHED.match(text, match.end()):
            continue
        # "Grade:" and a numbered list below it: a number on the next line is a grade only if it stands there alone.
        next_line = "\n" in match["gap"] and match["of"] is None
        if not next_line or _REST_OF_LINE.match(text, match.end()):
            yield match


def labeled(text: str, cut: bool = False) -> list[Written]:
    """The grades of `labels_in`, in their order."""
    return [grade for match in labels_in(text, cut) if (grade := written(match)) is not None]


def last_grade(text: str, cut: bool = False) -> Written | None:
    """The last labeled grade; without one the last number with a denominator, but not of a text that was cut: what it
    says in passing is no verdict, as the grade was to follow.
    """
    for matches in (labels_in(text, cut), () if cut else BARE.finditer(text)):
        for match in reversed(list(matches)):
            if (grade := written(match)) is not None:
                return grade
    return None


def ends_of_grades(text: str, start: int, end: int) -> list[int]:
    """Where grades of either kind end within a stretch of a text."""
    return [match.end() for pattern in (LABELED, BARE) for match in pattern.finditer(text, start, end)]


def _value(text: str) -> float:
    sign = -1.0 if text[0] in "-\u2212" else 1.0
    whole, _, fraction = text.lstrip("+-\u2212").replace("\t", " ").partition(" ")
    value = float(whole.replace(",", "."))
    if fraction:
        over, _, under = fraction.strip().partition("/")
        value += int(over) / int(under)
    return sign * value + 0.0
