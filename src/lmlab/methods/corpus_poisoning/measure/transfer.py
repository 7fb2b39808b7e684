"""Whether passages carry over: each set of passages against several retrievers and collections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.measure.evaluate import evaluate_attack, passage_scores, require_depth
from lmlab.methods.corpus_poisoning.measure.run import attackers, held_out
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval.config import EncoderConfig


def transfer_matrix(
    places: Sequence[Path],
    retrievers: Sequence[Retriever],
    collections: Sequence[str],
    split: str,
    k: int,
    ignore_missing: bool = False,
    allow_overlap: bool = False,
) -> list[dict[str, Any]]:
    """Success at k of every set of passages on every collection by every retriever, with 95 % intervals.

    Queries that the attacker of a set had are left out of its rows, unless they are allowed.

    Raises:
        UserError: a collection has no more than k documents, or no held-out query.
    """
    sets = [(place, AdversarialSet.load(place)) for place in places]
    rows = []
    for retriever in retrievers:
        for data in collections:
            target = Target.load(retriever, data, split, ignore_missing, judged=False)  # success needs none
            documents = len(target.data.corpus)
            require_depth(k, documents, str(data))
            queries, hits = target.queries(), target.hits(max(100, k))
            for place, crafted in sets:
                notices: list[str] = []
                kept = held_out(target.data.queries, attackers(None, place), allow_overlap, notices)
                scores = passage_scores(queries[kept], retriever.encoder.encode_text(crafted.texts))
                report = evaluate_attack(scores, hits.of(kept), documents, [k])
                low, high = report.interval[k]
                crafted_for = {passage.retriever for passage in crafted.passages}
                rows.append(
                    {
                        "passages": place.name or str(place),
                        "encoder": retriever.spec.place,
                        "own_encoder": crafted_for == {str(retriever.encoder.fingerprint["model"])},
                        "data": target.data.name,
                        "count": len(crafted),
                        "queries": len(kept),
                        f"asr@{k}": report.asr[k],
                        "interval": [low, high],
                        "mean_rank": report.mean_rank,
                        "notices": notices,
                    }
                )
    return rows


def retrievers_of(encoders: Sequence[str], which: EncoderConfig) -> list[Retriever]:
    """Several retrievers with the same other settings and one folder for what they gave."""
    found = []
    for place in encoders:
        settings = which.model_copy(update={"encoder": place})
        found.append(Retriever(EncoderSpec(place, settings.arguments()), which.cache, which.precision))
    return found
