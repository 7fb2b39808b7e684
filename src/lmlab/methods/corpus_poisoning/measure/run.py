"""Evaluating as a command does it: crafted passages on a collection, exact and by an approximate index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.files import decode_utf8
from lmlab.methods.corpus_poisoning.attack.clusters import Clusters
from lmlab.methods.corpus_poisoning.attack.crafted import ATTACKERS, AdversarialSet, query_digests
from lmlab.methods.corpus_poisoning.attack.vocabulary import reads_back
from lmlab.methods.corpus_poisoning.config import ChosenConfig, DepthsConfig
from lmlab.methods.corpus_poisoning.measure.carriers import carriers
from lmlab.methods.corpus_poisoning.measure.evaluate import (
    evaluate_attack,
    passage_scores,
    require_depth,
    smallest_k,
    success,
    success_by_count,
)
from lmlab.methods.corpus_poisoning.measure.late import late_scores
from lmlab.methods.corpus_poisoning.setup import Retriever, Target, chosen_queries
from lmlab.retrieval import INDEX_KINDS, Qrels, Queries, TwoTowerEncoder, make_index, read_queries
from lmlab.retrieval.collections.read import judged_queries
from lmlab.words import counted

_EXPLAINED = 3  # passages of which it is told what carries them


def evaluate_on(
    retriever: Retriever,
    data: str,
    split: str,
    place: Path,
    depths: Sequence[int] | DepthsConfig,
    queries: str | None = None,
    attack_queries: str | None = None,
    allow_overlap: bool = False,
    index: str = "exact",
    ignore_missing: bool = False,
    chosen: ChosenConfig | None = None,
) -> dict[str, Any]:
    """All figures of passages on held-out queries, as JSON, with sentences for the terminal.

    Arguments:
        depths: of results; of a configuration's defaults those that the collection has.

    Raises:
        UserError: a k is above the clean corpus, or no query is left.
    """
    if index not in INDEX_KINDS:
        raise UserError(f"Unknown index '{index}'.", f"Known: {', '.join(INDEX_KINDS)}.")
    name = None if queries is None else f"queries-{Path(queries).name}"
    if queries is not None and split not in judged_queries(data):
        target = Target.of_documents(retriever, data, read_queries(queries))
        asked = target.data.queries
    else:
        target = Target.load(retriever, data, split, ignore_missing, judged=False)  # success needs none
        asked = target.data.queries if queries is None else read_queries(queries)
    crafted = AdversarialSet.load(place)
    notices = list(target.data.notices)
    documents = len(target.data.corpus)
    k_values = depths.depths(target.depth(asked)) if isinstance(depths, DepthsConfig) else depths
    require_depth(max(k_values), documents)
    kept = held_out(asked, attackers(attack_queries, place), allow_overlap, notices)
    if chosen is not None and not chosen.is_all:
        wanted = set(chosen_queries(asked, chosen))
        kept = [row for row in kept if row in wanted]
        if not kept:
            raise UserError("All chosen queries are the attacker's: 0 are held out.", "Or say --allow-overlap.")
        notices.append(f"{len(kept):,} of {counted(len(asked), 'queries were')} chosen.")
    late, depth = retriever.spec.late, max(100, *k_values)
    if late:
        hits, scores = late_scores(target, asked, crafted.texts, depth, index)
        scores = scores[kept]
    else:
        hits = target.hits(depth, asked, name)
        vectors, passages = target.queries(asked, name)[kept], retriever.encoder.encode_text(crafted.texts)
        scores = passage_scores(vectors, passages)
    hits = hits.of(kept)
    if hits.self_matches:
        notices.append(f"{counted(hits.self_matches, 'results were')} removed: each is its own query.")
    ids = [asked.ids[number] for number in kept]
    qrels = _judgments(target, asked)
    report = evaluate_attack(scores, hits, documents, k_values, ids, qrels, crafted.ids)
    found: dict[str, Any] = {
        "title": f"{counted(len(crafted), 'passages')} in {counted(documents, 'documents')} of {target.data.name},"
        f" {counted(len(ids), 'queries')} ({name or split})",
        **_text_keys(report.row()),
        "perfect": None,
        "carriers": {},
        "norms": {},
        "notices": notices,
    }
    if not late:
        if retriever.encoder.similarity == "cosine":
            found["perfect"] = _ceiling(place, vectors, hits, k_values)
        found["carriers"] = _carriers(retriever, crafted, vectors, scores)
        found["norms"] = _norms(retriever, crafted, target, notices)
    lines = _lines(found, target)
    if not late and (as_ids := _as_ids(retriever, crafted, passages)) is not None:
        count, vectors_of_ids = as_ids
        by_ids = passage_scores(vectors, vectors_of_ids)
        found["asr_ids"] = {str(k): float(success(by_ids, hits, k).mean()) for k in k_values}
        told = ", ".join(f"{k}: {100 * value:.2f} %" for k, value in found["asr_ids"].items())
        read = f"The texts of {count} of {counted(len(crafted), 'passages')} are read as other tokens."
        lines.append(f"{read} As token ids alone: {told}.")
    if index != "exact":
        found["by_index"] = {index: _by_index(index, target, crafted, passages, vectors, k_values)}
        told = ", ".join(f"{k}: {100 * value:.2f} %" for k, value in found["by_index"][index].items())
        lines.append(f"By the index {index}: {told}.")
    usual = 20 if hits.depth >= 20 else max(k_values)  # the depth at which the paper has its main figures
    curve = success_by_count(scores, hits, usual)
    found["by_count"] = {"k": usual, "asr": {str(count): rate for count, rate in curve.items()}}
    for share in (0.5, 0.9):
        plain, sure = smallest_k(scores, hits, usual, share)
        found.setdefault("smallest", {})[str(share)] = {"passages": plain, "with_interval": sure}
    return {**found, "lines": lines}


def _text_keys(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers as keys."""
    return {
        key: {str(k): each for k, each in value.items()} if isinstance(value, dict) else value
        for key, value in row.items()
    }


