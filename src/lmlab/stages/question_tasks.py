"""The stages `next_line_task` and `next_word_task`: ranked-classification tasks from held-out documents."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import ClassVar, Literal, TypeVar

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.data import Document, read_documents
from lmlab.errors import UserError
from lmlab.evals import Question, build_next_line_items, build_next_word_items
from lmlab.files import write_jsonl
from lmlab.runs import Artifact, Documents, DocumentsInput, Questions, Results, Stage, StageContext


class QuestionTaskConfig(Config):
    """Which documents, and how many questions of each domain."""

    documents: DocumentsInput
    split: Literal["train", "heldout"] = "heldout"
    items_per_domain: PositiveInt = 200


C = TypeVar("C", bound=QuestionTaskConfig)


class QuestionsResults(Results):
    """Questions by domain."""

    items: dict[str, int]


class QuestionTask(Stage[C, QuestionsResults]):
    """Writes task.jsonl."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Questions,)

    @abstractmethod
    def draw(self, config: C, documents: list[Document], seed: int) -> list[Question]:
        """The questions."""

    def run(self, config: C, context: StageContext) -> QuestionsResults:
        """Draw the questions."""
        path = context.find(Documents, "documents").split(config.split)
        items = self.draw(config, list(read_documents(path)), context.seed)
        if not items:
            raise UserError(
                "The held-out documents are too few or too short for a single question.", "Raise heldout_fraction."
            )
        write_jsonl(context.directory / "task.jsonl", (item.model_dump() for item in items))
        return QuestionsResults(items=dict(Counter(item.domain for item in items)))

    def summary(self, results: QuestionsResults) -> str:
        """Questions by domain."""
        return ", ".join(f"{number} questions from {domain}" for domain, number in results.items.items()) + "."


class NextLineTaskConfig(QuestionTaskConfig):
    """How much context the questions show."""

    context_lines: PositiveInt = 12
    context_bytes: PositiveInt = 400


class NextLineTask(QuestionTask[NextLineTaskConfig]):
    """Which of four lines follows."""

    def draw(self, config: NextLineTaskConfig, documents: list[Document], seed: int) -> list[Question]:
        """The questions."""
        return build_next_line_items(
            documents,
            config.items_per_domain,
            seed,
            context_lines=config.context_lines,
            context_bytes=config.context_bytes,
        )


class NextWordTaskConfig(QuestionTaskConfig):
    """How much context the questions show."""

    context_bytes: PositiveInt = 200


class NextWordTask(QuestionTask[NextWordTaskConfig]):
    """Which of four words follows."""

    def draw(self, config: NextWordTaskConfig, documents: list[Document], seed: int) -> list[Question]:
        """The questions."""
        return build_next_word_items(documents, config.items_per_domain, seed, context_bytes=config.context_bytes)
