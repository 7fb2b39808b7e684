"""Ratings of one corpus by several raters (seeds, sizes, judges) as one: their mean, and how far they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.files import owned_folder
from lmlab.methods.qurating.selecting.moments import Moments, check_spread, standardize
from lmlab.methods.qurating.selecting.tables.table import RatedTable, as_floats
from lmlab.methods.qurating.selecting.tables.writing import TableWriter

ENSEMBLE = "lmlab quality ensemble"


@dataclass(frozen=True)
class EnsembleAccount:
    """What was joined.

    Attributes:
        missing: rows that a rater has no rating of, by column: they get none.
        agreement: the mean correlation of two raters, by column.
    """

    rows: int
    raters: int
    missing: dict[str, int]
    agreement: dict[str, float]


def write_ensemble(rated: Sequence[str], out: Path, columns: Sequence[str] = (), *, id: str = "id") -> EnsembleAccount:
    """Write the rows of the first corpus with `{c}` and `{c}_deviation` over all raters for each column c of ratings.

    Raters have scales of their own, so each is standardized over the corpus; then c is their mean and `c_deviation`
    their standard deviation, both in standard deviations of the means. So the lower bound of a choice is
    `--uncertainty c_deviation --penalty 1`. The ratings stream, several times.

    Arguments:
        rated: folders of the same rows in the same order.
        columns: of ratings; by default all of the form `{c}_average`.

    Raises:
        UserError: fewer than two, a column is missing or without variance, or rows are not the same.
    """
    if len(rated) < 2:
        raise UserError("An ensemble has at least two raters.", "Annotate the corpus by raters of several seeds.")
    tables = [RatedTable(place) for place in rated]
    wanted = list(columns) or [name for name in tables[0].columns if name.endswith("_average")]
    if not wanted:
        raise UserError("There is no column of ratings, NAME_average.", "Name the columns with --columns.")
    for table in tables:
        for name in [id, *wanted]:
            table.require(name)
    own, account = _standards(tables, rated, wanted, id)
    spread = [Moments() for _ in wanted]
    for _, _, found_RNC in _together(tables, rated, wanted, id):
        for place, (mean_N, _) in enumerate(_joined(found_RNC, own)):
            spread[place] = spread[place].merge(Moments.of(mean_N[np.isfinite(mean_N)]))
    for name, moments in zip(wanted, spread, strict=True):
        if not moments.std:
            raise UserError(f"The raters' mean of '{name}' is the same for all rows.", "They say nothing together.")
    files = [file for table in tables for file in table.files]
    with owned_folder(out, ENSEMBLE, [list(rated), wanted], files) as folder, ExitStack() as opened:
        writer, shard = None, -1
        for chunk_shard, part, found_RNC in _together(tables, rated, wanted, id):
            while shard < chunk_shard:
                opened.close()
                shard += 1
                writer = opened.enter_context(TableWriter(folder.new(f"{shard:05d}.parquet")))
            assert writer is not None
            for name, moments, (mean_N, deviation_N) in zip(wanted, spread, _joined(found_RNC, own), strict=True):
                part[name] = _column(standardize(mean_N, moments))
                part[f"{name}_deviation"] = _column(deviation_N / moments.std)
            writer.write(pa.table(part))
    return account


def _standards(
    tables: Sequence[RatedTable], rated: Sequence[str], wanted: Sequence[str], id: str
) -> tuple[list[list[Moments]], EnsembleAccount]:
    """The moments of each rater by column, and the account."""
    own = [[Moments() for _ in wanted] for _ in tables]
    rows, missing = 0, dict.fromkeys(wanted, 0)
    products = np.zeros((len(wanted), len(tables), len(tables)))
    sums = np.zeros((len(wanted), len(tables)))
    counts = np.zeros(len(wanted))
    shift: NDArray[np.float64] | None = None
    for _, _, found_RNC in _together(tables, rated, wanted, id):
        rows += found_RNC.shape[1]
        for place, name in enumerate(wanted):
            values_RN = found_RNC[:, :, place]
            whole = np.isfinite(values_RN).all(0)
            missing[name] += int((~whole).sum())
            kept_RN = values_RN[:, whole]
            for rater, values in enumerate(kept_RN):
                own[rater][place] = own[rater][place].merge(Moments.of(values))
            if kept_RN.size:
                if shift is None:  # near the means, so that products of large ratings lose no digits
                    shift = np.full((len(wanted), len(tables)), np.nan)
                if np.isnan(shift[place]).any():
                    shift[place] = kept_RN.mean(1)
                centered = kept_RN - shift[place][:, None]
                products[place] += centered @ centered.T
                sums[place] += centered.sum(1)
                counts[place] += kept_RN.shape[1]
    agreement = {}
    for place, name in enumerate(wanted):
        if rows and not counts[place]:
            raise UserError(f"No row has a rating in '{name}' by each rater.", "Leave out the rater that lacks them.")
        for rater, moments in enumerate(own):
            check_spread(moments[place], name)
            if not moments[place].std:
                raise UserError(
                    f"The ratings in '{name}' of '{rated[rater]}' are the same for all rows.", "Leave that rater out."
                )
        covariance = products[place] / counts[place] - np.outer(sums[place], sums[place]) / counts[place] ** 2
        deviations = np.sqrt(np.diag(covariance))
        correlations = covariance / np.outer(deviations, deviations)
        agreement[name] = float(correlations[np.triu_indices(len(tables), 1)].mean())
    return own, EnsembleAccount(rows, len(tables), missing, agreement)


def _joined(
    found_RNC: NDArray[np.float64], own: Sequence[Sequence[Moments]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Mean and deviation of the standardized ratings of each column; not-a-number where a rater has none."""
    for place in range(found_RNC.shape[2]):
        z_RN = np.stack([standardize(found_RNC[rater, :, place], own[rater][place]) for rater in range(len(own))])
        yield z_RN.mean(0), z_RN.std(0, ddof=1)


