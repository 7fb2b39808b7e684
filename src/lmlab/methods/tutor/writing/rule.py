"""Dialogues by rule: a student asks, and the teacher answers with sentences of the chapter.

They teach a model nothing but the form of a dialogue and where answers stand, and need no other model: enough to try a
recipe, and a floor for what others write.
"""

from __future__ import annotations

import random
from typing import Literal

from lmlab.data.chapters.chapter import Chapter
from lmlab.methods.tutor.writing.definitions import definitions
from lmlab.methods.tutor.writing.passages import questions

RuleAnswers = Literal["passage", "sentence"]
_ASKED = ("What is {term}?", "Can you tell me what {term} is?", "I do not understand {term} yet. What is it?",
          "How would you explain {term}?", "What does the text say about {term}?")  # fmt: skip
_GO_ON = ("Thank you. And what about {term}?", "I see. What is {term} then?", "What does it say about {term}?",
          "Good. Now explain {term} to me, please.")  # fmt: skip
_ANSWERED = ("{text}", "The chapter says it: {text}", "Good question. {text}", "{text} Does that help?")


def rule_dialogue(
    chapter: Chapter, seed: int, number: int, turns: int, answers: RuleAnswers = "passage"
) -> list[str] | None:
    """The turns of a dialogue about a chapter, the student's first; None where it answers too little.

    Arguments:
        number: which dialogue about the chapter it is; each has other questions, as far as they go.
        turns: at most so many, two a question.
        answers: several sentences that explain something, or the one that says what a term is.
    """
    known = definitions(chapter.text) if answers == "sentence" else questions(chapter.text)
    per_dialogue = max(1, turns // 2)
    start = number * per_dialogue
    draw = random.Random(f"{seed}:{chapter.path}")
    draw.shuffle(known)
    chosen = known[start : start + per_dialogue]
    if not chosen:
        return None
    if answers == "passage":
        return [turn for pair in chosen for turn in pair]
    draw = random.Random(f"{seed}:{chapter.path}:{number}")
    spoken: list[str] = []
    for place, (term, sentence) in enumerate(chosen):
        spoken.append(draw.choice(_GO_ON if place else _ASKED).replace("{term}", term))
        spoken.append(draw.choice(_ANSWERED).replace("{text}", sentence))
    return spoken
