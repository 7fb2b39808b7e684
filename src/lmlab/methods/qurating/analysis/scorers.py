"""Other signals of quality, each a column `{name}_average` like a rating, so that they share selection, plan and
report.

`perplexity` is the mean log-likelihood of a language model; `dsir` the importance weight of hashed n-grams (Xie et al.
2023); `linear` a classifier of hashed n-grams (as DCLM); `classifier` a rater's or an encoder's head regressed on
grades (as FineWeb-Edu); `buckets` ensembles of scorers (as Nemotron-CC).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.files import read_mapping, sha256_json, write_json

Floats = NDArray[np.float64]
BUCKETS = 10_000  # as DSIR has (Xie et al. 2023)
TIERS = ("low", "medium-low", "medium", "medium-high", "high")
_WORD = re.compile(r"\w+|[^\w\s]")
_PERCENTILES = 20  # as Nemotron-CC has
_AT_ONCE = 1024  # texts whose words are in memory


def hashed_counts(texts: Sequence[str], buckets: int = BUCKETS) -> Any:
    """Counts of hashed words and pairs of neighboring words, a sparse matrix [N, buckets]."""
    from scipy.sparse import csr_matrix, vstack

    parts = [_counts(texts[start : start + _AT_ONCE], buckets) for start in range(0, len(texts), _AT_ONCE)]
    return vstack(parts, "csr") if parts else csr_matrix((0, buckets))


def _counts(texts: Sequence[str], buckets: int) -> Any:
    """Those of some texts, as lists of all their words are much larger than the matrix."""
    from zlib import crc32

    from scipy.sparse import csr_matrix

    rows, columns = [], []
    for number, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        grams = words + [f"{a} {b}" for a, b in pairwise(words)]
        columns += [crc32(gram.encode("utf-8", "surrogatepass")) % buckets for gram in grams]
        rows += [number] * len(grams)
    return csr_matrix((np.ones(len(rows)), (rows, columns)), (len(texts), buckets))


def _normalized(counts: Any) -> Any:
    from sklearn.preprocessing import normalize

    return normalize(counts)


class DSIR:
    """Importance weights: log p_target - log p_raw of a text under bags of hashed n-grams.

    Attributes:
        log_ratio: of each bucket.
    """

    def __init__(self, log_ratio: Floats) -> None:
        self.log_ratio = log_ratio

    @classmethod
    def fit(cls, target: Iterable[str], raw: Iterable[str], buckets: int = BUCKETS) -> DSIR:
        """Learn from a sample of good text and one of the corpus.

        Raises:
            UserError: one of them is empty.
        """
        totals = [np.asarray(hashed_counts(list(texts), buckets).sum(0)).ravel() for texts in (target, raw)]
        if not all(total.sum() for total in totals):
            raise UserError("The target or the corpus has no words.", "Name a target of good text.")
        logs = [np.log((total + 1) / (total.sum() + buckets)) for total in totals]
        return cls(logs[0] - logs[1])

    def score(self, texts: Sequence[str]) -> Floats:
        """The weight of each text; the key of DSIR is this and a standard Gumbel variable: select it with tau 1 and
        without normalizing.
        """
        return np.asarray(hashed_counts(texts, len(self.log_ratio)) @ self.log_ratio)


class LinearClassifier:
    """Logistic regression on hashed n-grams, normalized to length 1.

    Attributes:
        weights, bias: of the buckets.
    """

    def __init__(self, weights: Floats, bias: float) -> None:
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, good: Sequence[str], other: Sequence[str], buckets: int = 2**16) -> LinearClassifier:
        """Learn to tell good texts from others.

        Raises:
            UserError: one of them is empty.
        """
        from sklearn.linear_model import LogisticRegression

        if not good or not other:
            raise UserError("A classifier needs good texts and others.")
        features = _normalized(hashed_counts([*good, *other], buckets))
        labels = np.r_[np.ones(len(good)), np.zeros(len(other))]
        # vectors have length 1, so that weights must be large to tell
        model = LogisticRegression(C=100.0, max_iter=200).fit(features, labels)
        return cls(model.coef_[0].astype(np.float64), float(model.intercept_[0]))

    def score(self, texts: Sequence[str]) -> Floats:
        """The logit of being good, of each text."""
        return np.asarray(_normalized(hashed_counts(texts, len(self.weights))) @ self.weights) + self.bias

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        used = np.flatnonzero(self.weights)
        values = {
            "buckets": len(self.weights),
            "bias": self.bias,
            "columns": used.tolist(),
            "weights": self.weights[used].tolist(),
        }
        write_json(path, {"kind": "linear", **values})

    @classmethod
    def load(cls, path: Path) -> LinearClassifier:
        """Read what `save` wrote."""
        found = read_mapping(path)
        weights = np.zeros(found["buckets"])
        weights[found["columns"]] = found["weights"]
        return cls(weights, found["bias"])


class GradeRegression:
    """Grades of 0 to 5 from features by ridge regression: a linear head on frozen embeddings or ratings."""

    def __init__(self, weights: Floats, bias: float) -> None:
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, features: Floats, grades: Sequence[float], ridge: float = 1.0) -> GradeRegression:
        """Learn from graded texts; features are [N, D]."""
        x, y = np.asarray(features, np.float64), np.asarray(grades, np.float64)
        center = x.mean(0)
        weights = np.linalg.solve(
            (x - center).T @ (x - center) + ridge * np.eye(x.shape[1]), (x - center).T @ (y - y.mean())
        )
        return cls(weights, float(y.mean() - center @ weights))

    def score(self, features: Floats) -> Floats:
        """The grade of each text, [N]."""
        return np.asarray(features, np.float64) @ self.weights + self.bias


def percentile_buckets(values: Floats, buckets: int = _PERCENTILES) -> NDArray[np.int64]:
    """The bucket, from 0, of the rank of each value; equal values share one."""
    order = np.sort(values)
    return (
        np.minimum(np.searchsorted(order, values, side="right") - 1, len(values) - 1) * buckets // max(1, len(values))
    )


def ensemble_buckets(scores: Floats, buckets: int = _PERCENTILES) -> NDArray[np.int64]:
    """The highest bucket over scorers, [N], of scores [N, S]."""
    return np.max([percentile_buckets(column, buckets) for column in np.asarray(scores).T], axis=0)


def tiers(bucket: NDArray[np.int64], buckets: int = _PERCENTILES) -> list[str]:
    """Five tiers of buckets, for use as labels of domains."""
    return [TIERS[place] for place in np.minimum(bucket * len(TIERS) // buckets, len(TIERS) - 1)]


class LikelihoodScorer:
    """Mean log-likelihood of a token, in nats, under a language model, of each text; NaN for a text without tokens.

    Each token is predicted from those before it in its window; the first of a window from the begin token.

    Attributes:
        precision: `fp32` or `bf16`, also where `auto` chose it.
        fingerprint: of the model, the window and the precision.
    """

    def __init__(self, place: str | Path, window: int = 1024, precision: str = "auto") -> None:
        import torch  # here, as the other scorers need none

        from lmlab.evals import ModelScorer
        from lmlab.models import weights_fingerprint
        from lmlab.runs import Model

        found = Model.find(place)
        self.tokenizer = found.tokenizer()
        model = found.load()
        self.scorer = ModelScorer(model, precision, share=False)
        self.precision = "fp32" if self.scorer.dtype == torch.float32 else "bf16"
        self.size = min(window, self.scorer.max_seq_len - 1)
        parts = [weights_fingerprint(model), self.tokenizer.fingerprint, self.size, self.precision]
        self.fingerprint = sha256_json(parts)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """The scores of texts, [N]."""
        from lmlab.evals import Window

        encoded = self.tokenizer.encode_batch(list(texts), "as_text")
        windows, owners = [], []
        for number, ids in enumerate(encoded):
            for start in range(0, len(ids), self.size):
                piece = ids[start : start + self.size]
                windows.append(Window([self.tokenizer.bos_id, *piece], len(piece)))
                owners.append(number)
        sums = np.zeros(len(texts))
        for window_number, score in self.scorer.score(windows):
            sums[owners[window_number]] += score.log_prob
        counts = np.array([len(ids) for ids in encoded], np.float64)
        return np.divide(sums, counts, out=np.full(len(texts), np.nan), where=counts > 0)


def log_likelihoods(place: str | Path, texts: Sequence[str], window: int = 1024, precision: str = "auto") -> Floats:
    """`LikelihoodScorer` of some texts, once."""
    return LikelihoodScorer(place, window, precision)(texts)