def _together(
    tables: Sequence[RatedTable], rated: Sequence[str], wanted: Sequence[str], id: str
) -> Iterator[tuple[int, dict[str, Any], NDArray[np.float64]]]:
    """The rows of all, piece by piece: the shard and the columns of the first, and ratings [raters, rows, columns]."""
    others = [_Rows(table, place, wanted, id) for table, place in zip(tables[1:], rated[1:], strict=True)]
    for chunk in tables[0].chunks([id, *wanted], whole=True):
        ids = chunk.columns[id].to_pylist()
        first = np.stack([as_floats(chunk.columns[name], name) for name in wanted], 1)
        found = [first, *(each.take(ids, rated[0]) for each in others)]
        yield chunk.shard, {name: chunk.columns[name] for name in chunk.own}, np.stack(found)
    for each in others:
        each.finish(rated[0])


class _Rows:
    """Ratings of a further rater, taken in pieces of any length."""

    def __init__(self, table: RatedTable, place: str, wanted: Sequence[str], id: str) -> None:
        self._place = place
        self._chunks = (
            (chunk.columns[id].to_pylist(), np.stack([as_floats(chunk.columns[name], name) for name in wanted], 1))
            for chunk in table.chunks([id, *wanted])
        )
        self._ids: list[Any] = []
        self._values = np.zeros((0, len(wanted)))

    def take(self, ids: Sequence[Any], first: str) -> NDArray[np.float64]:
        """The ratings of these rows.

        Raises:
            UserError: other rows stand there.
        """
        while len(self._ids) < len(ids) and (more := next(self._chunks, None)) is not None:
            self._ids = self._ids + more[0]
            self._values = np.concatenate([self._values, more[1]])
        for number, wanted in enumerate(ids):
            found = self._ids[number] if number < len(self._ids) else None
            if found != wanted:
                raise UserError(
                    f"'{self._place}' has '{found}' where '{first}' has '{wanted}'.",
                    "The raters of an ensemble rate the same corpus: annotate it by each.",
                )
        taken, self._values, self._ids = self._values[: len(ids)], self._values[len(ids) :], self._ids[len(ids) :]
        return taken

    def finish(self, first: str) -> None:
        """See that there are no more rows."""
        if self._ids or next(self._chunks, None) is not None:
            raise UserError(f"'{self._place}' has more rows than '{first}'.", "Annotate the same corpus by each rater.")


def _column(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)  # not-a-number becomes null
