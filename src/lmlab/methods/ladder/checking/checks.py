"""What must not be fitted: values that cannot be right, unfinished runs, runs that do not belong together."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.errors import UserError
from lmlab.methods.ladder.checking.alike import mismatches
from lmlab.methods.ladder.checking.lengths import finished
from lmlab.methods.ladder.checking.same import consistent
from lmlab.methods.ladder.checking.slips import oddities, require_possible
from lmlab.methods.ladder.checking.values import unmeasured, usable
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console


def check(
    table: RunTable,
    tasks: Sequence[Task],
    settings: Sequence[TwoStepSettings] = (),
    drop_bad_rows: bool = False,
    allow_unfinished: bool = False,
) -> RunTable:
    """The table without rows and runs that must not be fitted.

    Arguments:
        settings: the chains that will be fitted: every column that one of them reads is checked. Without any, the task
            losses and accuracies are.
        drop_bad_rows: drop rows with a value that is no number or out of its range, and say how many; otherwise they
            are an error.
        allow_unfinished: keep runs that have not come to their end.

    Raises:
        UserError: a bad value, with file and row; a run that is both fitted and a target.
    """
    targets = {(run.n, run.final_tokens) for run in table.targets}
    for run in table.ladder:
        if (run.n, run.final_tokens) in targets:
            raise UserError(f"The run '{run.name}' is fitted, and is a target too.", "Leave it out of one of them.")
    require_possible(table)
    chains = settings or (TwoStepSettings(),)
    table = consistent(finished(table, allow_unfinished), chains)
    # Again, since a run whose last rows were dropped has not come to its end either.
    checked = finished(usable(table, tasks, chains, drop_bad_rows), allow_unfinished)
    for warning in [*unmeasured(checked, tasks, chains[:1]), *warnings(checked, tasks)]:
        console.print(f"Warning: {warning}", style="yellow")
    return checked


def warnings(table: RunTable, tasks: Sequence[Task] = ()) -> list[str]:
    """What looks wrong about the runs that are left: what was dropped, slips of units, ends that rise, runs that do not
    belong together.
    """
    return [*table.notes, *mismatches(table), *oddities(table, tasks), *_unpooled(table, tasks)]


def _unpooled(table: RunTable, tasks: Sequence[Task]) -> list[str]:
    """Splits of a benchmark that some runs of the ladder lack, so that no law is fitted to them."""
    found = []
    for task in tasks:
        for part in task.pool:
            columns = {*part.loss_keys, *part.accuracy_keys}
            lacking = [run.name for run in table.ladder if not columns <= {*run.metrics}]
            if 0 < len(lacking) < len(table.ladder):
                found.append(
                    f"'{part.name}' was not measured in {', '.join(lacking)}: the law of '{task.name}' is fitted"
                    " without its questions."
                )
    return found