def _judgments(target: Target, asked: Queries) -> Qrels:
    """The collection's judgments of queries whose id and text are its own: other files may number theirs alike."""
    own = dict(zip(target.data.queries.ids, target.data.queries.texts, strict=True))
    same = {id for id, text in zip(asked.ids, asked.texts, strict=True) if own.get(id) == text}
    return {id: judged for id, judged in target.data.qrels.items() if id in same}


def attackers(attack_queries: str | None, place: Path) -> set[str]:
    """Digests of the attacker's queries: those of a file, or those that stand beside the passages."""
    if attack_queries is not None:
        return set(query_digests(read_queries(attack_queries).texts))
    path = (place if place.is_dir() else place.parent) / ATTACKERS
    if not path.exists():
        return set()
    found = decode_utf8(path.read_bytes(), f"'{path}'").split()
    size = len(query_digests(["of this length"])[0])
    if any(len(each) != size for each in found):
        raise UserError(
            f"'{path}' is damaged: it would not keep all of the attacker's queries out of the evaluation.",
            "Copy it again, or name the queries with --attack-queries.",
        )
    return set(found)


def held_out(
    asked: Queries,
    known: set[str],
    allow: bool,
    notices: list[str],
    option: str | None = "--allow-overlap",
    remedy: str = "Give others.",
) -> list[int]:
    """The numbers of queries that the attacker did not have.

    Arguments:
        option: what allows the others, where something does.
        remedy: where nothing does.
    """
    everything = list(range(len(asked)))
    shared = [number for number, digest in enumerate(query_digests(asked.texts)) if digest in known]
    if not shared:
        return everything
    if allow:
        notices.append(f"{counted(len(shared), 'evaluated queries are')} the attacker's too.")
        return everything
    told = f" ({option})" if option else ""
    notices.append(f"{counted(len(shared), 'evaluated queries are')} the attacker's too and left out{told}.")
    gone = set(shared)
    kept = [number for number in everything if number not in gone]
    if not kept:
        remedy = f"Give others, or {option}." if option else remedy
        raise UserError("All evaluated queries are the attacker's: 0 are held out.", remedy)
    return kept


