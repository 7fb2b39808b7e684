"""The success rate of an attack and what it displaces, from stored thresholds: only the passages' own scores are new.

ASR@k: the share of queries of which some passage has a score strictly above that of the k-th best clean document.
This is that a passage is among the first k of corpus and passages together; a tie is no success.

Shapes: Q queries, A passages, K depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.measure.thresholds import CleanHits
from lmlab.retrieval import Qrels
from lmlab.retrieval.metrics import ndcg
from lmlab.stats import percentile_interval, resampled_means
from lmlab.words import counted

_RESAMPLES = 1000  # of an interval at 95 %: its ends then lie on 25 of the drawn means each
_CHUNK = 2048  # queries at once: more take memory for a copy in fp64


@dataclass(frozen=True)
class AttackReport:
    """What passages do to a set of queries.

    Attributes:
        asr: k -> share of queries with a passage among their first k.
        interval: k -> bounds of its 95 % bootstrap interval over queries.
        share: k -> mean share of the first k results that are passages.
        mean_rank: of the best passage (beyond the known depth it counts as the next rank).
        mrr: mean of 1 / rank of the best passage within the known depth.
        beats_gold: share of queries with relevant documents of which some passage is above all of those.
        ndcg_before, ndcg_after: clean nDCG@10 without and with the passages.
        poison_rate: passages for each clean document.
    """

    passages: int
    documents: int
    queries: int
    asr: dict[int, float]
    interval: dict[int, tuple[float, float]]
    share: dict[int, float]
    mean_rank: float
    mrr: float
    beats_gold: float | None
    ndcg_before: float | None
    ndcg_after: float | None
    poison_rate: float

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def passage_scores(queries_QH: NDArray[np.float32], passages_AH: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarities [Q, A], summed in fp64 and rounded as those of clean documents are, so that both compare."""
    wide = passages_AH.astype(np.float64).T
    parts = [
        (queries_QH[start : start + _CHUNK].astype(np.float64) @ wide).astype(np.float32)
        for start in range(0, len(queries_QH), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(passages_AH)), np.float32)


def success(scores_QA: NDArray[np.float32], hits: CleanHits, k: int) -> NDArray[np.bool_]:
    """Which queries have a passage among their first k, [Q]."""
    if not scores_QA.shape[1]:
        return np.zeros(len(scores_QA), bool)
    return scores_QA.max(1) > hits.tau(k)


def require_depth(k: int, documents: int, name: str = "", option: str = "--k") -> None:
    """Refuse a depth that a whole corpus does not have.

    Arguments:
        name: of the collection, where there are several.
        option: that names the depth.

    Raises:
        UserError: k is above the number of documents.
    """
    if k > documents:
        corpus = f"the corpus of {counted(documents, 'documents')} of '{name}'" if name else ""
        corpus = corpus or f"a corpus of {counted(documents, 'documents')}"
        raise UserError(f"The success at {k} means nothing in {corpus}.", f"Lower {option}.")


def evaluate_attack(
    scores_QA: NDArray[np.float32],
    hits: CleanHits,
    documents: int,
    k_values: Sequence[int] = (1, 3, 5, 10, 20, 50, 100),
    query_ids: Sequence[str] | None = None,
    qrels: Qrels | None = None,
    passage_ids: Sequence[str] | None = None,
    seed: int = 0,
) -> AttackReport:
    """All figures of an attack.

    Arguments:
        scores_QA: of each passage for each query (`passage_scores`).
        documents: of the clean corpus.
        query_ids, qrels, passage_ids: for what it displaces; without them those figures are None.

    Raises:
        UserError: there are no queries, or k is above the clean corpus.
    """
    if not len(scores_QA):
        raise UserError("There are 0 queries to evaluate on.")
    require_depth(max(k_values), documents)
    count = scores_QA.shape[1]
    asr, interval, share = {}, {}, {}
    places_QA = _places(scores_QA, hits)
    for k in k_values:
        hit = success(scores_QA, hits, k)
        found = percentile_interval(float(hit.mean()), resampled_means(hit, _RESAMPLES, seed))
        asr[k], interval[k] = found.value, (found.low, found.high)
        share[k] = float((places_QA <= k).sum(1).mean() / k) if count else 0.0
    best = places_QA.min(1) if count else np.full(len(scores_QA), hits.depth + 1)
    seen = best <= hits.depth
    beats, before, after = _displaced(scores_QA, hits, query_ids, qrels, passage_ids)
    return AttackReport(
        count,
        documents,
        len(scores_QA),
        asr,
        interval,
        share,
        float(best.mean()),
        float(np.where(seen, 1 / best, 0.0).mean()),
        beats,
        before,
        after,
        count / documents if documents else math.nan,
    )


