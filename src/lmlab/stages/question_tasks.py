"""The stages `next_line_task` and `next_word_task`: ranked-classification tasks from held-out documents."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.data import Document, read_documents
from lmlab.errors import UserError
from lmlab.evals import Question, build_next_line_items, build_next_word_items
from lmlab.files import write_jsonl
from lmlab.runs import Input, Stage, StageContext


class QuestionTaskConfig(Config):
    """Which documents, and how many questions of each domain."""

    documents: Input
    split: Literal["train", "heldout"] = "heldout"
    items_per_domain: PositiveInt = 200


C = TypeVar("C", bound=QuestionTaskConfig)


class QuestionTask(Stage[C]):
    """Writes task.jsonl."""

    @abstractmethod
    def draw(self, config: C, documents: list[Document], seed: int) -> list[Question]:
        """The questions."""

    def run(self, config: C, context: StageContext) -> dict[str, Any]:
        """Draw the questions."""
        path = context.inputs["documents"]
        items = self.draw(
            config, list(read_documents(path / f"{config.split}.jsonl" if path.is_dir() else path)), context.seed
        )
        if not items:
            raise UserError(
                "The held-out documents are too few or too short for a single question.", "Raise heldout_fraction."
            )
        write_jsonl(context.directory / "task.jsonl", (item.model_dump() for item in items))
        return {"items": dict(Counter(item.domain for item in items))}

    def summary(self, results: dict[str, Any]) -> str:
        """Questions by domain."""
        return ", ".join(f"{number} questions from {domain}" for domain, number in results["items"].items()) + "."


class NextLineTaskConfig(QuestionTaskConfig):
    """How much context the questions show."""

    context_lines: PositiveInt = 12
    context_bytes: PositiveInt = 400


class NextLineTask(QuestionTask[NextLineTaskConfig]):
    """Which of four lines follows."""

    config_type: ClassVar[type[Config]] = NextLineTaskConfig

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

    config_type: ClassVar[type[Config]] = NextWordTaskConfig

    def draw(self, config: NextWordTaskConfig, documents: list[Document], seed: int) -> list[Question]:
        """The questions."""
        return build_next_word_items(documents, config.items_per_domain, seed, context_bytes=config.context_bytes)
