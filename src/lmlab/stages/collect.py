"""The stage `collect`: sources to clean, deduplicated, split documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from lmlab.data import DROPPED_BY, CollectConfig, Decontamination, SourceConfig, collect
from lmlab.evals import Task, find_tasks, own_texts
from lmlab.progress import with_unit
from lmlab.reports import Details, Figure, Paragraph, Section, Table, funnel_chart
from lmlab.runs import Artifact, Documents, ReadResults, Results, Stage, StageContext
from lmlab.words import counted


class CollectStageConfig(CollectConfig):
    """The sources, and how documents are chosen from them.

    Attributes:
        decontaminate: tasks by name, group or YAML file, as in `lmlab eval --tasks`; training documents with text of
            theirs are dropped.
    """

    sources: list[SourceConfig] = Field(min_length=1)
    decontaminate: list[str] = []

    def tasks(self) -> list[Task]:
        """The tasks that training must not see."""
        return find_tasks(self.decontaminate) if self.decontaminate else []


class Counts(Results):
    """Documents and bytes, by domain."""

    documents: dict[str, int]
    bytes: dict[str, int]


class Decontaminated(Results):
    """Which tasks training text is free of.

    Attributes:
        questions: texts of the tasks that were looked for.
        too_short: those that are too short to be looked for.
    """

    tasks: list[str]
    questions: int
    too_short: int


class CollectResults(ReadResults):
    """What was read, dropped (by reason) and kept.

    Attributes:
        notices: what was decided that the user must know.
    """

    read: Counts
    dropped: dict[str, Counts]
    train: Counts
    heldout: Counts
    heldout_groups: list[str]
    num_heldout_groups: int
    notices: list[str] = []
    decontamination: Decontaminated | None = None


class Collect(Stage[CollectStageConfig, CollectResults]):
    """Writes train.jsonl, heldout.jsonl, dropped.jsonl and rejects.jsonl."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Documents,)

    def plan(self, config: CollectStageConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """The sources."""
        found = {
            "sources": ", ".join(source.kind for source in config.sources),
            "held out": f"{config.heldout_fraction:.0%} of the bytes, whole groups",
        }
        if config.decontaminate:
            found["without the text of"] = ", ".join(task.name for task in config.tasks())
        return found

    def depends_on(self, config: CollectStageConfig, promised: Mapping[str, Any]) -> Any:
        """The files of the sources, and the tasks."""
        tasks = [task.fingerprint() for task in config.tasks()]
        return [*(source.fingerprint() for source in config.sources), *tasks]

    def run(self, config: CollectStageConfig, context: StageContext) -> CollectResults:
        """Collect."""
        tasks = config.tasks()
        if not tasks:
            found = collect(config.sources, config, context.seed, context.directory)
            return CollectResults.model_validate(found)
        evaluations = Decontamination(text for task in tasks for text in own_texts(task))
        found = collect(config.sources, config, context.seed, context.directory, evaluations=evaluations)
        counts = {
            "tasks": [task.name for task in tasks],
            "questions": evaluations.num_names,
            "too_short": len(evaluations.too_short),
        }
        return CollectResults.model_validate(found | {"decontamination": counts})

    def summary(self, results: CollectResults) -> str:
        """Documents and bytes of both splits, and all that was left out or decided."""
        dropped = [
            f"{sum(counts.documents.values()):,} {reason} ({DROPPED_BY[reason]})"
            for reason, counts in results.dropped.items()
        ]
        parts = [
            f"{_count(results.train)} for training, {_count(results.heldout)} held out.",
            f"Dropped: {', '.join(dropped)}." if dropped else "",
            results.set_aside(),
            *results.notices,
        ]
        return " ".join(part for part in parts if part)

    def headline(self, results: CollectResults) -> dict[str, str]:
        """The size of the training text."""
        return {"Training text": with_unit(sum(results.train.bytes.values()), "B")}

    def report(self, config: CollectStageConfig, results: CollectResults, directory: Any) -> list[Section]:
        """The funnel, and a table by domain."""
        domains = sorted(results.read.documents)
        left = sum(results.read.documents.values())
        steps = [("read", left)]
        for reason, counts in results.dropped.items():
            left -= sum(counts.documents.values())
            steps.append((f"without {reason}", left))
        steps.append(("for training", sum(results.train.documents.values())))
        names = {"read": results.read, **{f"dropped: {key}": value for key, value in results.dropped.items()}}
        names |= {"training": results.train, "held out": results.heldout}
        rows: list[list[Any]] = [
            [
                label,
                *(counts.documents.get(domain, 0) for domain in domains),
                *(counts.bytes.get(domain, 0) for domain in domains),
            ]
            for label, counts in names.items()
        ]
        columns = ["", *(f"{domain}, documents" for domain in domains), *(f"{domain}, bytes" for domain in domains)]
        note = " ".join(
            [
                results.set_aside() or "Every record could be read.",
                *results.notices,
                "Dropped documents and rejects are listed in the run's directory.",
            ]
        )
        if searched := results.decontamination:
            note += (
                f" Training documents with text of {counted(searched.questions, 'questions')} of"
                f" {', '.join(searched.tasks)} were dropped; {searched.too_short:,} of these questions are too"
                " short to be looked for."
            )
        return [
            Section(
                "Data",
                [
                    Figure(funnel_chart(steps), "Documents that remain after each step.", "Funnel of documents"),
                    Table(columns, rows, "Documents and bytes by domain"),
                    Details(
                        f"Held-out groups ({results.num_heldout_groups:,})",
                        [Paragraph(", ".join(results.heldout_groups) or "none")],
                    ),
                ],
                note,
            )
        ]


def _count(split: Counts) -> str:
    return f"{counted(sum(split.documents.values()), 'documents')} ({with_unit(sum(split.bytes.values()), 'B')})"
