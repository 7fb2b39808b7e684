"""The first pass over a table: checks rows, counts domains, and keeps what later passes need, without texts, in a
compact file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.qurating.selecting.drawing.keys import hash_ids
from lmlab.methods.qurating.selecting.moments import Moments, check_spread, exact_moments
from lmlab.methods.qurating.selecting.problems import (
    DuplicateIds,
    EmptyDocument,
    NonFiniteRating,
    ZeroVariance,
)
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.methods.qurating.selecting.tables.lengths import LengthColumn, Measure
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, as_floats
from lmlab.words import counted

_ROWS = 2**20  # read at once from the disk
_SHOWN = 5  # ids in a message
_ROW_IDS = "or take the rows' numbers with --row-ids (row_ids: true)"
UNLABELED = np.uint64(2**64 - 1)  # a hash that no label has but by one chance in 2**64
_NO_LABEL = ("", "-1", "-1.0")
_SORTED_AT_ONCE = 2**25  # ids, 256 MB
NO_DOMAIN = ""


@dataclass
class Scan:
    """What is known of the rows after the first pass.

    Attributes:
        shards, firsts: names of shards, and the number of each one's first row in the whole table.
        domains, domain_tokens, domain_rows: labels, and what each has.
        num_rows, num_tokens: that can be chosen.
        dropped: rows that were left out, by reason.
        integer_ids: whether ids are integers, which then are their own hashes.
        moments: of each column of ratings.
    """

    folder: Path
    kind: np.dtype[Any]
    shards: list[str]
    firsts: list[int] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    domain_tokens: list[int] = field(default_factory=list)
    domain_rows: list[int] = field(default_factory=list)
    num_rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    integer_ids: bool = True
    moments: dict[str, Moments] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Of all rows that can be chosen."""
        return sum(self.domain_tokens)

    def rows(self) -> Iterator[NDArray[Any]]:
        """The rows as structured arrays: `position`, `id64`, `length`, `domain`, a column `r0`, `r1`, ... for each
        rating, `sd`, and `cap`, a hash of the label of `cap_duplicates`, `UNLABELED` for none.
        """
        with open(self.folder / "rows.bin", "rb") as file:
            while len(part := np.fromfile(file, self.kind, _ROWS)):
                yield part


def scan(
    table: RatedTable, config: SelectionConfig, folder: Path, measure: Measure | None = None, text: str = "text"
) -> Scan:
    """Read the columns that a selection needs, once.

    Arguments:
        folder: gets a file of 28 bytes a row and 8 more for each column of ratings.
        measure: counts the tokens of texts, where there are neither lengths nor `input_ids`; `text` is their column.

    Raises:
        NonFiniteRating, EmptyDocument, DuplicateIds, ZeroVariance: as their names say.
        UserError: a column is missing.
    """
    metrics = list(config.metrics)
    kind = np.dtype(
        [("position", "<i8"), ("id64", "<u8"), ("length", "<i8"), ("domain", "<i4")]
        + [(f"r{number}", "<f8") for number in range(len(metrics))]
        + ([("sd", "<f8")] if config.uncertainty else [])
        + ([("cap", "<u8")] if config.cap_duplicates else [])
    )
    found = Scan(folder, kind, table.shards)
    lengths = LengthColumn(table, config.length, measure, text)
    paths = {*lengths.columns, *metrics, *config.minimum, *config.maximum, *config.cap_duplicates}
    paths |= {path for path in (config.id, config.domain, config.uncertainty) if path}
    for path in paths:
        table.require(path)
    reader = _Reader(found, config, lengths, metrics)
    with open(folder / "rows.bin", "wb") as file:
        for chunk in table.chunks(sorted(paths)):
            reader.read(chunk).tofile(file)
    reader.finish()
    if config.id is not None:
        _check_ids(found, table, config.id)
    for number, name in enumerate(metrics):
        moments = exact_moments(partial(_column, found, f"r{number}"))
        found.moments[name] = moments
        if config.normalize or len(metrics) > 1:
            check_spread(moments, name)
        # Without noise equal ratings are in order: the lower id comes first.
        if config.noise and config.normalize and moments.count and moments.std == 0:
            raise ZeroVariance(
                f"The ratings in '{name}' of all {counted(moments.count, 'rows')} are {moments.mean:g}.",
                "Choose another column, or normalize: false.",
            )
    return found


