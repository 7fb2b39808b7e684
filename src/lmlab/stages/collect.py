"""The stage `collect`: sources to clean, deduplicated, split documents."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from lmlab.config import Config
from lmlab.data import CollectConfig, SourceConfig, collect
from lmlab.progress import short
from lmlab.reports import Details, Figure, Paragraph, Section, Table, funnel_chart
from lmlab.runs import Stage, StageContext


class CollectStageConfig(CollectConfig):
    """The sources, and how documents are chosen from them."""

    sources: list[SourceConfig] = Field(min_length=1)


class Collect(Stage[CollectStageConfig]):
    """Writes train.jsonl, heldout.jsonl, dropped.jsonl and rejects.jsonl."""

    config_type: ClassVar[type[Config]] = CollectStageConfig

    def plan(self, config: CollectStageConfig) -> dict[str, str]:
        """The sources."""
        return {
            "sources": ", ".join(source.kind for source in config.sources),
            "held out": f"{config.heldout_fraction:.0%} of the bytes, whole groups",
        }

    def depends_on(self, config: CollectStageConfig) -> Any:
        """The files of the sources."""
        return [source.fingerprint() for source in config.sources]

    def run(self, config: CollectStageConfig, context: StageContext) -> dict[str, Any]:
        """Collect."""
        return collect(config.sources, config, context.seed, context.directory)

    def summary(self, results: dict[str, Any]) -> str:
        """Documents and bytes of both splits."""
        return f"{_count(results['train'])} for training, {_count(results['heldout'])} held out."

    def headline(self, results: dict[str, Any]) -> dict[str, str]:
        """The size of the training text."""
        return {"Training text": f"{short(sum(results['train']['bytes'].values()))}B"}

    def report(self, config: CollectStageConfig, results: dict[str, Any], directory: Any) -> list[Section]:
        """The funnel, and a table by domain."""
        domains = sorted(results["read"]["documents"])
        left = sum(results["read"]["documents"].values())
        steps = [("read", left)]
        for reason, counts in results["dropped"].items():
            left -= sum(counts["documents"].values())
            steps.append((f"without {reason}", left))
        steps.append(("for training", sum(results["train"]["documents"].values())))
        names = {"read": results["read"], **{f"dropped: {key}": value for key, value in results["dropped"].items()}}
        names |= {"training": results["train"], "held out": results["heldout"]}
        rows = [
            [label, *(counts["documents"].get(domain, 0) for domain in domains), *(counts["bytes"].get(domain, 0) for domain in domains)]
            for label, counts in names.items()
        ]
        columns = ["", *(f"{domain}, documents" for domain in domains), *(f"{domain}, bytes" for domain in domains)]
        return [
            Section(
                "Data",
                [
                    Figure(funnel_chart(steps), "Documents that remain after each step.", "Funnel of documents"),
                    Table(columns, rows, "Documents and bytes by domain"),
                    Details(f"Held-out groups ({results['num_heldout_groups']:,})", [Paragraph(", ".join(results["heldout_groups"]) or "none")]),
                ],
                f"{results['rejects']} records could not be read. Dropped documents and rejects are listed in the run's directory.",
            )
        ]


def _count(split: dict[str, Any]) -> str:
    return f"{sum(split['documents'].values()):,} documents ({short(sum(split['bytes'].values()))}B)"
