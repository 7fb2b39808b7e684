"""Long documents that end with questions about all of themselves: how often words stand in them.

Next tokens of most long texts are told by what stands near them. What must be counted over a whole text is told by
nothing less than all of it, so that OLMo 3's long documents carry such questions among others (arXiv
2512.13961).
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, PrivateAttr, field_validator

from lmlab.config import validate
from lmlab.data import Document, PlacedSource, Reject, Source, find_source, is_unspaced
from lmlab.errors import UserError

_SHORTEST, _LONGEST = 4, 12  # shorter ones are everywhere, longer ones names that stand once
_ASKED = "How often does each of these words stand in the text above, in capitals or not?"


class CountedWordsSource(PlacedSource):
    """The documents of another source, each followed by words and how often they stand in it.

    Attributes:
        source: where the documents are from, as a source of the stage collect.
        words: asked about in each document, of those that stand in it at least twice; half of them among the frequent.
            Writing without spaces between words has none.
        share: of the documents that are asked about.
        min_words: shorter documents are left as they are.
        seed: other words.
    """

    kind: Literal["counted_words"] = "counted_words"
    source: dict[str, Any]
    words: PositiveInt = 8
    share: float = Field(default=1.0, gt=0, le=1)
    min_words: PositiveInt = 1000
    seed: int = 0
    _number: int = PrivateAttr(default=1)

    @field_validator("source")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        _source_of(value)
        return value

    def apart(self, number: int) -> Self:
        """A copy of which the source within is told apart."""
        copy = super().apart(number)
        copy._number = number
        return copy

    def read(self) -> Iterator[Document | Reject]:
        """Every document, with its questions."""
        source = _source_of(self.source)
        for item in (source.apart(self._number) if isinstance(source, PlacedSource) else source).read():
            yield self._asked(item) if isinstance(item, Document) else item

    def notices(self) -> list[str]:
        """Those of the source."""
        return _source_of(self.source).notices()

    def fingerprint(self) -> dict[str, Any]:
        """The settings, and what tells the source's files."""
        return {**self.model_dump(mode="json"), "source": _source_of(self.source).fingerprint()}

    def _asked(self, document: Document) -> Document:
        name = f"{self.seed}|{document.id}"
        chance = random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
        if chance.random() >= self.share:
            return document
        counts = Counter(_words().findall(document.text.casefold()))
        if counts.total() < self.min_words:
            return document
        several = (word for word, count in counts.items() if count > 1 and _SHORTEST <= len(word) <= _LONGEST)
        known = sorted(word for word in several if not is_unspaced(word))
        frequent = sorted(known, key=lambda word: -counts[word])[: 4 * self.words]
        chosen = chance.sample(frequent, min(self.words // 2, len(frequent)))
        taken = set(chosen)
        others = [word for word in known if word not in taken]
        chosen += chance.sample(others, min(self.words - len(chosen), len(others)))
        if not chosen:
            return document
        chance.shuffle(chosen)
        told = "\n".join(f"{word}: {counts[word]}" for word in chosen)
        return replace(document, text=f"{document.text.rstrip()}\n\n{_ASKED}\n{told}\n")


@cache
def _words() -> re.Pattern[str]:
    """Letters with the marks upon them, which `re` counts as no part of a word: Hindi would fall into pieces."""
    marks = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(rf"[^\W\d_]+(?:[{marks}]+[^\W\d_]*)*")


def _source_of(settings: dict[str, Any]) -> Source:
    """The source that settings describe.

    Raises:
        UserError: there is none of that kind, or a setting is wrong.
    """
    if "kind" not in settings:
        raise UserError("source: the key 'kind' is required.", "It says what is read, as jsonl or text.")
    found: Source = validate(find_source(str(settings["kind"])), settings, "source")
    return found
