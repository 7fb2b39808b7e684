"""The method itself: it knows neither recipes nor commands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from lmlab_words.config import WordsConfig


def most_frequent(texts: Iterable[str], config: WordsConfig) -> list[tuple[str, int]]:
    """The most frequent words with their counts, those of equal counts by the alphabet."""
    counts = Counter(
        word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower() if config.lower else text)
    )
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))[: config.most]
