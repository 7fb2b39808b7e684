"""From what a user names to a fitted estimator: reading runs, choosing tasks, leaving out what must not be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmlab.errors import UserError
from lmlab.methods.ladder.checking.checks import check
from lmlab.methods.ladder.config import EstimatorOptions, EstimatorSettings, RunsOptions, TwoStepSettings
from lmlab.methods.ladder.fitting.forecast import Forecaster, TwoStep, available, chains_read
from lmlab.methods.ladder.tables.read import read_table
from lmlab.methods.ladder.tables.reference_config import read_reference_config
from lmlab.methods.ladder.tables.table import RunTable
from lmlab.methods.ladder.tables.tasks import Task, TaskRegistry


def read_runs(path: Path | None, options: RunsOptions | None = None, second: Path | None = None) -> RunTable:
    """The table of an argument or an option.

    Arguments:
        second: other runs for the second step.

    Raises:
        UserError: neither or both are given, or no runs are there.
    """
    options = options or RunsOptions()
    if (path is None) == (options.config_path is None):
        raise UserError("Name one run table or configuration.", "For instance: lmlab ladder fit runs.csv")
    place = path or options.config_path
    assert place is not None
    roots = [Path(each) for each in options.root]
    table = read_reference_config(place, roots) if place.suffix == ".json" else read_table(place)
    if options.family is not None:
        table = table.of_family(options.family)
    return table if second is None else replace(table, second=read_runs(second, RunsOptions(root=options.root)).ladder)


def choose_tasks(options: RunsOptions) -> list[Task]:
    """Tasks by name; all of a file of one's own unless some are named."""
    own = options.task_file
    registry = TaskRegistry.builtin() if own is None else TaskRegistry.read(own)
    return registry.select("all" if own is not None and options.tasks in ("main", "main+") else options.tasks)


def checked(
    table: RunTable, tasks: Sequence[Task], options: RunsOptions, settings: EstimatorSettings | None = None
) -> RunTable:
    """The table without what must not be fitted; every column that the estimator reads is looked at."""
    read: list[TwoStepSettings] = []
    if settings is not None:
        read = chains_read(available(settings, table, tasks, tell=False), table, tasks)
    return check(table, tasks, read, options.drop_bad_rows, options.allow_unfinished)


def prepared(
    table: RunTable, options: RunsOptions, estimator: EstimatorOptions
) -> tuple[RunTable, list[Task], EstimatorSettings]:
    """What an estimator that is fitted many times needs: the table, its tasks, and the settings that it allows."""
    chosen, settings = choose_tasks(options), estimator.settings()
    table = checked(table, chosen, options, settings)
    return table, chosen, available(settings, table, chosen)


def fitted(
    table: RunTable, options: RunsOptions, estimator: EstimatorOptions, seed: int = 0, calibrated: bool = True
) -> Forecaster:
    """A fitted estimator."""
    chosen, settings = choose_tasks(options), estimator.settings()
    table = checked(table, chosen, options, settings)
    return TwoStep(settings, seed=seed).fit(table, chosen, calibrated, options.allow_unfinished)