def _ceiling(place: Path, vectors: Any, hits: Any, k_values: Sequence[int]) -> dict[str, float] | None:
    """The success of the clusters' centroids as if they were passages, where the clusters lie beside the passages."""
    path = (place if place.is_dir() else place.parent) / "clusters.npz"
    if not path.exists():
        return None
    perfect = Clusters.load(path).perfect_kH
    if perfect.shape[1] != vectors.shape[1]:
        return None
    scores = passage_scores(vectors, perfect)
    return {str(k): float(success(scores, hits, k).mean()) for k in k_values}


def _as_ids(retriever: Retriever, crafted: AdversarialSet, vectors: Any) -> tuple[int, Any] | None:
    """Vectors in which passages whose text becomes other ids are read by their ids alone, as the reference reads them,
    and how many those are; None where all texts become their ids.
    """
    encoder = retriever.encoder
    documents = encoder.documents if isinstance(encoder, TwoTowerEncoder) else encoder
    odd = [
        number
        for number, passage in enumerate(crafted.passages)
        if passage.token_ids and not reads_back(encoder.tokenizer, passage.token_ids, passage.text)
    ]
    if not odd:
        return None
    found = vectors.copy()
    found[odd] = documents.encode_rows([crafted.passages[number].token_ids[: documents.max_length] for number in odd])
    return len(odd), found


def _carriers(retriever: Retriever, crafted: AdversarialSet, vectors: Any, scores: Any) -> dict[str, Any]:
    """Of the first passages: which tokens carry the similarity with the query that is nearest to them."""
    found = {}
    for number, passage in enumerate(crafted.passages[:_EXPLAINED]):
        nearest = int(scores[:, number].argmax())
        found[passage.id] = carriers(retriever.encoder, passage.text, vectors[nearest])
    return found


def _norms(retriever: Retriever, crafted: AdversarialSet, target: Target, notices: list[str]) -> dict[str, float]:
    """Lengths of vectors, which decide where similarity is the dot product."""
    if not len(crafted):
        return {}
    # texts over the whole corpus, enough for a mean and the 99th percentile
    sample = target.data.corpus.texts[:: max(1, len(target.data.corpus) // 200)][:200]
    clean = np.linalg.norm(retriever.encoder.raw(sample), axis=1)
    own = np.linalg.norm(retriever.encoder.raw(crafted.texts), axis=1)
    found = {
        "clean_mean": float(clean.mean()),
        "clean_p99": float(np.quantile(clean, 0.99)),
        "crafted_mean": float(own.mean()),
        "crafted_max": float(own.max()),
    }
    if retriever.encoder.similarity == "dot" and found["crafted_max"] > found["clean_p99"]:
        notices.append(
            f"A crafted vector is {found['crafted_max']:.2f} long; 99 % of clean ones are below"
            f" {found['clean_p99']:.2f}. By the dot product length alone ranks it higher."
        )
    return found


def _by_index(
    kind: str, target: Target, crafted: AdversarialSet, passages: Any, vectors: Any, k_values: Sequence[int]
) -> dict[str, float]:
    """The success as an approximate index of corpus and passages gives it."""
    index = make_index(
        kind,  # type: ignore[arg-type]
        [*target.data.corpus.ids, *crafted.ids],
        np.concatenate([target.documents, passages.astype(np.float32)]),
    )
    rows = index.topk(vectors, max(k_values)).rows_QK
    return {str(k): float((rows[:, :k] >= len(target.data.corpus)).any(1).mean()) for k in k_values}


def _lines(found: dict[str, Any], target: Target) -> list[str]:
    lines = [
        f"Mean rank of the best passage {found['mean_rank']:.1f}, MRR {found['mrr']:.4f};"
        f" {100 * found['poison_rate']:.3f} % of the corpus."
    ]
    if found["ndcg_before"] is not None:
        lines.append(f"Clean nDCG@10 {found['ndcg_before']:.4f} without and {found['ndcg_after']:.4f} with them.")
    if found["beats_gold"] is not None:
        lines.append(f"{100 * found['beats_gold']:.2f} % of queries have a passage above all relevant documents.")
    return lines
