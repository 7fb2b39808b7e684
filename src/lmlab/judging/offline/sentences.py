"""Sentences, and the numbers in them."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff])|\n+")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w])")
_SPELLED = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen twenty"
)
# "zero" and "one" are mostly no numbers: "one of them".
_WORDS = {word: str(number) for number, word in enumerate(_SPELLED.split(" "), 2)} | {
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "half": "0.5",
    "twice": "2",
    "double": "2",
}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, roughly: they end at a full stop before a capital letter or digit, and at line ends."""
    return [each for part in _END.split(text) if (each := part.strip())]


def numbers(text: str) -> list[float]:
    """The numbers of a text, those up to twenty also where they are spelled."""
    spelled = _WORD.sub(lambda found: _WORDS[found[0].lower()], text)
    return [float(found.replace(",", "").replace("\u2212", "-")) for found in _NUMBER.findall(spelled)]
