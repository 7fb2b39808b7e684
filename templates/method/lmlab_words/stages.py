"""The stage `count_words` of recipes."""

from __future__ import annotations

from pathlib import Path

from lmlab.data import read_documents
from lmlab.reports import Section
from lmlab.runs import Documents, DocumentsInput, Results, Stage, StageContext
from lmlab_words.config import WordsConfig
from lmlab_words.counting import most_frequent
from lmlab_words.report import words_section


class CountWordsConfig(WordsConfig):
    """What is counted, and where.

    Attributes:
        documents: a stage that collects or selects, or a file of documents.
    """

    documents: DocumentsInput


class CountWordsResults(Results):
    """The words with their counts, the most frequent first."""

    words: list[tuple[str, int]]


class CountWords(Stage[CountWordsConfig, CountWordsResults]):
    """Writes only its results."""

    def run(self, config: CountWordsConfig, context: StageContext) -> CountWordsResults:
        """Count."""
        documents = read_documents(context.find(Documents, "documents").split("train"))
        return CountWordsResults(words=most_frequent((each.text for each in documents), config))

    def summary(self, results: CountWordsResults) -> str:
        """One line for the terminal."""
        return f"{len(results.words)} words, first '{results.words[0][0]}'." if results.words else "no words."

    def report(self, config: CountWordsConfig, results: CountWordsResults, directory: Path) -> list[Section]:
        """The section of the run's page."""
        return [words_section(results.words)]
