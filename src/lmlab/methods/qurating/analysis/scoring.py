"""How the scores of rows are computed by any of several processes: from texts, from columns of scores, by a language
model, and from ranks that are known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmlab.distributed import Leases
from lmlab.errors import UserError
from lmlab.files import atomic_file, read_mapping, sha256_json, write_json
from lmlab.methods.qurating.analysis.scorers import Floats, GradeRegression, LikelihoodScorer, tiers
from lmlab.methods.qurating.selecting.tables.files import Maker
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, as_floats, as_texts
from lmlab.methods.qurating.selecting.tables.writing import TableWriter

BLOCK = 1024  # texts that are scored at once, and by a model lost when it is killed
_POLL_S = 0.5  # between looks while others score: less asks the file system often, more waits after the last block


class Scores(Protocol):
    """Scores of rows.

    Attributes:
        columns: that they are computed from.
        gives: what is known of each row, as new columns are called behind the name of the scores.
        fingerprint: what tells these scores from others.
    """

    columns: tuple[str, ...]
    gives: tuple[str, ...]
    fingerprint: str

    def of(self, chunk: Chunk) -> tuple[pa.Array, ...]:
        """What it gives, of each row."""


class ScoredFiles(Maker):
    """Files with more columns: `{name}_average`, and what else scores give.

    Attributes:
        added: the new columns.
    """

    def __init__(self, scores: Scores, name: str) -> None:
        self.scores = scores
        self.added = tuple(f"{name}_{each}" for each in scores.gives)

    @property
    def shares(self) -> bool:  # type: ignore[override]
        """A model's scores are shared by blocks, whatever the number of files."""
        return isinstance(self.scores, ScoresOfModel)

    def prepare(self, parts: Path) -> None:
        """Write what is known of all rows."""
        if isinstance(self.scores, ScoresOfRanks):
            self.scores.write(parts)

    def share(self, table: RatedTable, leases: Leases, parts: Path) -> None:
        """Score blocks of texts with the other processes."""
        if isinstance(self.scores, ScoresOfModel):
            self.scores.share(table, leases)

    def make(self, table: RatedTable, shard: int, parts: Path, path: Path) -> dict[str, int]:
        """Score a file."""
        with TableWriter(path) as writer:
            for chunk in table.chunks(self.scores.columns, whole=True, shards=[shard]):
                for column in self.added:
                    refuse_column(column, chunk.own)
                scored = {each: chunk.columns[each] for each in chunk.own}
                writer.write(pa.table(scored | dict(zip(self.added, self.scores.of(chunk), strict=True))))
            return {"rows": writer.num_rows}


def refuse_column(column: str, known: Sequence[str]) -> None:
    """Refuse to write scores over a column of the corpus."""
    if column in known:
        raise UserError(f"The corpus has a column '{column}' already.", "Give the scores another name with --name.")


class _Numbers:
    """Scores that are numbers and nothing else."""

    gives: tuple[str, ...] = ("average",)

    def of(self, chunk: Chunk) -> tuple[pa.Array, ...]:
        """The score of each row."""
        return (pa.array(self.numbers(chunk).astype(np.float64)),)

    def numbers(self, chunk: Chunk) -> Floats:
        """The score of each row."""
        raise NotImplementedError


class ScoresOfTexts(_Numbers):
    """Scores that a function gives to texts, each by itself."""

    def __init__(self, score: Callable[[Sequence[str]], Floats], text: str, fingerprint: str) -> None:
        self._score, self._text, self.fingerprint = score, text, fingerprint
        self.columns: tuple[str, ...] = (text,)

    def numbers(self, chunk: Chunk) -> Floats:
        """Block by block, so that what is in memory does not grow with the chunk."""
        return np.concatenate([np.zeros(0), *map(self._score, _blocks(chunk, self._text))])


class ScoresWithLabels:
    """Scores that a function gives to texts, with a label each."""

    gives: tuple[str, ...] = ("average", "label")

    def __init__(
        self, rate: Callable[[Sequence[str]], tuple[Floats, list[str | None]]], text: str, fingerprint: str
    ) -> None:
        self._rate, self._text, self.fingerprint = rate, text, fingerprint
        self.columns: tuple[str, ...] = (text,)

    def of(self, chunk: Chunk) -> tuple[pa.Array, ...]:
        """The score and the label of each row."""
        found = [self._rate(block) for block in _blocks(chunk, self._text)]
        scores = np.concatenate([np.zeros(0), *(scores for scores, _ in found)])
        return pa.array(scores), pa.array([label for _, labels in found for label in labels], pa.string())


