"""The stage `docstring_questions`: questions about Python's standard library and its docstrings, to try out tuning
without data of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lmlab.config import Config
from lmlab.data import PythonLibrarySource, conversation_records, preference_records
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.runs import Results, Stage, StageContext
from lmlab.words import counted


class DocstringQuestionsConfig(Config):
    """What is asked about, and in which form.

    Attributes:
        form: `conversations` have a question and its answer; `pairs` also one that does not stop there, which is to be
            rejected.
        source: where the docstrings are.
    """

    form: Literal["conversations", "pairs"] = "conversations"
    source: PythonLibrarySource = PythonLibrarySource()


class RecordsResults(Results):
    """How many."""

    records: int


class DocstringQuestions(Stage[DocstringQuestionsConfig, RecordsResults]):
    """Writes records.jsonl."""

    def depends_on(self, config: DocstringQuestionsConfig, promised: Mapping[str, Any]) -> Any:
        """The files of the source."""
        return config.source.fingerprint()

    def run(self, config: DocstringQuestionsConfig, context: StageContext) -> RecordsResults:
        """Ask."""
        records = (
            conversation_records(config.source)
            if config.form == "conversations"
            else preference_records(config.source, context.seed)
        )
        count = write_jsonl(context.directory / "records.jsonl", records)
        if not count:
            raise UserError(
                f"'{config.source.root}' has no docstrings to ask about.", "Name another folder of Python sources."
            )
        return RecordsResults(records=count)

    def summary(self, results: RecordsResults) -> str:
        """How many."""
        return f"{counted(results.records, 'records')}."
