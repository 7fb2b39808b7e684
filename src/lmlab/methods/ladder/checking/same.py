"""Figures that mean the same in all runs: losses on the same validation sets, FLOPs that are counted in one way."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import C4, Run, RunTable, is_validation


def consistent(table: RunTable, settings: Sequence[TwoStepSettings] = ()) -> RunTable:
    """The table with figures that can be compared between its runs: the same validation sets, whose mean is one
    quantity, and the FLOPs of a token of every run, where some tell theirs and others do not.

    Arguments:
        settings: the chains that will be fitted; what one of them reads by its name stays.
    """
    return _with_flops(_with_same_sets(table, {C4 if each.x == "c4" else each.x for each in settings}))


def _with_same_sets(table: RunTable, named: Collection[str]) -> RunTable:
    """The table without the losses of validation sets on which some runs of the ladder were not measured: a mean over
    other sets is another quantity. A target that lacks one of the others has no such mean.
    """
    ladders = [table.ladder, *table.lenders]
    sets = [{name for name in run.metrics if is_validation(name)} for each in ladders for run in each.ladder]
    if not sets:
        return table
    common, every = set.intersection(*sets), set.union(*sets)
    lost = sorted(every - common - {*named})

    def kept(run: Run) -> Run:
        compared = {*common, *named} if run.mode == "train" or common <= {*run.metrics} else {C4, *named}
        metrics = {name: values for name, values in run.metrics.items() if not is_validation(name) or name in compared}
        return replace(run, metrics=metrics)

    def matched(each: RunTable) -> RunTable:
        return replace(each, runs=tuple(kept(run) for run in each))

    notes = table.notes
    if lost:
        lacking = [run.name for each in ladders for run in each.ladder if not {*lost} <= {*run.metrics}]
        notes += (f"not all runs were measured on {', '.join(lost)} (not {', '.join(lacking)}): no chain goes by it.",)
    return replace(matched(table), lenders=tuple(matched(each) for each in table.lenders), notes=notes)


def _with_flops(table: RunTable) -> RunTable:
    """The table with the FLOPs of a token of every run, where some tell theirs and others do not: a law of compute must
    count all runs in one way. Missing ones are those of the next size by the ratio to 6 N.
    """
    known = sorted((run.n, run.flops_per_token / (6 * run.n)) for run in table if run.flops_per_token and run.n > 0)
    missing = {run.name for run in table if not run.flops_per_token and run.n > 0}
    if not known or not missing:
        return table
    sizes, ratios = (np.array(each) for each in zip(*known, strict=True))

    def filled(run: Run) -> Run:
        ratio = float(np.interp(math.log(run.n), np.log(sizes), ratios))
        return replace(run, flops_per_token=ratio * 6 * run.n)

    return replace(table, runs=tuple(filled(run) if run.name in missing else run for run in table))
