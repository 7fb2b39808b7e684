"""Scoring a corpus on the disk by other signals than a rater: each file gets a copy with one more column."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.data import Reject, record_source
from lmlab.errors import UserError, did_you_mean
from lmlab.files import OwnedFolder, check_owner, sha256_json
from lmlab.methods.qurating.analysis.fasttext import FastTextScorer
from lmlab.methods.qurating.analysis.scorers import DSIR, GradeRegression, LinearClassifier, ensemble_buckets
from lmlab.methods.qurating.analysis.scoring import (
    ScoredFiles,
    Scores,
    ScoresOfFeatures,
    ScoresOfModel,
    ScoresOfRanks,
    ScoresOfTexts,
    ScoresWithLabels,
    features_of,
    refuse_column,
)
from lmlab.methods.qurating.selecting.tables.files import Processes, make_files
from lmlab.methods.qurating.selecting.tables.table import RatedTable, as_texts

KINDS = ("ppl", "dsir", "linear", "classifier", "buckets", "fasttext")
_COMMAND = "lmlab quality score"
_SAMPLE = 20_000  # texts that a scorer learns the corpus from: more take memory, fewer leave rare words out


def score_corpus(
    kind: str,
    table: Sequence[str],
    out: Path,
    name: str,
    *,
    text: str = "text",
    target: str | None = None,
    model: Path | None = None,
    label: str | None = None,
    grades: str | None = None,
    columns: Sequence[str] = (),
    id: str | None = None,
    precision: str = "auto",
    processes: Processes | None = None,
) -> int:
    """Write Parquet files with the column `{name}_average`; `buckets` adds `{name}_tier`, and `fasttext` without a
    label `{name}_label`, the most likely one. Returns the number of rows.

    Arguments:
        model: of `ppl` a language model, of `fasttext` a file of that library.
        label: whose probability `fasttext` gives; None for the most likely one's.
        precision: of the language model: auto, fp32 or bf16.
        processes: who shares the work, file by file, and of `ppl` block by block.

    Raises:
        UserError: an unknown kind, what it needs is not given, or the corpus has such a column.
    """
    if kind not in KINDS:
        raise UserError(f"There is no scorer '{kind}'. {did_you_mean(kind, KINDS)}")
    processes, rated = processes or Processes(), RatedTable(table)
    check_owner(out, _COMMAND, rated.files)
    if label is not None and kind != "fasttext":
        raise UserError(f"The scorer '{kind}' has no labels.", "Leave out --label, or score with fasttext.")
    classifier: LinearClassifier | None = None
    scores: Scores
    match kind:
        case "ppl":
            place = _need(model, "--model, a language model")
            rated.require(text)
            scores = ScoresOfModel(place, text, out / ".scores", precision, processes.workers == 1)
        case "dsir":
            weights = DSIR.fit(_read(_need(target, "--target, good texts"), text), _sample(rated, text))
            scores = ScoresOfTexts(weights.score, text, sha256_json(weights.log_ratio.tolist()))
        case "fasttext":
            rated.require(text)
            tagger = FastTextScorer(_need(model, "--model, a file of fastText"), label)
            if label is None:
                scores = ScoresWithLabels(tagger.rate, text, tagger.fingerprint)
            else:
                scores = ScoresOfTexts(tagger.score, text, tagger.fingerprint)
        case "linear":
            good = _read(_need(target, "--target, good texts"), text)
            classifier = LinearClassifier.fit(good, _sample(rated, text, max(1000, len(good))))
            print_of = sha256_json([classifier.weights.tolist(), classifier.bias])
            scores = ScoresOfTexts(classifier.score, text, print_of)
        case "classifier":
            features = list(columns) or [column for column in rated.columns if column.endswith("_average")]
            regression = _regression(rated, features, _need(grades, "--grades, graded texts"), id or "id")
            scores = ScoresOfFeatures(regression, features)
        case _:
            scores = _buckets(rated, _need(list(columns), "--columns, of scores"))

    maker = ScoredFiles(scores, name)
    for column in maker.added:
        refuse_column(column, rated.columns)

    def notes(folder: OwnedFolder) -> None:
        if classifier is not None:
            classifier.save(folder.new("linear.json", data=False))

    settings = [kind, name, text, scores.fingerprint]
    counts = make_files(table, out, _COMMAND, maker, _file_name, settings, processes, notes)
    shutil.rmtree(out / ".scores", ignore_errors=True)
    return counts["rows"]


def _file_name(number: int, count: int) -> str:
    return f"{number:05d}.parquet"


def _buckets(rated: RatedTable, columns: Sequence[str]) -> ScoresOfRanks:
    """The bucket of each row: ranks need all scores, and no other column."""
    for column in columns:
        rated.require(column)
    parts, firsts, rows = [np.zeros((0, len(columns)))], [0] * len(rated.shards), [0] * len(rated.shards)
    for chunk in rated.chunks(list(columns)):
        parts.append(features_of(chunk, columns))
        rows[chunk.shard] += chunk.num_rows
    firsts = [sum(rows[:shard]) for shard in range(len(rows))]
    whole = np.concatenate(parts)
    return ScoresOfRanks(ensemble_buckets(whole) if len(whole) else np.zeros(0, np.int64), columns, firsts)


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
        x = features_of(chunk, features)
        for place, key in enumerate(chunk.columns[id].to_pylist()):
            if str(key) in known and np.isfinite(x[place]).all():
                rows.append(x[place])
                targets.append(known[str(key)])
    if len(rows) < 2:
        raise UserError(
            f"Only {len(rows)} rows have a grade in '{grades}'.", "Its field 'index' must hold the ids of rows."
        )
    return GradeRegression.fit(np.array(rows), targets)


def _sample(rated: RatedTable, text: str, limit: int = _SAMPLE) -> list[str]:
    """Some texts, spread evenly over the corpus."""
    total = sum(chunk.num_rows for chunk in rated.chunks([rated.require(text)]))
    step = max(1, total // limit)
    return [
        value
        for chunk in rated.chunks([text])
        for value in as_texts(chunk.columns[text], text)[(-chunk.first) % step :: step]
    ]


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