class ScoresOfFeatures(_Numbers):
    """A regression on columns."""

    def __init__(self, regression: GradeRegression, columns: Sequence[str]) -> None:
        self._regression, self.columns = regression, tuple(columns)
        self.fingerprint = sha256_json([regression.weights.tolist(), regression.bias, *columns])

    def numbers(self, chunk: Chunk) -> Floats:
        """The grade of each row."""
        return self._regression.score(features_of(chunk, self.columns))


class ScoresOfRanks:
    """Buckets of all rows, which need the scores of all of them and so are known before.

    Arguments:
        bucket: of each row of the table.
        columns: that they come from.
    """

    gives: tuple[str, ...] = ("average", "tier")

    def __init__(self, bucket: NDArray[np.int64], columns: Sequence[str], firsts: Sequence[int]) -> None:
        self._bucket: NDArray[np.int64] | None = bucket
        self._firsts, self.columns = list(firsts), tuple(columns)
        self.fingerprint = sha256_json(list(columns))  # the rest depends on the corpus alone
        self._place = Path()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_bucket": None}

    def write(self, parts: Path) -> None:
        """Write them where all processes read them."""
        assert self._bucket is not None, "a copy has nothing to write"
        self._place = parts / "ranks.npy"
        with atomic_file(self._place) as file:
            np.save(file, self._bucket)
        self._bucket = None

    def of(self, chunk: Chunk) -> tuple[pa.Array, ...]:
        """The buckets of the rows, and their tiers."""
        if self._bucket is None:
            self._bucket = np.load(self._place, mmap_mode="r", allow_pickle=False)
        start = self._firsts[chunk.shard] + chunk.first
        bucket = np.asarray(self._bucket[start : start + chunk.num_rows])
        return pa.array(bucket.astype(np.float64)), pa.array(tiers(bucket))


class ScoresOfModel(_Numbers):
    """Log-likelihoods, which are kept by the content of blocks of texts: a call after a kill scores the others, and
    processes share blocks. The precision that is chosen automatically is the first one's: a process that finds the
    machine busy would choose another.

    Arguments:
        folder: of the scores.
        keep_loaded: keep the model in this process.
    """

    def __init__(self, model: Path, text: str, folder: Path, precision: str, keep_loaded: bool) -> None:
        self._model, self._text, self._folder = model, text, folder
        self.columns: tuple[str, ...] = (text,)
        noted = folder / "precision.json"
        if precision == "auto" and noted.exists():
            precision = str(read_mapping(noted).get("precision", precision))
        scorer = LikelihoodScorer(model, precision=precision)
        self.fingerprint, self._precision = scorer.fingerprint, scorer.precision
        write_json(noted, {"precision": self._precision})
        self._scorer: LikelihoodScorer | None = scorer if keep_loaded else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scorer": None}

    def numbers(self, chunk: Chunk) -> Floats:
        """The scores of the rows, computed where they are not there yet."""
        return np.concatenate([np.zeros(0), *(self._kept(block) for block in _blocks(chunk, self._text))])

    def share(self, table: RatedTable, leases: Leases) -> None:
        """Score the blocks that nobody holds, and come back when all are there."""
        left = self._pass(table, leases, None)
        while left := {name for name in left if not self._path(name).exists()}:
            time.sleep(_POLL_S)
            freed = [lease for name in left if (lease := leases.acquire(name)) is not None]  # whose holder has died
            for lease in freed:
                lease.release()
            if freed:
                left = self._pass(table, leases, left)

    def _pass(self, table: RatedTable, leases: Leases, wanted: set[str] | None) -> set[str]:
        """One pass over the corpus; the blocks that others hold."""
        held = set[str]()
        for chunk in table.chunks(self.columns):
            for block in _blocks(chunk, self._text):
                name = self._name(block)
                if self._path(name).exists() or (wanted is not None and name not in wanted):
                    continue
                if (lease := leases.acquire(name)) is None:
                    held.add(name)
                    continue
                with lease:
                    self._kept(block)
        return held

    def _kept(self, block: list[str]) -> Floats:
        path = self._path(self._name(block))
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False))
        if self._scorer is None:
            self._scorer = LikelihoodScorer(self._model, precision=self._precision)
        found = self._scorer(block)
        with atomic_file(path) as file:
            np.save(file, found)
        return found

    def _name(self, block: list[str]) -> str:
        return sha256_json([self.fingerprint, block])

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"


def _blocks(chunk: Chunk, text: str) -> Iterator[list[str]]:
    column = chunk.columns[text]
    for start in range(0, len(column), BLOCK):
        yield as_texts(column.slice(start, BLOCK), text)


def features_of(chunk: Chunk, columns: Sequence[str]) -> NDArray[np.float64]:
    """Columns of numbers as a matrix, [rows, columns]."""
    return np.stack([as_floats(chunk.columns[column], column) for column in columns], 1)
