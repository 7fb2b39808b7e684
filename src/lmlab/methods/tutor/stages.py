"""Stages of recipes: `tutor_evaluate` asks a tutor and grades its answers, `tutor_dialogues` writes dialogues about
chapters, `tutor_mix` makes tokens of dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from lmlab.data.chapters.source import ChaptersSource
from lmlab.files import json_value, write_json
from lmlab.methods.tutor.answering.run import answer_locally
from lmlab.methods.tutor.config import TutorDialoguesConfig, TutorEvaluateConfig, TutorMixConfig
from lmlab.methods.tutor.dialogues.mix import MixAccount, summary, write_dialogues
from lmlab.methods.tutor.endpoints import endpoint_of
from lmlab.methods.tutor.items.item import load_items
from lmlab.methods.tutor.report import figure_text, headline, sections
from lmlab.methods.tutor.scoring.compare import compare_rows
from lmlab.methods.tutor.scoring.grade import grade_run, graded_rows, keep_items
from lmlab.methods.tutor.scoring.judges import flag_of, judge_of
from lmlab.methods.tutor.scoring.score import score
from lmlab.methods.tutor.writing.write import WritingAccount, told, write_about
from lmlab.reports import Paragraph, Sample, Section, Table
from lmlab.runs import Artifact, Results, Stage, StageContext, Tokens, Vocabulary


class TutorMix(Stage[TutorMixConfig, MixAccount]):
    """Writes shards, their manifest, mix.json and rejects.jsonl."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Tokens, Vocabulary)
    version: ClassVar[int] = 2  # chat templates put the chapter as it is put where a tutor is asked

    def run(self, config: TutorMixConfig, context: StageContext) -> MixAccount:
        """Format and mix."""
        dialogues = context.inputs.get("dialogues")
        if dialogues is not None and (dialogues / f"{config.split}.jsonl").exists():
            dialogues = dialogues / f"{config.split}.jsonl"
        given = config
        if config.metamath is not None:
            given = config.model_copy(update={"metamath": str(context.inputs["metamath"])})
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        return write_dialogues(dialogues, tokenizer, given, context.directory)

    def summary(self, results: MixAccount) -> str:
        """Sequences and tokens."""
        return summary(results)

    def report(self, config: TutorMixConfig, results: MixAccount, directory: Path) -> list[Section]:
        """What the sequences are, and what was left out."""
        rows: list[list[Any]] = [[kind, count] for kind, count in results.sequences.items()]
        rows += [[f"left out: {reason}", count] for reason, count in results.left_out.items()]
        return [Section("Dialogues to learn from", [Table(["kind", "sequences"], rows)])]


class TutorResults(Results):
    """The report of a tutor, as in report.json, and how it compares."""

    model_config = ConfigDict(extra="allow")

    n: int
    n_graded: int
    headline: str
    total: dict[str, Any]
    comparison: dict[str, Any] | None = None


class TutorEvaluate(Stage[TutorEvaluateConfig, TutorResults]):
    """Writes answers.jsonl, grades/, report.json; replies of a judge are kept in replies.sqlite."""

    version: ClassVar[int] = 2  # comparisons are told at equal length too

    def run(self, config: TutorEvaluateConfig, context: StageContext) -> TutorResults:
        """Ask, grade, score, compare."""
        items = load_items(context.inputs["questions"], config.answers.book)[: config.answers.limit]
        keep_items(items, context.directory)
        answer_locally(str(context.inputs["model"]), items, config.answers, context.directory)
        judge = judge_of(config.grading, context.directory)
        rows, _ = grade_run(context.directory, judge, flag=flag_of(config.grading.judge, context.directory))
        found = score(rows, config.scores)
        write_json(context.directory / "report.json", found)
        if config.against is not None:
            found["comparison"] = compare_rows(graded_rows(context.inputs["against"]), rows, config.scores)
        return TutorResults(**found)

    def summary(self, results: TutorResults) -> str:
        """The score."""
        return headline(results.model_dump())

    def headline(self, results: TutorResults) -> dict[str, str]:
        """The score with its interval."""
        return {results.headline: figure_text(results.total)}

    def report(self, config: TutorEvaluateConfig, results: TutorResults, directory: Path) -> list[Section]:
        """Score, where it comes from, answers."""
        return sections(results.model_dump(), graded_rows(directory), results.comparison)


class TutorDialogues(Stage[TutorDialoguesConfig, WritingAccount]):
    """Writes train.jsonl, heldout.jsonl and dropped.jsonl in TutorChat's form, and generate.json."""

    version: ClassVar[int] = 2  # rules answer with several sentences

    def depends_on(self, config: TutorDialoguesConfig, promised: Mapping[str, Any]) -> Any:
        """The files of the chapters."""
        return ChaptersSource(path=config.chapters).fingerprint()

    def run(self, config: TutorDialoguesConfig, context: StageContext) -> WritingAccount:
        """Write."""
        made = [
            None if name is None else endpoint_of(name, config.endpoint) for name in (config.teacher, config.student)
        ]
        return write_about(config.chapters, config, made[0], context.directory, made[1], redact=config.endpoint.redact)

    def summary(self, results: WritingAccount) -> str:
        """Dialogues."""
        return " ".join(told(results))

    def report(self, config: TutorDialoguesConfig, results: WritingAccount, directory: Path) -> list[Section]:
        """What was written, and one of them."""
        rows: list[list[Any]] = [[kind, count, results.heldout.get(kind, 0)] for kind, count in results.kept.items()]
        dropped: list[list[Any]] = [[gate, count] for gate, count in results.dropped.items()]
        blocks: list[Any] = [Paragraph(f"Written by {results.generator}."), Table(["kind", "kept", "held out"], rows)]
        blocks += [Table(["dropped by", "dialogues"], dropped)] if dropped else []
        blocks += _first_dialogue(directory / "train.jsonl")
        return [Section("Dialogues", blocks)]


def _first_dialogue(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    if not line:
        return []
    row = json_value(line)
    turns = row["conversation"] if row["mode"] == "closedbook" else row["conversation"][1:]
    return [Sample("", "\n\n".join(turns)[:3000], f"{row['name']}, about {row['path_to_chapter']}")]