def _places(scores_QA: NDArray[np.float32], hits: CleanHits) -> NDArray[np.int64]:
    """The rank of each passage among clean documents and passages, [Q, A]; ties go to the clean."""
    order = np.argsort(-scores_QA, axis=1, kind="stable")
    ahead = np.empty_like(order)
    np.put_along_axis(ahead, order, np.broadcast_to(np.arange(scores_QA.shape[1]), order.shape), 1)
    clean = np.stack(
        [np.searchsorted(-row, -scores, side="right") for row, scores in zip(hits.scores_QK, scores_QA, strict=True)]
    )
    return clean + ahead + 1


def _displaced(
    scores_QA: NDArray[np.float32],
    hits: CleanHits,
    query_ids: Sequence[str] | None,
    qrels: Qrels | None,
    passage_ids: Sequence[str] | None,
) -> tuple[float | None, float | None, float | None]:
    if qrels is None or query_ids is None or not any(id in qrels for id in query_ids):
        return None, None, None
    ids = hits.document_ids
    names = list(passage_ids) if passage_ids is not None else [f"passage {n}" for n in range(scores_QA.shape[1])]
    before, after, beaten = [], [], []
    for number, query in enumerate(query_ids):
        if query not in qrels:
            continue
        judged = qrels[query]
        clean = [ids[row] for row in hits.rows_QK[number]]
        before.append(ndcg(clean, judged, 10))
        merged: list[tuple[float, int, str]] = [
            (-float(score), 0, id) for score, id in zip(hits.scores_QK[number][:10], clean[:10], strict=True)
        ]
        merged += [(-float(score), 1, name) for score, name in zip(scores_QA[number], names, strict=True)]
        after.append(ndcg([name for _, _, name in sorted(merged, key=lambda each: each[:2])], judged, 10))
        if not any(grade > 0 for grade in judged.values()):
            continue
        gold = [float(score) for score, id in zip(hits.scores_QK[number], clean, strict=True) if judged.get(id, 0) > 0]
        best = float(scores_QA[number].max(initial=-np.inf))
        beaten.append(best > (max(gold) if gold else float(hits.scores_QK[number][-1])))
    return float(np.mean(beaten)) if beaten else None, float(np.mean(before)), float(np.mean(after))


def success_by_count(scores_QA: NDArray[np.float32], hits: CleanHits, k: int) -> dict[int, float]:
    """The success rate at k of the first passages alone, in the order given: how much each further one adds."""
    count = scores_QA.shape[1]
    best = np.maximum.accumulate(scores_QA, axis=1) > hits.tau(k)[:, None]
    shown = [n for size in (1, 10, 100, 1000) for n in (size, 2 * size, 3 * size, 5 * size) if n < count]
    return {n: float(best[:, n - 1].mean()) for n in [*shown, count] if n}


def smallest_k(
    scores_QA: NDArray[np.float32], hits: CleanHits, k: int, target: float, seed: int = 0
) -> tuple[int | None, int | None]:
    """How many passages, in the order given, reach a success rate: by the rate itself, and by the lower bound of its
    95 % interval; None where they do not.
    """
    best = np.maximum.accumulate(scores_QA, axis=1) > hits.tau(k)[:, None]
    plain = sure = None
    for count in range(1, scores_QA.shape[1] + 1):
        rate = float(best[:, count - 1].mean())
        if plain is None and rate >= target:
            plain = count
        if rate >= target:
            low = percentile_interval(rate, resampled_means(best[:, count - 1], _RESAMPLES, seed)).low
            if low >= target:
                sure = count
                break
    return plain, sure
