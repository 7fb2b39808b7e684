"""Stages of recipes: `tutor_mix` makes tokens of dialogues."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from lmlab.methods.tutor.config import TutorMixConfig
from lmlab.methods.tutor.dialogues.mix import MixAccount, summary, write_dialogues
from lmlab.reports import Section, Table
from lmlab.runs import Artifact, Results, Stage, StageContext, Tokens, Vocabulary


class MixResults(Results):
    """What became of the records (`MixAccount`)."""

    records: int
    sequences: dict[str, int]
    left_out: dict[str, int]
    tokens: int
    learned_tokens: int
    cut: int


class TutorMix(Stage[TutorMixConfig, MixResults]):
    """Writes shards, their manifest, mix.json and rejects.jsonl."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Tokens, Vocabulary)

    def run(self, config: TutorMixConfig, context: StageContext) -> MixResults:
        """Format and mix."""
        dialogues = context.inputs.get("dialogues")
        if dialogues is not None and (dialogues / f"{config.split}.jsonl").exists():
            dialogues = dialogues / f"{config.split}.jsonl"
        given = config
        if config.metamath is not None:
            given = config.model_copy(update={"metamath": str(context.inputs["metamath"])})
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        return MixResults(**asdict(write_dialogues(dialogues, tokenizer, given, context.directory)))

    def summary(self, results: MixResults) -> str:
        """Sequences and tokens."""
        return summary(MixAccount(**results.model_dump()))

    def report(self, config: TutorMixConfig, results: MixResults, directory: Path) -> list[Section]:
        """What the sequences are, and what was left out."""
        rows: list[list[Any]] = [[kind, count] for kind, count in results.sequences.items()]
        rows += [[f"left out: {reason}", count] for reason, count in results.left_out.items()]
        return [Section("Dialogues to learn from", [Table(["kind", "sequences"], rows)])]
