"""Sentences of a chapter that say what a term is."""

from __future__ import annotations

import re

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"\u201c(`*$])")
_DEFINES = re.compile(
    r"^(?P<term>(?:(?:The|A|An)\s)?[A-Z`*][\w`*$'\u2019 -]{1,48}?)\s"
    r"(?:is|are|was|refers to|means|consists of|denotes|describes|measures|represents|allows|provides|can be|has|have"
    r"|uses|use|contains|occurs|gives|implements|supports|requires|depends on|works by|returns|takes)\s"
)
_VAGUE = re.compile(
    r"^(?:it|this|that|these|those|there|here|they|we|you|he|she|one|which|what|who|when|where|if|in|at|on|for|as|note"
    r"|however|therefore|notice|more|below|above|see|choosing|using|by|to|from|with|after|before|once|now|then|do|thus"
    r"|so|but|and|or|because|since|although|while|first|second|finally|another|other|such|all"
    r"|some|many|most|each|both|only|the (?:first|second|latter|former|following|main|same|other|reason|result|idea"
    r"|problem|question|answer|number|value|example))\b",
    re.IGNORECASE,
)
_FEWEST_WORDS, _MOST_WORDS = 7, 70  # fewer define nothing; more hold several thoughts, of which one would be asked


def definitions(text: str) -> list[tuple[str, str]]:
    """Terms and the sentences of a chapter that say what they are, each term once."""
    found: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(("#", "    ", "$$", "- ", ">>>")) or "|" in paragraph:
            continue
        for sentence in split_sentences(paragraph):
            if (term := term_of(sentence)) is not None:
                found.setdefault(as_asked(term), sentence)
    return list(found.items())


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, roughly, each on one line."""
    return _SENTENCE.split(" ".join(paragraph.split()))


def term_of(sentence: str) -> str | None:
    """What a sentence says it is, or None."""
    match = _DEFINES.match(sentence)
    if match is None or _VAGUE.match(sentence) or not _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
        return None
    term = match["term"]
    is_one = sentence[-1:] in ".!" and len(term.split()) <= 6 and any(map(str.isalnum, term))
    return term if is_one else None


def as_asked(term: str) -> str:
    """A term as it stands within a sentence."""
    term = term.replace("`", "").replace("*", "")
    first, _, rest = term.partition(" ")
    return f"{first.lower()} {rest}" if first in ("The", "A", "An") and rest else term
