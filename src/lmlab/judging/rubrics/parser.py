"""Grades from the reply of a judge, whatever it is: never an exception, never a grade outside the scale, and never a
grade for what cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.judging.judge import Marks
from lmlab.judging.rubrics.cleaning import plain, without_open_quote, without_quotes, without_thoughts
from lmlab.judging.rubrics.numbers import Scale, Written, labeled, last_grade
from lmlab.judging.rubrics.objects import grade_in, last_object
from lmlab.judging.rubrics.sections import sections

HALF_POINTS = Scale(0.0, 3.0, 0.5)  # as TutorEval grades: 0 to 3
TWO_CRITERIA = ("presentation", "correctness")
_WORST_FIRST = ("wrong_scale", "out_of_range")


def parse_grades(
    reply: str | None, criteria: Sequence[str] = TWO_CRITERIA, scale: Scale = HALF_POINTS, cut: bool = False
) -> Marks:
    """The grades that a reply gives, in the order of the criteria.

    Thoughts are left out first. A JSON object with all criteria as keys counts before prose. In prose, each criterion
    has a header at the start of a line (or right after a completed grade), and the last grade of its section counts:
    one that is labeled (`GRADE: 2/3`), else a number with a denominator. What stands in quoted lines or between triple
    quotes is not the judge's. Without headers, exactly as many labeled grades as criteria are taken in order.

    Arguments:
        cut: the reply ended where its room did, so that its last section may lack its grade: there, whole labeled
            grades alone count, and a quote that does not end goes on to the cut.

    Returns:
        Marks whose status is `ok`, `partial` (not all criteria have a grade), `missing`, `wrong_scale` (another
        denominator; nothing is rescaled), `out_of_range` or `empty`; with the flags `duplicate` (two sections of one
        criterion differ), `positional`, `no_denominator` and `off_grid`. Time is linear in the length of the reply.
    """
    nothing: tuple[float | None, ...] = (None,) * len(criteria)
    text = plain(without_thoughts(reply)) if isinstance(reply, str) else ""
    if not text.strip():
        return Marks(nothing, "empty")
    if cut:
        text = without_open_quote(text)
    if (found := last_object(text, criteria, cut)) is not None:
        grades = [grade_in(found.values[name.casefold()]) for name in criteria]
        if any(grade is not None for grade in grades):
            return _marks(grades, scale, set())
        # The form with no number in it, as it was asked for: what its texts say is no grade, what stands beside may be.
        text = f"{text[: found.start]}\n{text[found.end :]}"
    return _in_prose(without_quotes(text), criteria, scale, cut)


def _in_prose(text: str, criteria: Sequence[str], scale: Scale, cut: bool) -> Marks:
    parts = sections(text, criteria)
    if not parts:
        found = labeled(text, cut)
        if len(found) != len(criteria):
            return Marks((None,) * len(criteria), "missing")
        return _marks(found, scale, {"positional"})
    grades: list[Written | None] = [None] * len(criteria)
    flags: set[str] = set()
    for part in parts:
        if (grade := last_grade(part.text, cut and part is parts[-1])) is None:
            continue
        before = grades[part.criterion]
        if before is not None and before.on(scale)[:2] != grade.on(scale)[:2]:
            flags.add("duplicate")
        grades[part.criterion] = grade
    return _marks(grades, scale, flags)


def _marks(found: Sequence[Written | None], scale: Scale, flags: set[str]) -> Marks:
    grades: list[float | None] = []
    statuses = []
    for grade in found:
        value, each, of_grade = grade.on(scale) if grade is not None else (None, "missing", ())
        grades.append(value)
        statuses.append(each)
        flags.update(of_grade)
    status = next((each for each in _WORST_FIRST if each in statuses), None)
    if status is None:
        graded = sum(value is not None for value in grades)
        status = "ok" if graded == len(grades) else "partial" if graded else "missing"
    return Marks(tuple(grades), status, tuple(sorted(flags)))
