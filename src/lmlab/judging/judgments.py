"""Judgments on the disk, in the layout of the published data sets, in the flat layout, and single grades.

A row has the `texts` of a group and, for each criterion, matrices [k][k] of votes for the first and the second text
(`{c}_votes_a`, `{c}_votes_b`) and of soft labels (`{c}_average`, [a][b] = P(b is better than a), -100 where missing).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmlab.data import Reject, record_source
from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, json_value
from lmlab.judging.votes import MISSING

Matrix = NDArray[np.float64]
_SLACK = 1e-3  # how far P[i, j] + P[j, i] may miss 1: files round their labels
_AVERAGE = "_average"


class BadJudgment(UserError):
    """A matrix of judgments is not square, or not of probabilities of opposite events."""


@dataclass(frozen=True)
class Judgment:
    """What a judge thinks of a group of texts.

    Attributes:
        texts: k of them.
        average: by criterion the soft labels, [k, k].
        votes: by criterion the votes for the first and for the second text, [k, k] each.
        ids, domains: of the documents that the texts are from.
        prompts: by criterion the hash of the prompt.
    """

    texts: tuple[str, ...]
    average: Mapping[str, Matrix]
    votes: Mapping[str, tuple[Matrix, Matrix]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """The number of texts."""
        return len(self.texts)

    def row(self) -> dict[str, Any]:
        """The published layout, with ids, domains and hashes of prompts beside it."""
        row: dict[str, Any] = {"texts": list(self.texts)}
        for name, matrix in self.average.items():
            if name in self.votes:
                row[f"{name}_votes_a"], row[f"{name}_votes_b"] = (votes.tolist() for votes in self.votes[name])
            row[f"{name}{_AVERAGE}"] = matrix.tolist()
        return row | {
            "ids": list(self.ids),
            "domains": list(self.domains),
            "prompts": json.dumps(dict(self.prompts), sort_keys=True),
        }


def check_labels(matrix: Any, k: int, where: str) -> Matrix:
    """The matrix in float64.

    Raises:
        BadJudgment: it is not [k, k], has values that are no probabilities, or P + P^T differs from 1 by more than
            1e-3; -100 is exempt.
    """
    try:
        labels = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        raise BadJudgment(f"{where}: the labels are no matrix of numbers.") from None
    if labels.shape != (k, k):
        raise BadJudgment(
            f"{where}: the labels are {' x '.join(map(str, labels.shape))} for {k} texts.", f"They must be {k} x {k}."
        )
    np.fill_diagonal(labels, MISSING)
    known = labels != MISSING
    if not ((labels[known] >= 0) & (labels[known] <= 1)).all():
        raise BadJudgment(f"{where}: a label is neither between 0 and 1 nor -100.")
    wrong = known & known.T & (np.abs(labels + labels.T - 1) > _SLACK)
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise BadJudgment(
            f"{where}: P[{i}][{j}] = {labels[i, j]:g} and P[{j}][{i}] = {labels[j, i]:g} do not add up to 1."
        )
    return labels


@reads("a file of judgments")
def read_judgments(location: str | Path) -> Iterator[Judgment]:
    """Judgments from a file or folder (Parquet, Arrow, JSON lines) in the published or the flat layout.

    Raises:
        BadJudgment: labels that cannot be, with the row.
        UserError: the location holds no judgments.
    """
    for number, (where, record) in enumerate(record_source(str(location)).records(), 1):
        if isinstance(record, Reject):
            raise UserError(f"{record.where} cannot be read: {record.reason}.")
        if "texts" in record:
            yield _published(record, f"{where} (row {number})")
        elif "comparisons_avg" in record:
            yield _flat(record, f"{where} (row {number})")
        else:
            raise UserError(
                f"'{where}' is no judgment: it has neither 'texts' nor 'comparisons_avg'.",
                f"It has: {', '.join(record)}.",
            )


def _published(record: dict[str, Any], where: str) -> Judgment:
    texts = tuple(record["texts"])
    k = len(texts)
    names = [key.removesuffix(_AVERAGE) for key in record if key.endswith(_AVERAGE)]
    if not names:
        raise BadJudgment(f"{where}: there is no column of the form NAME{_AVERAGE}.")
    average = {name: check_labels(record[f"{name}{_AVERAGE}"], k, f"{where}, {name}") for name in names}
    votes = {}
    for name in names:
        pair = record.get(f"{name}_votes_a"), record.get(f"{name}_votes_b")
        if pair[0] is not None and pair[1] is not None:
            votes[name] = (np.array(pair[0], np.float64), np.array(pair[1], np.float64))
    prompts = json_value(record.get("prompts") or "{}")
    return Judgment(texts, average, votes, tuple(record.get("ids") or ()), tuple(record.get("domains") or ()), prompts)


def _flat(record: dict[str, Any], where: str) -> Judgment:
    name = record.get("criterion") or "quality"
    p = float(record["comparisons_avg"])
    matrix = [[MISSING, p], [1 - p if p != MISSING else MISSING, MISSING]]
    ids = tuple(str(record[key]) for key in ("index_a", "index_b")) if "index_a" in record else ()
    return Judgment((record["texts_a"], record["texts_b"]), {name: check_labels(matrix, 2, where)}, {}, ids)


def write_judgments(judgments: Sequence[Judgment], path: str | Path) -> None:
    """Write the published layout: Parquet, or JSON lines for the suffix .jsonl."""
    path = Path(path)
    rows = [judgment.row() for judgment in judgments]
    with atomic_file(path) as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)


def flat_rows(judgments: Sequence[Judgment], name: str) -> Iterator[dict[str, Any]]:
    """The flat layout of one criterion: a row for each pair, with the shares of votes for the second text in both
    orders.
    """
    for number, judgment in enumerate(judgments):
        ids = judgment.ids or tuple(f"{number}-{place}" for place in range(judgment.k))
        for i, j in combinations(range(judgment.k), 2):
            row = {"index_a": ids[i], "index_b": ids[j], "texts_a": judgment.texts[i], "texts_b": judgment.texts[j]}
            forward, backward = (_share(judgment, name, *place) for place in ((i, j), (j, i)))
            average = float(judgment.average[name][i, j])
            yield {
                **row,
                "comparisons_forward": forward,
                "comparisons_backward": backward,
                "comparisons_avg": average,
                "criterion": name,
            }


def _share(judgment: Judgment, name: str, i: int, j: int) -> float:
    if name not in judgment.votes:
        return MISSING
    a, b = (float(votes[i, j]) for votes in judgment.votes[name])
    return b / (a + b) if a >= 0 and b >= 0 and a + b > 0 else MISSING
