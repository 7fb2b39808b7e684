"""The stage `report`: one HTML page from what every stage before it has to show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lmlab.config import Config
from lmlab.files import read_mapping
from lmlab.reports import (
    Block,
    Code,
    Details,
    Facts,
    Page,
    Section,
    Table,
    format_bytes,
    format_duration,
    format_moment,
)
from lmlab.runs import PlannedStage, Results, Stage, StageContext, StageRecord


class ReportConfig(Config):
    """The page's title."""

    title: str = "lmlab run"


class ReportResults(Results):
    """The page."""

    path: str
    bytes: int


class Report(Stage[ReportConfig, ReportResults]):
    """Writes report.html at the top of the run."""

    reads_all_stages = True

    def run(self, config: ReportConfig, context: StageContext) -> ReportResults:
        """Write the page."""
        path = write_report(config.title, context.run, list(context.stages.values()))
        return ReportResults(path=path.name, bytes=path.stat().st_size)

    def summary(self, results: ReportResults) -> str:
        """Where it is."""
        return f"{results.path} ({format_bytes(results.bytes)})."


def write_report(title: str, run: Path, stages: list[PlannedStage]) -> Path:
    """Write `report.html` of a run whose stages have finished."""
    headlines: dict[str, dict[str, dict[str, str]]] = {}
    sections: list[tuple[str, Section]] = []
    times: list[list[Any]] = []
    for each in stages:
        record = StageRecord.finished_in(each.directory)
        results = record.read_results(each.entry.stage.results_type)
        if headline := each.entry.stage.headline(results):
            headlines.setdefault(each.entry.kind, {})[each.entry.name] = headline
        sections += [
            (each.entry.name, section)
            for section in each.entry.stage.report(each.entry.config, results, each.directory)
        ]
        times.append(
            [
                each.entry.name,
                each.entry.kind,
                format_duration(record.seconds or 0.0),
                each.entry.stage.summary(results),
            ]
        )
    manifest = read_mapping(run / "manifest.json")
    shown = _told_apart(sections)
    shown.sort(key=lambda section: section.rank)
    if headlines:
        shown.insert(0, Section("At a glance", _glance(headlines), manifest["description"]))
    shown.append(
        Section("Stages", [Table(["stage", "kind", "time", "outcome"], times, align=["left", "left", "right", "left"])])
    )
    shown.append(
        Section(
            "Configuration",
            [Details("The recipe with every default", [Code((run / "recipe.yaml").read_text("utf-8"), "recipe.yaml")])],
        )
    )
    shown.append(Section("Environment", [_environment(manifest["environment"])]))
    subtitle = f"Recipe {manifest['name']}, seed {manifest['seed']}, started {format_moment(manifest['created'])}"
    return Page(title, subtitle, shown, generated=format_moment(time.strftime("%Y-%m-%dT%H:%M:%S%z"))).write(
        run / "report.html"
    )


def _glance(headlines: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[Block]:
    """Tiles with what one stage of a kind has to say, and a table of the stages of each kind that has several."""
    tiles: dict[str, str] = {}
    tables: list[Block] = []
    for kind, stages in headlines.items():
        if len(stages) == 1:
            for name, headline in stages.items():
                tiles |= {f"{key} ({name})" if key in tiles else key: value for key, value in headline.items()}
        else:
            columns = list(dict.fromkeys(key for headline in stages.values() for key in headline))
            rows = [[name, *(headline.get(key) for key in columns)] for name, headline in stages.items()]
            align: list[Literal["left", "right"]] = ["right"] * (len(columns) + 1)
            align[0] = "left"
            tables.append(Table([kind, *columns], rows, align=align))
    return [*([Facts(tiles)] if tiles else []), *tables]


def _told_apart(sections: Sequence[tuple[str, Section]]) -> list[Section]:
    """Sections of one title get their stages' names."""
    titles = Counter(section.title for _, section in sections)
    return [
        replace(section, title=f"{section.title}: {stage}") if titles[section.title] > 1 else section
        for stage, section in sections
    ]


def _environment(environment: dict[str, Any]) -> Table:
    rows: list[list[Any]] = [
        ["lmlab", environment["lmlab"]],
        ["Python", environment["python"]],
        ["Platform", environment["platform"]],
    ]
    rows += [["Processor", f"{environment['processor']}, {environment['cores']} cores"]]
    if environment["memory_bytes"]:
        rows.append(["Memory", format_bytes(environment["memory_bytes"])])
    rows += [["GPU", name] for name in environment["gpus"]]
    rows += [[name, version] for name, version in environment["packages"].items()]
    return Table(["", "version"], rows, align=["left", "left"])
