"""Scoring a corpus on the disk by other signals than a rater: each file gets a copy with one more column."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmlab.data import Reject, record_source
from lmlab.errors import UserError, did_you_mean
from lmlab.files import atomic_file, check_owner, owned_folder, sha256_json
from lmlab.methods.qurating.analysis.scorers import (
    DSIR,
    GradeRegression,
    LikelihoodScorer,
    LinearClassifier,
    ensemble_buckets,
    tiers,
)
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, as_floats
from lmlab.methods.qurating.selecting.tables.writing import TableWriter

KINDS = ("ppl", "dsir", "linear", "classifier", "buckets")
_COMMAND = "lmlab quality score"
_SAMPLE = 20_000
_BLOCK = 1024  # texts that are scored at once by a model, and lost when it is killed
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
    check_owner(out, _COMMAND, rated.files)
    features: list[str] = []
    classifier: LinearClassifier | None = None
    match kind:
        case "ppl":
            scorer = LikelihoodScorer(_need(model, "--model, a language model"))
            kept = KeptScores(out / ".scores", scorer.fingerprint)
            score: Score = lambda chunk: kept.of(_texts(chunk, text), scorer)  # noqa: E731
        case "dsir":
            weights = DSIR.fit(_read(_need(target, "--target, good texts"), text), _sample(rated, text))
            score = lambda chunk: weights.score(_texts(chunk, text))  # noqa: E731
        case "linear":
            good = _read(_need(target, "--target, good texts"), text)
            classifier = LinearClassifier.fit(good, _sample(rated, text, max(1000, len(good))))
            fitted = classifier
            score = lambda chunk: fitted.score(_texts(chunk, text))  # noqa: E731
        case "classifier":
            features = list(columns) or [column for column in rated.columns if column.endswith("_average")]
            regression = _regression(rated, features, _need(grades, "--grades, graded texts"), id or "id")
            score = lambda chunk: regression.score(_features(chunk, features))  # noqa: E731
        case _:
            bucket = _buckets(rated, _need(list(columns), "--columns, of scores"))
            score = lambda chunk: next(bucket)  # noqa: E731
    read = [text] if kind in ("ppl", "dsir", "linear") else features
    column, count = f"{name}_average", 0
    with owned_folder(out, _COMMAND, [kind, name, text], rated.files) as folder:
        if classifier is not None:
            classifier.save(folder.new("linear.json", data=False))
        for shard, chunks in groupby(rated.chunks(read, whole=True), lambda chunk: chunk.shard):
            with TableWriter(folder.new(f"{shard:05d}.parquet")) as writer:
                for chunk in chunks:
                    scores = score(chunk)
                    scored = {each: chunk.columns[each] for each in chunk.own}
                    scored[column] = pa.array(scores.astype(np.float64))
                    if kind == "buckets":
                        scored[f"{name}_tier"] = pa.array(tiers(scores.astype(np.int64)))
                    writer.write(pa.table(scored))
                    count += chunk.num_rows
    shutil.rmtree(out / ".scores", ignore_errors=True)
    return count


class KeptScores:
    """Scores of blocks of texts that survive a kill, by the content of the block.

    Arguments:
        scorer: what tells it from others.
    """

    def __init__(self, folder: Path, scorer: str) -> None:
        self.folder, self._scorer = folder, scorer

    def of(self, texts: list[str], score: Callable[[Sequence[str]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """The scores of texts, computed where they are not there yet."""
        parts = [np.zeros(0)]
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            path = self.folder / f"{sha256_json([self._scorer, block])}.npy"
            if path.exists():
                parts.append(np.load(path, allow_pickle=False))
                continue
            parts.append(score(block))
            with atomic_file(path) as file:
                np.save(file, parts[-1])
        return np.concatenate(parts)


def _buckets(rated: RatedTable, columns: Sequence[str]) -> Iterator[NDArray[np.float64]]:
    """The bucket of each row, chunk by chunk: ranks need all scores, and no other column."""
    for column in columns:
        rated.require(column)
    parts = [_features(chunk, columns) for chunk in rated.chunks(list(columns))]
    bucket = ensemble_buckets(np.concatenate(parts)) if parts else np.zeros(0)
    sizes = np.cumsum([len(part) for part in parts])[:-1]
    return (each.astype(np.float64) for each in np.split(bucket, sizes))


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


def _need(value: Any, what: str) -> Any:
    if not value:
        raise UserError(f"This scorer needs {what}.")
    return value
