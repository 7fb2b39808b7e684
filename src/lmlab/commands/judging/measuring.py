"""`lmlab judge validate`, `calibrate`, `estimate`: how far grades can be trusted, from people's of a few answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import AsJson, example, print_table
from lmlab.errors import UserError
from lmlab.judging.measures.config import (
    CalibrateConfig,
    CalibrationKind,
    EstimateConfig,
    GradeColumns,
    ValidateConfig,
)
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.judging.measures.agreement import Agreement
    from lmlab.judging.measures.consistency import SelfConsistency
    from lmlab.judging.people.tables import GradeTable
    from lmlab.stats import Interval

EXIT_GATE = 3

Table = Annotated[Path, typer.Argument(help="Grades of people and of the judge: CSV, JSON lines or Parquet.")]

validate_help = example(
    "lmlab judge validate graded.csv --human-column human --judge-column judge --cluster-column chapter",
    "lmlab judge validate graded.csv --min-spearman 0.6 --max-bias 0.2",
    "lmlab judge validate graded.csv --system-column system --own-family 'gpt-*'",
    "lmlab judge validate graded.csv --sample-columns judge_1 --sample-columns judge_2",
)


@options(ValidateConfig)
def validate(
    table: Table,
    settings: ValidateConfig,
    as_json: AsJson = False,
) -> None:
    """A judge's grades beside people's: correlations, kappa, bias, the effect of length, with clustered intervals."""
    import numpy as np

    from lmlab.judging.measures.own_family import of_family
    from lmlab.judging.measures.validation import validate_judge
    from lmlab.judging.people.tables import GradeTable

    read = GradeTable.read(table)
    samples = np.stack([read.numbers(name) for name in settings.sample_columns], 1) if settings.sample_columns else None
    if samples is None:
        judge, people, clusters = _grades(read, settings)
    else:
        judge, people, clusters = samples.mean(1), read.numbers(settings.human_column), _clusters(read, settings)
    systems = None if settings.system_column is None else read.texts(settings.system_column)
    found = validate_judge(
        judge,
        people,
        clusters,
        None if settings.length_column is None else _lengths(read, settings.length_column),
        systems,
        None if settings.second_column is None else read.numbers(settings.second_column),
        {column: read.texts(column) for column in settings.by},
        of_family(systems, settings.own_family) if systems is not None and settings.own_family else None,
        samples,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    shown = {"all": found.agreement}
    if (kind := settings.calibrate) is not None:
        calibrated = _calibrated(judge, people, kind, clusters, settings.resamples, settings.seed)
        shown[f"calibrated ({kind}, other folds)"] = calibrated
    shown |= {} if found.ceiling is None else {"second person": found.ceiling}
    shown |= {f"{column} = {value}": each for column, part in found.by.items() for value, each in part.items()}
    if as_json:
        _print_json(
            {
                "agreement": {name: _agreement_json(each) for name, each in shown.items()},
                "length_effect": interval_json(found.length_effect),
                "systems": found.systems,
                "own_family": interval_json(found.own_family),
                "consistency": _consistency_json(found.consistency),
                "reasons": found.reasons,
            }
        )
    else:
        _print_agreement(shown)
        for name, reason in found.reasons.items():
            print(f"{name} is not defined: {reason}.")
        if found.length_effect is not None:
            print(f"Judge beyond people for each unit of log length: {interval_text(found.length_effect)}")
        if found.systems is not None:
            print(f"Rank correlation of {found.systems[1]} systems: {found.systems[0]:.3f}")
        if settings.own_family:
            kin = ", ".join(settings.own_family)
            print(f"Judge beyond people for answers of its own family ({kin}): {interval_text(found.own_family)}")
        if (again := found.consistency) is not None:
            print(f"{again.samples} grades of each of {counted(again.items, 'answers')} by the judge:")
            print(f"  standard deviation around an answer's mean: {interval_text(again.spread)}")
            print(f"  equal grades: {interval_text(again.equal)}")
            of_mean = "" if again.reliability_of_mean is None else f", of their mean {again.reliability_of_mean:.3f}"
            print(f"  reliability of a single grade, ICC(1): {interval_text(again.reliability)}{of_mean}")
    failures = found.passes(settings.min_spearman, settings.max_bias)
    if failures:
        print(f"The judge does not pass: {'; '.join(failures)}.")
        raise typer.Exit(EXIT_GATE)


calibrate_help = example("lmlab judge calibrate graded.csv --kind isotonic --out calibration.json")


@options(CalibrateConfig)
def calibrate(
    table: Table,
    settings: CalibrateConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the calibration.")] = Path("calibration.json"),
) -> None:
    """Learn people's grades from a judge's; what is printed is measured on folds that it was not learned from."""
    import numpy as np

    from lmlab.judging.measures.calibration import cross_calibrated, fit_calibration, write_calibration
    from lmlab.judging.measures.conformal import fit_conformal
    from lmlab.judging.people.tables import GradeTable

    kind = settings.kind
    judge, people, clusters = _grades(GradeTable.read(table), settings)
    both = np.isfinite(judge) & np.isfinite(people)
    if not both.any():
        raise UserError("There is no row with both grades.")
    if clusters is not None:
        clusters = [each for each, keep in zip(clusters, both, strict=True) if keep]
    judge, people = judge[both], people[both]
    held_out = cross_calibrated(judge, people, kind, clusters, seed=settings.seed)
    write_calibration(fit_calibration(judge, people, kind), out)
    conformal = fit_conformal(held_out, people, settings.level)
    before, after = float((judge - people).mean()), float((held_out - people).mean())
    print(f"{out}: {kind}, of {counted(len(people), 'answers')}; bias {before:+.3f}, on other folds {after:+.3f}")
    radius = f"±{conformal.radius:.2f}" if np.isfinite(conformal.radius) else "the whole scale (too few answers)"
    print(f"Interval of {settings.level:.0%} for the grade that people would give to one answer: {radius}")


estimate_help = example("lmlab judge estimate graded.csv --human-column human --cluster-column chapter")


@options(EstimateConfig)
def estimate(
    table: Table,
    settings: EstimateConfig,
    as_json: AsJson = False,
) -> None:
    """The mean that people would give to all answers, from the judge's grades of all and people's of a few."""
    import numpy as np

    from lmlab.judging.measures.prediction_powered import estimate_mean
    from lmlab.judging.people.tables import GradeTable

    judge, people, clusters = _grades(GradeTable.read(table), settings)
    graded = np.isfinite(judge)
    if not graded.any():
        raise UserError(f"The column '{settings.judge_column}' has no grades.")
    if clusters is not None:
        clusters = [each for each, keep in zip(clusters, graded, strict=True) if keep]
    found = estimate_mean(people[graded], judge[graded], clusters, settings.level)
    left_out = int((~graded).sum())
    if as_json:
        parts = {"mean": interval_json(found.mean), "people_alone": interval_json(found.people)}
        numbers = {"judge_alone": found.judge, "weight": found.weight, "labeled": found.labeled, "items": found.items}
        _print_json({**parts, **numbers, "clusters": found.clusters, "without_grade": left_out})
        return
    print(f"Mean that people would give: {interval_text(found.mean)}")
    print(f"  people alone, {found.labeled:,} answers in {found.clusters:,} clusters: {interval_text(found.people)}")
    print(f"  the judge alone, {counted(found.items, 'answers')}: {found.judge:.3f}, which is off by its bias")
    source = (
        f"the judge has a weight of {found.weight:.2f}" if found.weight else "the judge does not help: people alone"
    )
    print(f"  {source}")
    if left_out:
        print(f"  {counted(left_out, 'answers')} without a grade of the judge are left out")


def _grades(table: GradeTable, columns: GradeColumns) -> tuple[Any, Any, list[str] | None]:
    """The judge's grades, people's, and what makes rows depend on each other."""
    return table.numbers(columns.judge_column), table.numbers(columns.human_column), _clusters(table, columns)


def _clusters(table: GradeTable, columns: GradeColumns) -> list[str] | None:
    return None if columns.cluster_column is None else table.texts(columns.cluster_column)


def _lengths(table: GradeTable, column: str) -> Any:
    """A column of numbers, or the lengths of a column of texts."""
    try:
        return table.numbers(column)
    except UserError:
        return [len(text) for text in table.texts(column)]


def _calibrated(
    judge: Any, people: Any, kind: CalibrationKind, clusters: list[str] | None, resamples: int, seed: int
) -> Agreement:
    import numpy as np

    from lmlab.judging.measures.calibration import cross_calibrated
    from lmlab.judging.measures.validation import on_scale
    from lmlab.judging.rubrics.parser import HALF_POINTS

    both = np.isfinite(judge) & np.isfinite(people)
    kept = None if clusters is None else [each for each, keep in zip(clusters, both, strict=True) if keep]
    learned = cross_calibrated(judge[both], people[both], kind, kept, seed=seed)
    return on_scale(learned, people[both], kept, HALF_POINTS, resamples, seed)


def _print_agreement(shown: dict[str, Agreement]) -> None:
    from rich.table import Table as RichTable

    table = RichTable("figure", *shown)
    table.add_row("answers", *(f"{each.items:,}" for each in shown.values()))
    table.add_row("without both grades", *(f"{each.missing:,}" for each in shown.values()))
    for name in next(iter(shown.values())).figures:
        table.add_row(name, *(interval_text(each.figures.get(name)) for each in shown.values()))
    print_table(table)


def interval_text(interval: Interval[float] | None) -> str:
    """A figure with its interval, as far as there is one; a dash where there is no figure."""
    import math

    if interval is None:
        return "-"
    bounds = f"[{interval.low:.3f}, {interval.high:.3f}]" if math.isfinite(interval.low) else "(no interval)"
    return f"{interval.value:.3f} {bounds}"


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    figures = {name: interval_json(each) for name, each in agreement.figures.items()}
    return {"items": agreement.items, "missing": agreement.missing, **figures}


def _consistency_json(found: SelfConsistency | None) -> dict[str, Any] | None:
    if found is None:
        return None
    intervals = {name: interval_json(getattr(found, name)) for name in ("spread", "equal", "reliability")}
    counts = {"samples": found.samples, "items": found.items}
    return {**counts, **intervals, "reliability_of_mean": found.reliability_of_mean}


def interval_json(interval: Interval[float] | None) -> dict[str, float | None] | None:
    """Value and bounds; None for what is not known."""
    import math

    if interval is None:
        return None
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("value", interval.value), ("low", interval.low), ("high", interval.high))
    }


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))
