"""The stage `report`: one HTML page from what every stage before it has to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lmlab.config import Config
from lmlab.files import read_json
from lmlab.reports import Code, Details, Facts, Page, Section, Table, format_bytes, format_duration
from lmlab.runs import PlannedStage, Stage, StageContext, read_record


class ReportConfig(Config):
    """The page's title."""

    title: str = "lmlab run"


class Report(Stage[ReportConfig]):
    """Writes report.html at the top of the run."""

    config_type: ClassVar[type[Config]] = ReportConfig
    reads_all_stages = True

    def run(self, config: ReportConfig, context: StageContext) -> dict[str, Any]:
        """Write the page."""
        path = write_report(config.title, context.run, list(context.stages.values()))
        return {"path": path.name, "bytes": path.stat().st_size}

    def summary(self, results: dict[str, Any]) -> str:
        """Where it is."""
        return f"{results['path']} ({format_bytes(results['bytes'])})."


def write_report(title: str, run: Path, stages: list[PlannedStage]) -> Path:
    """Write `report.html` of a run whose stages have finished."""
    facts: dict[str, str] = {}
    sections: list[Section] = []
    times: list[list[Any]] = []
    for each in stages:
        record = read_record(each.directory)
        headline = each.entry.stage.headline(record["results"])
        facts |= {f"{key} ({each.entry.name})" if key in facts else key: value for key, value in headline.items()}
        sections += each.entry.stage.report(each.entry.config, record["results"], each.directory)
        times.append([each.entry.name, each.entry.kind, format_duration(record["seconds"]), each.entry.stage.summary(record["results"])])
    manifest = read_json(run / "manifest.json")
    sections.sort(key=lambda section: section.rank)
    if facts:
        sections.insert(0, Section("At a glance", [Facts(facts)], manifest["description"]))
    sections.append(Section("Stages", [Table(["stage", "kind", "time", "outcome"], times, align=["left", "left", "right", "left"])]))
    sections.append(
        Section("Configuration", [Details("The recipe with every default", [Code((run / "recipe.yaml").read_text("utf-8"), "recipe.yaml")])])
    )
    sections.append(Section("Environment", [_environment(manifest["environment"])]))
    subtitle = f"Recipe {manifest['name']}, seed {manifest['seed']}"
    return Page(title, subtitle, sections, generated=manifest["created"]).write(run / "report.html")


def _environment(environment: dict[str, Any]) -> Table:
    rows: list[list[Any]] = [["lmlab", environment["lmlab"]], ["Python", environment["python"]], ["Platform", environment["platform"]]]
    rows += [["Processor", f"{environment['processor']}, {environment['cores']} cores"]]
    if environment["memory_bytes"]:
        rows.append(["Memory", format_bytes(environment["memory_bytes"])])
    rows += [["GPU", name] for name in environment["gpus"]]
    rows += [[name, version] for name, version in environment["packages"].items()]
    return Table(["", "version"], rows, align=["left", "left"])
