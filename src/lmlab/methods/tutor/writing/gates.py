"""Which dialogues are kept: those that are whole, alternate, do not loop, do not refuse, speak the chapter's language,
hold no question of an evaluation, and repeat none before them.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lmlab.data import Decontamination
from lmlab.methods.tutor.config import ChatGenerateConfig
from lmlab.methods.tutor.dialogues.record import Kind, UnfitRecord
from lmlab.methods.tutor.dialogues.segments import ASSISTANT, USER, split_dialogue
from lmlab.methods.tutor.items.item import load_items

_RUN = 8  # words of a run whose copies are a loop
_SHINGLE = 5  # words of the runs by which dialogues are alike
_COMMON = 40  # the commonest words of a chapter, by which its language is known
_FOREIGN = 0.25  # the share of them that a dialogue has, relative to the chapter's, below which it is another language
_REFUSAL = re.compile(
    r"\b(?:as an ai\b|as a (?:large )?language model|i(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:'|no)t"
    r"|am unable)"
    r"|i(?:'m| am) unable to (?:help|assist|answer)|i can(?:'|no)t (?:assist|help) with)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")


@dataclass
class Gates:
    """Judges dialogues one after the other.

    Arguments:
        config: the limits.
    """

    config: ChatGenerateConfig
    _evaluation: Decontamination | None = field(init=False, default=None)
    _seen: list[set[int]] = field(init=False, default_factory=list)
    _by_shingle: dict[int, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        texts: list[tuple[str, str]] = []
        for place in self.config.decontaminate:
            for item in load_items(Path(place)):
                texts += [(item.id, item.question), *((item.id, point) for point in item.key_points)]
        self._evaluation = Decontamination(texts) if texts else None

    def reason(self, kind: Kind, turns: Sequence[str], chapter: str) -> str | None:
        """Why a dialogue is dropped, or None; one that is kept counts for those after it.

        Arguments:
            turns: what was said, without the chapter; of a dialogue in one piece that piece.
        """
        if kind in ("studentstart", "teacherstart", "generateexam"):
            roles = (ASSISTANT, USER) if kind == "teacherstart" else (USER, ASSISTANT)
            try:
                spoken = split_dialogue(turns[-1], kind, roles)
            except UnfitRecord as error:
                return f"role alternation: {error}"
            if any(a[0] == b[0] for a, b in pairwise(spoken)):
                return "role alternation: somebody speaks twice in a row"
            turns = [text for _, text in spoken]
        if len(turns) < 2:
            return "length: fewer than two turns"
        if any(len(turn.split()) < self.config.min_turn_words for turn in turns):
            return f"length: a turn of fewer than {self.config.min_turn_words} words"
        text = "\n".join(turns)
        words = [word.lower() for word in _WORD.findall(text)]
        runs = Counter(tuple(words[n : n + _RUN]) for n in range(len(words) - _RUN + 1))
        if runs and max(runs.values()) >= self.config.max_repetition:
            return f"repetition: a run of {_RUN} words {max(runs.values())} times"
        if _REFUSAL.search(text):
            return "refusal"
        if _is_foreign(words, chapter):
            return "language: not that of the chapter"
        if self._evaluation is not None and (found := self._evaluation.find(text)) is not None:
            return f"decontamination: shares words with question {found.source}"
        return self._repeats(words)

    def _repeats(self, words: Sequence[str]) -> str | None:
        shingles = {hash_of(words[n : n + _SHINGLE]) for n in range(max(1, len(words) - _SHINGLE + 1))}
        shared = Counter(number for each in shingles for number in self._by_shingle.get(each, ()))
        for number, count in shared.items():
            if count / len(shingles | self._seen[number]) >= self.config.near_duplicate:
                return f"near-duplicate: of dialogue {number}"
        for each in shingles:
            self._by_shingle.setdefault(each, []).append(len(self._seen))
        self._seen.append(shingles)
        return None


def hash_of(words: Sequence[str]) -> int:
    """A number for a run of words, the same in every process."""
    return zlib.crc32(" ".join(words).encode("utf-8", "surrogatepass"))


def _is_foreign(words: Sequence[str], chapter: str) -> bool:
    """Whether the chapter's commonest words are rare in a text."""
    own = [word.lower() for word in _WORD.findall(chapter)]
    common = {word for word, _ in Counter(own).most_common(_COMMON)}
    if len(own) < 100 or len(words) < 20:  # shares of so few words tell nothing
        return False
    share = sum(word in common for word in words) / len(words)
    return share < _FOREIGN * sum(word in common for word in own) / len(own)
