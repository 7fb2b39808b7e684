"""What detectors are worth: how much they tell, what success they leave, and what they cost in clean quality.

A third of the clean documents is what detectors are fitted on, thresholds come from another, and false positives are
counted on the last.

Shapes: Q queries, A passages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.defend.detector import (
    COSTLY,
    Detector,
    DetectorContext,
    Passages,
    Scores,
    Threshold,
    average_precision,
    make_detector,
)
from lmlab.methods.corpus_poisoning.defend.gate import AdmissionGate
from lmlab.methods.corpus_poisoning.measure.evaluate import evaluate_attack, passage_scores
from lmlab.methods.corpus_poisoning.measure.thresholds import CleanHits
from lmlab.methods.corpus_poisoning.setup import Target
from lmlab.retrieval import BM25, Qrels, fuse_rrf
from lmlab.retrieval.metrics import ndcg
from lmlab.retrieval.run_files import ranked
from lmlab.stats import roc_auc
from lmlab.words import counted

_ESCAPED = 3  # passages that a report shows of what a defense let through
PARTS = 3  # `_thirds`: one document for each at least

STACK = "stack"
"""The name of all detectors of a gate together."""


@dataclass(frozen=True)
class DefenseRow:
    """One defense against one set of passages.

    Attributes:
        auroc, average_precision: how well scores part crafted passages from clean documents that the detector was not
            fitted on.
        tpr: rate of refused clean documents -> share of crafted passages that are refused.
        asr: k -> success that is left at the first rate.
        fpr: share of other clean documents that are refused at the first rate.
        escaped: the first few passages that are not refused at the first rate.
        ndcg_change: of clean nDCG@10 when what is refused at the first rate is not in the corpus; an estimate where
            only a sample was scored (`clean_scored`).
    """

    defense: str
    attack: str
    auroc: float | None
    average_precision: float | None
    tpr: dict[str, float]
    asr: dict[str, float]
    fpr: float | None
    ndcg_change: float | None
    clean_scored: int
    escaped: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_defenses(
    names: Sequence[str],
    context: DetectorContext,
    target: Target,
    attacks: Mapping[str, Passages],
    k_values: Sequence[int] = (10, 20),
    rates: Sequence[float] = (0.01, 0.05),
    sample: int = 400,
    stack: Sequence[str] = (),
    stack_rate: float = 0.005,
    asked: Mapping[str, Sequence[int]] | None = None,
) -> list[DefenseRow]:
    """Every detector, and the stack of some, against every set of passages.

    Arguments:
        asked: attack -> numbers of the queries that its success is of; all of the target's where it is not named.
        sample: how many clean documents costly detectors score.
        stack: detectors of the gate that is measured as `stack`, at `stack_rate`.
    """
    documents = Passages(target.data.corpus.texts, target.documents)
    hits = target.hits(2 * max(k_values) + 100)  # refused clean documents move others up
    asked_of = {attack: _asked(asked, attack, target) for attack in attacks}
    rows = []
    for name in names:
        detector = make_detector(name, context)
        step = max(1, len(documents) // sample) if name in COSTLY else 1
        places = np.arange(0, len(documents), step)
        clean = documents.part(places.tolist()) if step > 1 else documents
        fitting, calibration, rest = _thirds(len(clean))
        detector.fit(clean.part(fitting))
        scores = detector.score(clean)
        bounds = [Threshold.at(scores[calibration], rate) for rate in rates]
        fpr = float((scores[rest] > bounds[0].value).mean())
        refused = places[scores > bounds[0].value]
        change = _change(hits, refused, target, len(places))
        left = without(hits, refused) if step == 1 else hits
        for attack, passages in attacks.items():
            found = detector.score(passages)
            rows.append(
                _row(
                    name,
                    attack,
                    scores[calibration + rest],
                    found,
                    bounds,
                    fpr,
                    change,
                    left,
                    asked_of[attack],
                    passages,
                    target,
                    k_values,
                )
            )
    if stack:
        rows += _stack(stack, stack_rate, context, documents, attacks, hits, asked_of, target, k_values)
    return rows


def _asked(asked: Mapping[str, Sequence[int]] | None, attack: str, target: Target) -> list[int]:
    every = range(len(target.data.queries))
    return list(every if asked is None else asked.get(attack, every))


def _thirds(count: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers for fitting, for thresholds, and for false positives: what a detector saw looks clean to it.

    Raises:
        UserError: one of the three would be empty.
    """
    if count < PARTS:
        raise UserError(
            f"{counted(count, 'clean documents are')} too few to fit detectors, to set thresholds and to count false"
            " positives.",
            "Give a larger collection.",
        )
    order, third = np.random.default_rng(0).permutation(count).tolist(), count // PARTS
    return order[:third], order[third : 2 * third], order[2 * third :]


def _stack(
    names: Sequence[str],
    rate: float,
    context: DetectorContext,
    documents: Passages,
    attacks: Mapping[str, Passages],
    hits: CleanHits,
    asked_of: Mapping[str, Sequence[int]],
    target: Target,
    k_values: Sequence[int],
) -> list[DefenseRow]:
    fitting, calibration, rest = _thirds(len(documents))
    gate = AdmissionGate.fit(names, context, documents.part(fitting), documents.part(calibration), rate)
    scores = gate.suspicion(documents)
    bound = gate.threshold
    fpr = float((scores[rest] > bound.value).mean())
    refused = np.flatnonzero(scores > bound.value)
    change, left = _change(hits, refused, target, len(documents)), without(hits, refused)
    unseen = scores[calibration + rest]
    return [
        _row(
            STACK,
            name,
            unseen,
            gate.suspicion(each),
            [bound],
            fpr,
            change,
            left,
            asked_of[name],
            each,
            target,
            k_values,
        )
        for name, each in attacks.items()
    ]


