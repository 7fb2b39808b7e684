"""Grades from the probabilities of labels: the expected grade, and how much of the probability stands behind it."""

from __future__ import annotations

import math

from lmlab.endpoints import Choice
from lmlab.errors import UserError
from lmlab.judging.rubrics.numbers import Scale

_MOST_LABELS = 10  # digits: a label must be one token
LOW_MASS = 0.5  # less than half of the probability is on grades: the model was about to say something else


def expected_grade(choice: Choice, scale: Scale) -> tuple[float | None, float]:
    """The mean grade under the probabilities of the labels at the first token of an answer, and their sum.

    The labels are digits: the number of steps above the lowest grade. None where none is among the likeliest tokens.

    Raises:
        UserError: the scale has more grades than there are digits.
    """
    if scale.count > _MOST_LABELS:
        raise UserError(
            f"The scale has {scale.count} grades, and label probabilities need one digit a grade.",
            "Use the mode text or json, or a coarser scale.",
        )
    masses = [0.0] * scale.count
    first = choice.log_probs[0] if choice.log_probs else None
    tokens = {} if first is None else {first.token: first.log_prob, **dict(first.top)}
    for token, log_prob in tokens.items():
        text = token.strip(" \n\t\u2581\u0120")
        if len(text) == 1 and text in "0123456789" and int(text) < scale.count:
            masses[int(text)] += math.exp(log_prob)
    mass = sum(masses)
    if mass <= 0:
        return None, 0.0
    return sum(each * grade for each, grade in zip(masses, scale.labels(), strict=True)) / mass, mass
