"""Dialogues by rule: a student asks what a term is, and the teacher quotes the sentence of the chapter that says it.

They teach a model nothing but the form of a dialogue and where answers stand, and need no other model: enough to try a
recipe, and a floor for what others write.
"""

from __future__ import annotations

import random
import re

from lmlab.data.chapters.chapter import Chapter

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
_ASKED = ("What is {term}?", "Can you tell me what {term} is?", "I do not understand {term} yet. What is it?",
          "How would you explain {term}?", "What does the text say about {term}?")  # fmt: skip
_GO_ON = ("Thank you. And what about {term}?", "I see. What is {term} then?", "What does it say about {term}?",
          "Good. Now explain {term} to me, please.")  # fmt: skip
_ANSWERED = ("{text}", "The chapter says it: {text}", "Good question. {text}", "{text} Does that help?")


def definitions(text: str) -> list[tuple[str, str]]:
    """Terms and the sentences of a chapter that say what they are, each term once."""
    found: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(("#", "    ", "$$", "- ", ">>>")) or "|" in paragraph:
            continue
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            match = _DEFINES.match(sentence)
            words = len(sentence.split())
            if match is None or _VAGUE.match(sentence) or not _FEWEST_WORDS <= words <= _MOST_WORDS:
                continue
            if sentence[-1:] in ".!" and len(match["term"].split()) <= 6:
                found.setdefault(_as_asked(match["term"]), sentence)
    return list(found.items())


def _as_asked(term: str) -> str:
    """A term as it stands within a sentence."""
    term = term.strip("`*")
    first, _, rest = term.partition(" ")
    return f"{first.lower()} {rest}" if first in ("The", "A", "An") and rest else term


def rule_dialogue(chapter: Chapter, seed: int, number: int, turns: int) -> list[str] | None:
    """The turns of a dialogue about a chapter, the student's first; None where it defines too little.

    Arguments:
        number: which dialogue about the chapter it is; each has other terms, as far as they go.
        turns: at most so many, two a term.
    """
    known = definitions(chapter.text)
    per_dialogue = max(1, turns // 2)
    start = number * per_dialogue
    draw = random.Random(f"{seed}:{chapter.path}")
    draw.shuffle(known)
    chosen = known[start : start + per_dialogue]
    if not chosen:
        return None
    draw = random.Random(f"{seed}:{chapter.path}:{number}")
    spoken: list[str] = []
    for place, (term, sentence) in enumerate(chosen):
        spoken.append(draw.choice(_GO_ON if place else _ASKED).replace("{term}", term))
        spoken.append(draw.choice(_ANSWERED).replace("{text}", sentence))
    return spoken
