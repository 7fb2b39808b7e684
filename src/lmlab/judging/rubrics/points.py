"""Verdicts on key points: how they are read, and the grade that they make."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmlab.judging.rubrics.cleaning import plain, without_open_quote, without_quotes, without_thoughts
from lmlab.judging.rubrics.forms import VERDICTS
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.objects import last_object

_VERDICT = re.compile(r"\bverdict\s{0,8}[:=]?\s{0,8}[\"'(\[]?(not[ _-]met|met|contradicted)\b", re.IGNORECASE)

_UNFINISHED = re.compile(r"\bverdict[^\w\n]{0,8}(?:n|no|not[ _-]?|(?:not[ _-])?m?e?|c[a-z]{0,10})\Z", re.IGNORECASE)


def parse_verdict(reply: str | None, cut: bool = False) -> str | None:
    """`met`, `not met` or `contradicted`; None for a reply that says none of them, or that says none at last.

    As with grades, thoughts and quoted parts are left out, a JSON object with the key `verdict` comes first, and the
    last verdict counts. A word alone is a verdict too.

    Arguments:
        cut: the reply ended where its room did: one that ends within a verdict, or within a quote, says none there.
    """
    text = plain(without_thoughts(reply)) if isinstance(reply, str) else ""
    if cut:
        text = without_open_quote(text)
    found = last_object(text, ("verdict",), cut)
    if found is not None and isinstance(said := found.values["verdict"], str) and (word := _word(said)):
        return word
    text = without_quotes(text)
    if word := _word(text):
        return word
    if cut and _UNFINISHED.search(text):
        return None
    told = _VERDICT.findall(text)
    return _word(told[-1]) if told else None


def _word(text: str) -> str | None:
    # a longer answer is no verdict by itself
    word = re.sub(r"[\s_-]+", " ", text.strip(" \t\n\"'.()[]").casefold()) if len(text) < 100 else ""
    return word if word in VERDICTS else None


def points_grade(verdicts: Sequence[str | None], weights: Sequence[float], scale: Scale) -> float | None:
    """The grade of verdicts: the weights of the points that are met, less those of the contradicted ones, over all
    positive weights; cut to the scale. None where a verdict is missing, or where nothing can be met.

    A point with a weight below 0 is one that an answer must not make; contradicting it costs nothing.

    Arguments:
        weights: empty for equal ones.
    """
    each = list(weights) or [1.0] * len(verdicts)
    whole = sum(weight for weight in each if weight > 0)
    if not whole or any(verdict is None for verdict in verdicts):
        return None
    met = sum(weight for verdict, weight in zip(verdicts, each, strict=True) if verdict == "met")
    against = sum(max(weight, 0.0) for verdict, weight in zip(verdicts, each, strict=True) if verdict == "contradicted")
    share = min(1.0, max(0.0, (met - against) / whole))
    return scale.minimum + share * (scale.maximum - scale.minimum)