def _column(found: Scan, name: str) -> Iterator[NDArray[np.float64]]:
    return (np.ascontiguousarray(rows[name]) for rows in found.rows())


class _Reader:
    """Checks chunks and turns them to rows."""

    def __init__(self, found: Scan, config: SelectionConfig, lengths: LengthColumn, metrics: Sequence[str]) -> None:
        self.found, self.config, self.lengths, self.metrics = found, config, lengths, metrics
        self._position, self._shard = 0, -1
        self._labels: dict[str, int] = {}
        self._tokens, self._rows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._bad: dict[str, list[str]] = {"non-finite ratings": [], "no tokens": []}
        self._bad_counts = dict.fromkeys(self._bad, 0)
        self._filtered = 0

    def read(self, chunk: Chunk) -> NDArray[Any]:
        config, found = self.config, self.found
        while self._shard < chunk.shard:
            self._shard += 1
            found.firsts.append(self._position)
        rows = np.zeros(chunk.num_rows, found.kind)
        rows["position"] = np.arange(self._position, self._position + chunk.num_rows)
        self._position += chunk.num_rows
        kept = np.ones(chunk.num_rows, bool)
        for bounds, beyond in ((config.minimum, np.less), (config.maximum, np.greater)):
            for name, bound in bounds.items():
                kept &= ~beyond(as_floats(chunk.columns[name], name), bound)
        self._filtered += int((~kept).sum())
        rows["length"] = self.lengths.of(chunk)
        finite = np.ones(chunk.num_rows, bool)
        for number, name in enumerate(self.metrics):
            rows[f"r{number}"] = as_floats(chunk.columns[name], name)
            finite &= np.isfinite(rows[f"r{number}"])
        if config.uncertainty:
            rows["sd"] = as_floats(chunk.columns[config.uncertainty], config.uncertainty)
            finite &= np.isfinite(rows["sd"])
        self._note("no tokens", chunk, kept & (rows["length"] <= 0))
        kept &= rows["length"] > 0
        self._note("non-finite ratings", chunk, kept & ~finite)
        kept &= finite
        rows["domain"] = self._domain(chunk)
        if config.cap_duplicates:
            rows["cap"] = _label_hashes(chunk.columns[next(iter(config.cap_duplicates))])
        if config.id is None:
            rows["id64"] = rows["position"]
        else:
            ids = chunk.columns[config.id]
            if ids.null_count:
                raise UserError(
                    f"{ids.null_count:,} rows have no id in '{config.id}'.", f"Name another column of ids, {_ROW_IDS}."
                )
            integers = pa.types.is_integer(ids.type)
            found.integer_ids &= integers  # one file may have numbers, another texts
            rows["id64"] = hash_ids(np.asarray(ids) if integers else ids.to_pylist())
        rows = rows[kept]
        self._count(rows)
        return rows

    def _domain(self, chunk: Chunk) -> Any:
        if self.config.domain is None:
            self._labels.setdefault(NO_DOMAIN, 0)
            return 0
        return _codes(chunk.columns[self.config.domain], self._labels)

    def _count(self, rows: NDArray[Any]) -> None:
        grow = len(self._labels) - len(self._tokens)
        self._tokens, self._rows = np.pad(self._tokens, (0, grow)), np.pad(self._rows, (0, grow))
        np.add.at(self._tokens, rows["domain"], rows["length"])
        self._rows += np.bincount(rows["domain"], minlength=len(self._rows))
        self.found.num_rows += len(rows)

    def _note(self, reason: str, chunk: Chunk, which: NDArray[np.bool_]) -> None:
        numbers = np.flatnonzero(which)
        self._bad_counts[reason] += len(numbers)
        for number in numbers[: _SHOWN - len(self._bad[reason])].tolist():
            place = f"{self.found.shards[chunk.shard]} row {chunk.first + number}"
            self._bad[reason].append(place if self.config.id is None else str(chunk.columns[self.config.id][number]))

    def finish(self) -> None:
        found, config = self.found, self.config
        while len(found.firsts) < len(found.shards):
            found.firsts.append(self._position)
        found.domains = list(self._labels)
        found.domain_tokens, found.domain_rows = self._tokens.tolist(), self._rows.tolist()
        empty, nonfinite = self._bad_counts["no tokens"], self._bad_counts["non-finite ratings"]
        if empty and not config.skip_empty:
            raise EmptyDocument(
                f"{empty:,} rows have no tokens: {', '.join(self._bad['no tokens'])}{' ...' * (empty > _SHOWN)}.",
                "Use --skip-empty.",
            )
        if nonfinite and not config.drop_nonfinite:
            some = ", ".join(self._bad["non-finite ratings"]) + " ..." * (nonfinite > _SHOWN)
            raise NonFiniteRating(
                f"{counted(nonfinite, 'rows have')} a rating that is null, not a number, or infinite: {some}.",
                "Use --drop-nonfinite.",
            )
        counts = {"filtered": self._filtered, "no tokens": empty, "non-finite ratings": nonfinite}
        found.dropped = {reason: count for reason, count in counts.items() if count}


