"""Training text without what models are measured on: documents that share a run of words with an evaluation (Brown et
al. 2020, appendix C).

Words are runs of letters and digits in lower case, so that punctuation, spacing and markup do not hide a copy. A text
of an evaluation is looked for by every run of 13 of its words; a shorter one is looked for as a whole if it has 8 words
or more, as in that work. Of writing without spaces between words each character counts as half a word.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab.data.collecting.words import run_factor, units

RUN_WORDS, SHORTEST = 13, 8  # words: runs of 13 as Brown et al. 2020 look for; shorter texts are common phrases
_WORD = re.compile(r"[^\W_]+")
_BASE = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: odd, so that no number is lost, with bits that spread well


@dataclass(frozen=True)
class Contamination:
    """What a document shares with an evaluation.

    Attributes:
        source: the evaluation's text, by its name.
        words: the first run of words that both have.
    """

    source: str
    words: str


class Decontamination:
    """Finds documents that hold a text of an evaluation.

    Arguments:
        texts: pairs of a name and a text; several texts may have one name.
        run_words: length of the runs that are looked for; shorter texts are looked for as a whole.
        shortest: words of the shortest text that is looked for.

    Attributes:
        num_names: names that were given.
        too_short: names none of whose texts is long enough.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], run_words: int = RUN_WORDS, shortest: int = SHORTEST) -> None:
        needed = min(shortest, run_words)
        runs: dict[int, dict[str, str]] = {}
        longest: dict[str, int] = {}
        for name, text in texts:
            words = _words(text)
            factor = run_factor(words)
            longest[name] = max(longest.get(name, 0), len(words) // factor)
            if len(words) >= needed * factor:
                length = min(run_words * factor, len(words))
                known = runs.setdefault(length, {})
                for start in range(len(words) - length + 1):
                    known.setdefault(" ".join(words[start : start + length]), name)
        self.num_names = len(longest)
        self.too_short = [name for name, length in longest.items() if length < needed]
        self._runs = dict(sorted(runs.items(), reverse=True))
        self._hashes = {length: _hash_all(known) for length, known in self._runs.items()}

    def find(self, text: str) -> Contamination | None:
        """The first run of words of a text that an evaluation has, longest runs first; None if it has none."""
        words = _words(text)
        numbers = _numbers(words)
        for length, known in self._runs.items():
            hashes, sought = _run_hashes(numbers, length), self._hashes[length]
            places = np.searchsorted(sought, hashes)
            places[places == len(sought)] = 0
            for start in np.flatnonzero(sought[places] == hashes).tolist():
                run = " ".join(words[start : start + length])
                if run in known:  # equal hashes are not yet equal words
                    return Contamination(known[run], run)
        return None


def _words(text: str) -> list[str]:
    return [unit for word in _WORD.findall(text.lower()) for unit in units(word)]


def _numbers(words: list[str]) -> NDArray[np.uint64]:
    return np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))


def _run_hashes(numbers: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """A number for each run of words, [words - length + 1]: a polynomial modulo 2^64."""
    count = max(0, len(numbers) - length + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(length):
        hashes = hashes * np.uint64(_BASE) + numbers[place : place + count]
    return hashes


def _hash_all(runs: Iterable[str]) -> NDArray[np.uint64]:
    found = [_run_hashes(_numbers(words), len(words)) for words in (run.split(" ") for run in runs)]
    return np.unique(np.concatenate(found))
