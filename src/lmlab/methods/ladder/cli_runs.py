"""What the commands of ladders share: reading runs, choosing tasks and estimators, showing tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.errors import UserError

if TYPE_CHECKING:
    from lmlab.methods.ladder import EstimatorSettings, RunTable, Task


def read_runs(path: Path | None, config: Path | None, roots: list[Path] | None, second: Path | None) -> RunTable:
    """The table of an argument or an option, with other runs for the second step where they are given."""
    from dataclasses import replace

    from lmlab.methods.ladder.tables.read import read_reference_config, read_table

    if (path is None) == (config is None):
        raise UserError("Name one run table or configuration.", "For instance: lmlab ladder fit runs.csv")
    place = path or config
    assert place is not None
    table = read_reference_config(place, roots or ()) if place.suffix == ".json" else read_table(place)
    return table if second is None else replace(table, second=read_runs(second, None, roots, None).ladder)


def choose_tasks(names: str, path: Path | None) -> list[Task]:
    """Tasks by name; all of a file of one's own unless some are named."""
    from lmlab.methods.ladder import TaskRegistry

    registry = TaskRegistry.builtin() if path is None else TaskRegistry.read(path)
    return registry.select("all" if path is not None and names in ("main", "main+") else names)


def checked(
    table: RunTable, tasks: list[Task], drop: bool, unfinished: bool, settings: EstimatorSettings | None = None
) -> RunTable:
    """The table without what must not be fitted; every column that the estimator reads is looked at."""
    from lmlab.methods.ladder.fitting.checks import check
    from lmlab.methods.ladder.fitting.forecast import available
    from lmlab.methods.ladder.fitting.intervals import other_forms

    read = []
    if settings is not None:
        used = available(settings, table, tasks, tell=False)
        read = [*used.members, *other_forms(table, used)]
    return check(table, tasks, read, drop_bad_rows=drop, allow_unfinished=unfinished)


def choose_estimator(
    preset: str = "recommended",
    x: str | None = None,
    y: str | None = None,
    law: str | None = None,
    moving_avg: int | None = None,
    skip_perc: float | None = None,
    last: int | None = None,
    log_sigmoid: bool = False,
) -> EstimatorSettings:
    """A preset, or a chain with some of its settings changed."""
    from lmlab.config import validate
    from lmlab.methods.ladder import EstimatorSettings, TwoStepSettings
    from lmlab.methods.ladder import preset as named

    if y not in (None, "rc_acc", "mc_acc"):
        raise UserError(f"-y {y}: the accuracy is rc_acc or mc_acc.")
    changes = {"x": x, "law": law, "moving_average": moving_avg, "skip": skip_perc, "last": last}
    changes = {key: value for key, value in changes.items() if value is not None}
    if y == "mc_acc":
        changes["accuracy_law"] = "mc"
    if log_sigmoid:
        changes |= {"accuracy_law": "log_sigmoid", "anchor": False}
    settings = named(preset)
    if not changes:
        return settings
    base = settings.members[0] if len(settings.members) == 1 else TwoStepSettings(delta=1e-2)
    member = validate(TwoStepSettings, base.model_dump() | changes, "the options")
    return EstimatorSettings(name=f"{preset}, changed", members=(member,))


def fitted(
    table: RunTable,
    tasks: str,
    task_file: Path | None,
    settings: EstimatorSettings,
    drop: bool,
    unfinished: bool,
    calibrated: bool = True,
    seed: int = 0,
) -> Any:
    """A fitted estimator."""
    from lmlab.methods.ladder.fitting.forecast import TwoStep

    chosen = choose_tasks(tasks, task_file)
    return TwoStep(settings, seed=seed).fit(checked(table, chosen, drop, unfinished, settings), chosen, calibrated)


def show(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], output: Path | None, title: str, details: Any = None
) -> None:
    """Print a table, its notes below; write it too where a path is given."""
    from rich.table import Table

    from lmlab.commandline.options import print_table
    from lmlab.methods.ladder.tables.write import text_of, write

    shown = Table(title=title, title_justify="left")
    noted = len(columns) - (columns[-1] == "notes")
    for number, column in enumerate(columns[:noted]):
        numeric = any(isinstance(row[number], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(text_of(cell) for cell in row[:noted]))
    print_table(shown)
    for row in rows if noted < len(columns) else ():
        if row[-1]:
            print(f"{row[0]}: {row[-1]}.")
    if output is not None:
        write(output, columns, rows, details)
        print(output)