def _codes(array: pa.Array, known: dict[Any, int]) -> NDArray[np.int32]:
    """Labels as numbers, which are given in the order of appearance."""
    if pa.types.is_list(array.type) or pa.types.is_struct(array.type):
        raise UserError(f"A column of labels holds {array.type}.", "Name a column of texts or integers.")
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    labels = ["" if label is None else str(label) for label in encoded.dictionary.to_pylist()]
    missing = known.setdefault("", len(known)) if encoded.null_count else 0
    table = np.array([known.setdefault(label, len(known)) for label in labels] or [0], np.int32)
    indices = np.asarray(pc.fill_null(encoded.indices, -1))
    return np.where(indices < 0, missing, table[indices]).astype(np.int32)


def _label_hashes(array: pa.Array) -> NDArray[np.uint64]:
    """64 bits of each label, `UNLABELED` where there is none: null, not a number, empty, or -1."""
    if pa.types.is_nested(array.type):
        raise UserError(f"A column of labels holds {array.type}.", "Name a column of texts or integers.")
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    labels = ["" if label is None or label != label else str(label) for label in encoded.dictionary.to_pylist()]
    hashes = hash_ids(labels) if labels else np.zeros(1, np.uint64)
    hashes[np.array([label in _NO_LABEL for label in labels] or [True])] = UNLABELED
    indices = np.asarray(pc.fill_null(encoded.indices, -1)).astype(np.int64)
    return np.where(indices < 0, UNLABELED, hashes[indices])


def _check_ids(found: Scan, table: RatedTable, path: str) -> None:
    """Look for two equal hashes, some ranges of them at a time so that memory stays bounded."""
    ranges = -(-found.num_rows // _SORTED_AT_ONCE)
    for number in range(ranges):
        parts = [
            rows["id64"] if ranges == 1 else rows["id64"][rows["id64"] % ranges == number] for rows in found.rows()
        ]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        ids.sort()
        twice = np.unique(ids[1:][ids[1:] == ids[:-1]])
        if len(twice):
            raise DuplicateIds(
                f"{counted(len(twice), 'ids are')} given to several rows in '{path}', such as"
                f" {_spell(found, table, path, twice[:_SHOWN])}.",
                f"Rows with one id would share their noise: make ids unique, name another column, {_ROW_IDS}.",
            )


def _spell(found: Scan, table: RatedTable, path: str, hashes: NDArray[np.uint64]) -> str:
    if found.integer_ids:
        return ", ".join(map(str, hashes.tolist()))
    names: set[Any] = set()
    for chunk in table.chunks([path]):
        values = chunk.columns[path].to_pylist()
        names |= {values[number] for number in np.flatnonzero(np.isin(hash_ids(values), hashes)).tolist()}
    return ", ".join(sorted(map(str, names)))
