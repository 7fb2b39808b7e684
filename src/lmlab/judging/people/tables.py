"""A table of grades by people and by a judge, with columns of any names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, did_you_mean

Floats = NDArray[np.float64]
_LARGEST = 1e9  # beyond it squares and means of grades lose what the smaller ones say


@dataclass(frozen=True)
class GradeTable:
    """Rows of a table.

    Attributes:
        rows: in their order.
        columns: of all.
        where: the file, for messages.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, location: str | Path) -> GradeTable:
        """From CSV, JSON lines, Parquet; a row of `grades.jsonl` gives a column a criterion, and one a sample, such as
        `correctness_1`.

        Raises:
            UserError: it cannot be read, or is empty.
        """
        from lmlab.data import Reject, record_source

        rows: list[Mapping[str, Any]] = []
        for _, record in record_source(str(location)).records():
            if isinstance(record, Reject):
                raise UserError(f"{record.where} cannot be read: {record.reason}.")
            rows.append(_flat(record))
        if not rows:
            raise UserError(f"'{location}' is empty.")
        return cls(rows, tuple(dict.fromkeys(name for row in rows for name in row)), f"'{location}'")

    def texts(self, column: str) -> list[str]:
        """A column as text; nothing is an empty one.

        Raises:
            UserError: there is no such column.
        """
        self._check(column)
        return ["" if row.get(column) is None else str(row[column]) for row in self.rows]

    def numbers(self, column: str) -> Floats:
        """A column of numbers; not-a-number where a cell is empty.

        Raises:
            UserError: there is no such column, or a cell is no number; with its row.
        """
        self._check(column)
        found = np.full(len(self.rows), math.nan)
        for number, row in enumerate(self.rows):
            value = row.get(column)
            if value is None or (
                isinstance(value, str) and value.strip().casefold() in ("", "na", "nan", "none", "null")
            ):
                continue
            try:
                found[number] = float(str(value).strip().replace(",", "."))
            except ValueError:
                raise UserError(f"{self.where}, row {number + 1}: '{value}' in '{column}' is no number.") from None
            if math.isinf(found[number]):
                raise UserError(f"{self.where}, row {number + 1}: '{column}' is infinite.")
            if abs(found[number]) > _LARGEST:
                raise UserError(f"{self.where}, row {number + 1}: '{value}' in '{column}' is too large.")
        return found

    def _check(self, column: str) -> None:
        if column not in self.columns:
            raise UserError(
                f"{self.where} has no column '{column}'. {did_you_mean(column, self.columns)}",
                f"Its columns are: {', '.join(self.columns)}.",
            )


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """One level of a row of grades: its criteria and fields become columns."""
    found = {name: value for name, value in record.items() if not isinstance(value, dict)}
    for nested in ("grades", "fields"):
        inner = record.get(nested)
        if isinstance(inner, dict):
            found |= {name: value for name, value in inner.items() if name not in found}
    samples = record.get("samples")
    for number, sample in enumerate(samples if isinstance(samples, list) else (), 1):
        if isinstance(sample, dict):
            found |= {f"{name}_{number}": value for name, value in sample.items() if f"{name}_{number}" not in found}
    return found
