"""Retrieval metrics as trec_eval computes them: documents by score in fp32, ties by id descending, gains linear in the
grade, discount log2(rank + 1), ideal order from the judgments.

A mean is over the queries that the judgments hold; a query of which nothing was found counts 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from lmlab.errors import UserError
from lmlab.retrieval.collections.records import Qrels
from lmlab.retrieval.run_files import Run, ranked

DEFAULT_K = (1, 3, 5, 10, 20, 50, 100)  # the ranks at which papers of retrieval and of question answering report


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run.

    Attributes:
        means: metric -> mean over all judged queries.
        by_query: query -> metric -> figure.
        without_hits: judged queries of which the run holds nothing.
        self_matches: results that were their own query, and were taken out.
    """

    means: dict[str, float]
    by_query: dict[str, dict[str, float]]
    without_hits: int
    self_matches: int


def evaluate_run(run: Run, qrels: Qrels, k_values: Sequence[int] = DEFAULT_K, remove_self: bool = True) -> Evaluation:
    """nDCG, MAP, Recall, P, MRR, R_cap (recall over min(k, relevant)) and Hole (share judged for no query), all at k.

    Arguments:
        remove_self: take out results whose id is the query's, as ArguAna and Quora need.

    Raises:
        UserError: there are no judged queries, or a k is below 1.
    """
    if not qrels:
        raise UserError("The judgments hold 0 queries.")
    if min(k_values) < 1:
        raise UserError(f"k is {min(k_values)}; it must be at least 1.")
    removed = 0
    by_query = {}
    annotated = {document for judged in qrels.values() for document in judged}
    for query, judged in qrels.items():
        found = run.get(query, {})
        if remove_self and query in found:
            removed += 1
            found = {document: score for document, score in found.items() if document != query}
        order = [document for document, _ in ranked(found)]
        by_query[query] = {
            f"{name}@{k}": measure(order, judged, k) for name, measure in _MEASURES.items() for k in k_values
        }
        by_query[query] |= {f"Hole@{k}": holes(order, annotated, k) for k in k_values}
    names = next(iter(by_query.values()))
    means = {name: math.fsum(each[name] for each in by_query.values()) / len(by_query) for name in names}
    return Evaluation(means, by_query, sum(not run.get(query) for query in qrels), removed)


Judged = Mapping[str, int]


def ndcg(order: Sequence[str], judged: Judged, k: int) -> float:
    """Discounted gain over that of the ideal order."""
    ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    best = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal[:k], 1))
    gain = sum(max(0, judged.get(document, 0)) / math.log2(rank + 1) for rank, document in enumerate(order[:k], 1))
    return gain / best if best else 0.0


def average_precision(order: Sequence[str], judged: Judged, k: int) -> float:
    """Mean precision at the relevant documents among the first k, over all relevant ones."""
    total, hits, relevant = 0.0, 0, _relevant(judged)
    for rank, document in enumerate(order[:k], 1):
        if judged.get(document, 0) > 0:
            hits += 1
            total += hits / rank
    return total / relevant if relevant else 0.0


def recall(order: Sequence[str], judged: Judged, k: int) -> float:
    """Share of relevant documents among the first k."""
    relevant = _relevant(judged)
    return _hits(order, judged, k) / relevant if relevant else 0.0


def capped_recall(order: Sequence[str], judged: Judged, k: int) -> float:
    """Recall over the number of relevant documents that k results can hold."""
    relevant = min(k, _relevant(judged))
    return _hits(order, judged, k) / relevant if relevant else 0.0


def precision(order: Sequence[str], judged: Judged, k: int) -> float:
    """Share of relevant ones among k results."""
    return _hits(order, judged, k) / k


def reciprocal_rank(order: Sequence[str], judged: Judged, k: int) -> float:
    """1 / rank of the first relevant document among the first k."""
    return next((1 / rank for rank, document in enumerate(order[:k], 1) if judged.get(document, 0) > 0), 0.0)


def holes(order: Sequence[str], annotated: Set[str], k: int) -> float:
    """Share of k results that are judged for no query of the collection, as BEIR counts them."""
    return sum(document not in annotated for document in order[:k]) / k


def _relevant(judged: Judged) -> int:
    return sum(grade > 0 for grade in judged.values())


def _hits(order: Sequence[str], judged: Judged, k: int) -> int:
    return sum(judged.get(document, 0) > 0 for document in order[:k])


_MEASURES: dict[str, Callable[[Sequence[str], Judged, int], float]] = {
    "nDCG": ndcg,
    "MAP": average_precision,
    "Recall": recall,
    "P": precision,
    "MRR": reciprocal_rank,
    "R_cap": capped_recall,
}