def _row(
    defense: str,
    attack: str,
    clean: Scores,
    crafted: Scores,
    bounds: Sequence[Threshold],
    fpr: float,
    change: float,
    left: CleanHits,
    asked: Sequence[int],
    passages: Passages,
    target: Target,
    k_values: Sequence[int],
) -> DefenseRow:
    kept = np.flatnonzero(crafted <= bounds[0].value)
    similar = passage_scores(target.queries()[list(asked)], passages.vectors[kept])
    report = evaluate_attack(similar, left.of(asked), len(target.data.corpus), k_values)
    return DefenseRow(
        defense,
        attack,
        roc_auc(clean, crafted),
        average_precision(clean, crafted),
        {f"{bound.rate:g}": float((crafted > bound.value).mean()) for bound in bounds},
        {str(k): value for k, value in report.asr.items()},
        fpr,
        change,
        len(clean),
        tuple(passages.texts[row] for row in kept[:_ESCAPED]),
    )


def _change(hits: CleanHits, refused: NDArray[np.int64], target: Target, scored: int) -> float:
    """Of clean nDCG@10 without the refused documents. Of a sample each refused one stands for as many as were not
    scored: its own loss, times documents a scored one (the refused are few, so that losses add up).
    """
    ids, qrels, total = target.data.queries.ids, target.data.qrels, len(target.data.corpus)
    before = clean_ndcg(hits, ids, qrels)
    if scored == total:
        return clean_ndcg(without(hits, refused), ids, qrels) - before
    losses = [clean_ndcg(without(hits, np.array([row])), ids, qrels) - before for row in refused.tolist()]
    return float(np.sum(losses)) * total / scored


def without(hits: CleanHits, refused: NDArray[np.int64]) -> CleanHits:
    """Clean results without some documents; as deep as the query that lost most."""
    gone = np.isin(hits.rows_QK, refused)
    depth = hits.depth - int(gone.sum(1).max(initial=0))
    order = np.argsort(gone, axis=1, kind="stable")[:, :depth]
    return CleanHits(
        np.take_along_axis(hits.scores_QK, order, 1),
        np.take_along_axis(hits.rows_QK, order, 1),
        hits.document_ids,
        hits.self_matches,
    )


def clean_ndcg(hits: CleanHits, query_ids: Sequence[str], qrels: Qrels, k: int = 10) -> float:
    """Clean nDCG@k of results."""
    judged = [number for number, query in enumerate(query_ids) if query in qrels]
    ids = hits.document_ids
    figures = [ndcg([ids[row] for row in hits.rows_QK[n][:k]], qrels[query_ids[n]], k) for n in judged]
    return float(np.mean(figures)) if figures else 0.0


def measure_fusion(
    target: Target,
    attacks: Mapping[str, Passages],
    k_values: Sequence[int] = (10, 20),
    depth: int = 100,
    asked: Mapping[str, Sequence[int]] | None = None,
) -> list[DefenseRow]:
    """Fusion with BM25 by reciprocal ranks as a defense: what gradients cannot reach, but stuffing can.

    Arguments:
        asked: as of `measure_defenses`.
    """
    data, queries = target.data, target.queries()
    hits = target.hits(depth)
    rows = []
    everything = list(data.corpus.ids)
    dense_clean = {
        query: {everything[row]: float(score) for row, score in zip(line, scores, strict=True)}
        for query, line, scores in zip(data.queries.ids, hits.rows_QK, hits.scores_QK, strict=True)
    }
    lexical = BM25(everything, data.corpus.texts)
    fused = fuse_rrf([dense_clean, lexical.run(data.queries.ids, data.queries.texts, depth)], depth)
    before = clean_ndcg(hits, data.queries.ids, data.qrels)
    after = _run_ndcg(fused, data.qrels)
    for attack, passages in attacks.items():
        names = [f"!{number}" for number in range(len(passages))]  # before all ids: ties go to the clean
        similar = passage_scores(queries, passages.vectors)
        dense = {
            query: dict(ranked({**dense_clean[query], **dict(zip(names, map(float, scores), strict=True))})[:depth])
            for query, scores in zip(data.queries.ids, similar, strict=True)
        }
        words = BM25([*everything, *names], [*data.corpus.texts, *passages.texts])
        both = fuse_rrf([dense, words.run(data.queries.ids, data.queries.texts, depth)], depth)
        wanted = [list(both[data.queries.ids[number]]) for number in _asked(asked, attack, target)]
        asr = {str(k): float(np.mean([any(id in names for id in found[:k]) for found in wanted])) for k in k_values}
        rows.append(DefenseRow("fusion with BM25", attack, None, None, {}, asr, None, after - before, len(everything)))
    return rows


def _run_ndcg(run: Mapping[str, Mapping[str, float]], qrels: Qrels) -> float:
    return float(np.mean([ndcg(list(run.get(query, {})), judged, 10) for query, judged in qrels.items()]))


def sweep(detector: Detector, clean: Passages, crafted: Passages, points: int = 21) -> list[dict[str, float]]:
    """Refused shares of clean and crafted passages over thresholds, for a curve."""
    own, other = detector.score(clean), detector.score(crafted)
    rates = np.linspace(0, 0.2, points)  # a gate that refuses more than a fifth of what is clean is of no use
    found = []
    for rate in rates:
        bound = Threshold.at(own, float(rate))
        found.append(
            {
                "rate": float(rate),
                "fpr": float((own > bound.value).mean()),
                "tpr": float((other > bound.value).mean()),
                "threshold": bound.value,
            }
        )
    return found
