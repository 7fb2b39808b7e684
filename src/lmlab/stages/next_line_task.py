"""The stage `next_line_task`: a ranked-classification task from held-out documents."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.data import read_documents
from lmlab.errors import UserError
from lmlab.evals import build_next_line_items
from lmlab.files import write_jsonl
from lmlab.runs import Input, Stage, StageContext


class NextLineTaskConfig(Config):
    """Which documents, how many questions of each domain, and how much context they show."""

    documents: Input
    split: Literal["train", "heldout"] = "heldout"
    items_per_domain: PositiveInt = 200
    context_lines: PositiveInt = 12
    context_bytes: PositiveInt = 400


class NextLineTask(Stage[NextLineTaskConfig]):
    """Writes task.jsonl."""

    config_type: ClassVar[type[Config]] = NextLineTaskConfig

    def run(self, config: NextLineTaskConfig, context: StageContext) -> dict[str, Any]:
        """Draw the questions."""
        path = context.inputs["documents"]
        documents = list(read_documents(path / f"{config.split}.jsonl" if path.is_dir() else path))
        items = build_next_line_items(
            documents, config.items_per_domain, context.seed, context_lines=config.context_lines, context_bytes=config.context_bytes
        )
        if not items:
            raise UserError("The held-out documents are too few or too short for a single question.", "Raise heldout_fraction.")
        write_jsonl(context.directory / "task.jsonl", (item.model_dump() for item in items))
        return {"items": dict(Counter(item.domain for item in items))}

    def summary(self, results: dict[str, Any]) -> str:
        """Questions by domain."""
        return ", ".join(f"{number} questions from {domain}" for domain, number in results["items"].items()) + "."
