"""Scoring a corpus on the disk by other signals than a rater: each file gets a copy with one more column."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmlab.data import Reject, record_source
from lmlab.errors import UserError, did_you_mean
from lmlab.files import atomic_file
from lmlab.methods.qurating.analysis.scorers import (
    DSIR,
    GradeRegression,
    LinearClassifier,
    ensemble_buckets,
    log_likelihoods,
    tiers,
)
from lmlab.methods.qurating.selecting.table import Chunk, RatedTable, as_floats

KINDS = ("ppl", "dsir", "linear", "classifier", "buckets")
_SAMPLE = 20_000
Score = Callable[[Chunk], NDArray[np.float64]]


def score_corpus(
    kind: str,
    table: Sequence[str],
    out: Path,
    name: str,
    *,
    text: str = "text",
    target: str | None = None,
    model: Path | None = None,
    grades: str | None = None,
    columns: Sequence[str] = (),
    id: str | None = None,
) -> int:
    """Write Parquet files with the column `{name}_average`; `buckets` adds `{name}_tier` too. Returns the number of
    rows.

    Raises:
        UserError: an unknown kind, or what it needs is not given.
    """
    if kind not in KINDS:
        raise UserError(f"There is no scorer '{kind}'. {did_you_mean(kind, KINDS)}")
    rated = RatedTable(table)
    own = rated.columns
    match kind:
        case "ppl":
            directory = _need(model, "--model, a language model")
            score: Score = lambda chunk: log_likelihoods(directory, _texts(chunk, text))  # noqa: E731
        case "dsir":
            weights = DSIR.fit(_read(_need(target, "--target, good texts"), text), _sample(rated, text))
            score = lambda chunk: weights.score(_texts(chunk, text))  # noqa: E731
        case "linear":
            good = _read(_need(target, "--target, good texts"), text)
            classifier = LinearClassifier.fit(good, _sample(rated, text, max(1000, len(good))))
            classifier.save(out / "linear.json")
            score = lambda chunk: classifier.score(_texts(chunk, text))  # noqa: E731
        case "classifier":
            features = list(columns) or [column for column in own if column.endswith("_average")]
            regression = _regression(rated, features, _need(grades, "--grades, graded texts"), id or "id")
            score = lambda chunk: regression.score(_features(chunk, features))  # noqa: E731
        case _:
            return _write_buckets(rated, out, name, _need(list(columns), "--columns, of scores"))
    count = 0
    for shard in range(len(rated.shards)):
        parts = []
        for chunk in rated.chunks(list(dict.fromkeys([*own, *([text] if kind in ("ppl", "dsir", "linear") else [])]))):
            if chunk.shard == shard:
                scored = pa.table({column: chunk.columns[column] for column in own}).append_column(
                    f"{name}_average", pa.array(score(chunk))
                )
                parts.append(scored)
                count += len(scored)
        _write(parts, out, shard)
    return count


def _write_buckets(rated: RatedTable, out: Path, name: str, columns: Sequence[str]) -> int:
    for column in columns:
        rated.require(column)
    scores = np.concatenate([_features(chunk, columns) for chunk in rated.chunks(list(columns))])
    bucket = ensemble_buckets(scores)
    labels, start = tiers(bucket), 0
    for shard in range(len(rated.shards)):
        parts = []
        for chunk in rated.chunks(rated.columns):
            if chunk.shard == shard:
                stop = start + chunk.num_rows
                table = pa.table(dict(chunk.columns)).append_column(
                    f"{name}_average", pa.array(bucket[start:stop].astype(np.float64))
                )
                parts.append(table.append_column(f"{name}_tier", pa.array(labels[start:stop])))
                start = stop
        _write(parts, out, shard)
    return len(bucket)


def _regression(rated: RatedTable, features: Sequence[str], grades: str, id: str) -> GradeRegression:
    known: dict[str, float] = {}
    for where, record in _records(grades):
        index, average = record.get("index"), record.get("average")
        if not isinstance(index, str | int) or not isinstance(average, int | float) or not math.isfinite(average):
            raise UserError(f"{where}: a graded text needs 'index', the id of a row, and 'average', a number.")
        if average >= 0:
            known[str(index)] = float(average)
    rows, targets = [], []
    for chunk in rated.chunks([rated.require(id), *map(rated.require, features)]):
        x = _features(chunk, features)
        for place, key in enumerate(chunk.columns[id].to_pylist()):
            if str(key) in known and np.isfinite(x[place]).all():
                rows.append(x[place])
                targets.append(known[str(key)])
    if len(rows) < 2:
        raise UserError(
            f"Only {len(rows)} rows have a grade in '{grades}'.", "Its field 'index' must hold the ids of rows."
        )
    return GradeRegression.fit(np.array(rows), targets)


def _features(chunk: Chunk, columns: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([as_floats(chunk.columns[column], column) for column in columns], 1)


def _texts(chunk: Chunk, text: str) -> list[str]:
    return [value or "" for value in chunk.columns[text].to_pylist()]


def _sample(rated: RatedTable, text: str, limit: int = _SAMPLE) -> list[str]:
    """Some texts, spread evenly over the corpus."""
    total = sum(chunk.num_rows for chunk in rated.chunks([rated.require(text)]))
    step = max(1, total // limit)
    return [value for chunk in rated.chunks([text]) for value in _texts(chunk, text)[(-chunk.first) % step :: step]]


def _read(location: str, text: str) -> list[str]:
    texts = []
    for where, record in _records(location):
        if not isinstance(record.get(text), str):
            raise UserError(f"{where} has no text in the field '{text}'.", "Name it with --text-field.")
        texts.append(record[text])
    return texts


def _records(location: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for where, record in record_source(location).records():
        if isinstance(record, Reject) or not isinstance(record, dict):
            raise UserError(f"{where} cannot be read.")
        yield where, record


def _write(parts: Sequence[pa.Table], out: Path, shard: int) -> None:
    with atomic_file(out / f"{shard:05d}.parquet") as file:
        pq.write_table(pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({}), file)


def _need(value: Any, what: str) -> Any:
    if not value:
        raise UserError(f"This scorer needs {what}.")
    return value
