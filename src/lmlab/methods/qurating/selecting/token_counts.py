"""Numbers of tokens as people write them."""

from __future__ import annotations

import math
import re

from lmlab.errors import UserError

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_tokens(text: str | int | float) -> int:
    """A number of tokens such as 500, 1.5M, 30B or 30e9.

    Raises:
        UserError: it is none.
    """
    if isinstance(text, int | float):
        value = float(text)
    else:
        found = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*", text)
        if not found:
            raise UserError(f"'{text}' is no number of tokens.", "Write it as 500000, 1.5M, 30B or 30e9.")
        value = float(found[1]) * _SUFFIXES[found[2].lower()]
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{text} is no number of tokens.", "Give a number of 0 or more.")
    return int(value)


def share_of(tokens: str | float) -> float | None:
    """The share that a text such as `30%` means; None for a number of tokens.

    Raises:
        UserError: it means neither.
    """
    if isinstance(tokens, str) and tokens.strip().endswith("%"):
        try:
            share = float(tokens.strip()[:-1]) / 100
        except ValueError:
            raise UserError(f"'{tokens}' is no share.", "Write it as 30%.") from None
        if not 0 <= share <= 1:
            raise UserError(f"'{tokens}' is no share between 0% and 100%.")
        return share
    parse_tokens(tokens)
    return None
