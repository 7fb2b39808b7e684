"""Counts against those that are plain to see."""

from lmlab_words.config import WordsConfig
from lmlab_words.counting import most_frequent


def test_words_are_counted_by_frequency_and_alphabet():
    texts = ["The cat, the dog.", "A dog"]
    assert most_frequent(texts, WordsConfig(most=3)) == [("dog", 2), ("the", 2), ("a", 1)]
    assert ("The", 1) in most_frequent(texts, WordsConfig(lower=False))
