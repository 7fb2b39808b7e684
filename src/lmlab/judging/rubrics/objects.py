"""JSON objects in a reply: the last one that has all keys, however much prose stands around it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.judging.rubrics.cleaning import quoted_spans
from lmlab.judging.rubrics.numbers import ALONE, Written, written

_DECODER = json.JSONDecoder(strict=False, parse_int=float)  # line ends within strings are a common slip
_OPENS = re.compile(r'\{(?=\s{0,200}")')
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_WORK = 12  # characters that may be decoded in all, in lengths of the reply: nested braces stay linear
_DEEP = 20_000  # the cost of an object that nests too deep


@dataclass(frozen=True)
class Found:
    """An object with its keys in lower case, and where it stands in its text."""

    values: dict[str, Any]
    start: int
    end: int


def last_object(text: str, keys: Sequence[str], cut: bool = False) -> Found | None:
    """The last JSON object, or the outermost of several within each other, that has all keys in any case.

    One that stands in a quoted part is not taken, unless nothing stands outside; of a text that was cut never, as what
    is not quoted was to follow.
    """
    lowered = text.casefold()
    if not all(key.casefold() in lowered for key in keys):
        return None
    inside = bytearray(len(text) + 1)
    for low, high in quoted_spans(text):
        inside[low:high] = b"\1" * (high - low)
    whole = not cut and all(inside[place] or character.isspace() for place, character in enumerate(text))
    left, best = _WORK * len(text) + 1000, None
    for place in reversed([found.start() for found in _OPENS.finditer(text)]):
        if left <= 0:
            break
        if inside[place] and not whole:
            continue
        value, end, cost = _decoded(text, place)
        left -= cost
        if isinstance(value, dict) and (best is None or end >= best.end):
            folded = {str(key).strip().casefold(): each for key, each in value.items()}
            if all(key.casefold() in folded for key in keys):
                best = Found(folded, place, end)
    if best is None or not _HALF.search(text, best.start, best.end):
        return best
    return Found(_of_characters(best.values), best.start, best.end)


def _of_characters(value: Any) -> Any:
    """A value with a question mark for each half of a character, which escapes can spell and no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_of_characters(key): _of_characters(each) for key, each in value.items()}
    return [_of_characters(each) for each in value] if isinstance(value, list) else value


def _decoded(text: str, place: int) -> tuple[Any, int, int]:
    """The object that starts at a place, where it ends, and the characters that were read for it."""
    try:
        value, end = _DECODER.raw_decode(text, place)
        return value, end, end - place
    except json.JSONDecodeError as error:
        # A string without an end is told of at its beginning, but was read to the end of the text; and the place of an
        # error is told in lines, which are counted from the beginning.
        read = (len(text) if error.msg.startswith("Unterminated") else error.pos) - place
        # lines are counted faster than text is decoded, and a try costs by itself
        return None, -1, read + place // 16 + 50
    except (RecursionError, ValueError):
        return None, -1, _DEEP


def grade_in(value: Any) -> Written | None:
    """The grade that a value of such an object is: a number, "2", "2/3", or an object with a grade or score."""
    if isinstance(value, dict):
        folded = {str(key).strip().casefold(): each for key, each in value.items()}
        value = next((folded[key] for key in ("grade", "score") if key in folded), None)
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return Written(value, exempt=True)
    if isinstance(value, str) and (found := ALONE.fullmatch(value)):
        return written(found, exempt=True)
    return None
