"""The reference as a command runs it: its files, one a cluster, and the same passages as an overlay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.files import sha256_json, write_text
from lmlab.methods.corpus_poisoning.attack.clusters import require_distinct
from lmlab.methods.corpus_poisoning.attack.searching.reference import ReferenceSettings, pairs_of, reference_attack
from lmlab.methods.corpus_poisoning.formats import read_reference, slug
from lmlab.methods.corpus_poisoning.setup import Retriever, Target

_VERSION = 2  # raise it when the same settings give other passages, so that a folder of before is refused


def craft_by_reference(
    retriever: Retriever,
    data: str,
    split: str,
    settings: ReferenceSettings,
    out: Path,
    k: int = 1,
    only: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the reference for every cluster (or one), write its files and, when all are there, the overlay.

    Raises:
        UserError: a cluster has too few pairs, or there are fewer distinct queries than clusters.
    """
    target = Target.load(retriever, data, split)
    corpus = target.data.corpus
    place = {id: row for row, id in enumerate(corpus.ids)}
    numbers = {id: row for row, id in enumerate(target.data.queries.ids)}
    generator = np.random.default_rng(seed)
    pairs = pairs_of(target.data.qrels, target.data.queries.ids)
    pairs = [pairs[row] for row in generator.permutation(len(pairs))]
    queries = target.queries()[[numbers[query] for query, _ in pairs]]
    require_distinct(queries, k)
    labels = np.zeros(len(pairs), np.int64)
    if k > 1:
        from sklearn.cluster import KMeans

        labels = KMeans(k, n_init=1, random_state=0).fit_predict(queries)
    texts = corpus.texts
    about_run = [_VERSION, asdict(settings), seed, retriever.encoder.fingerprint, corpus.ids, corpus.texts, pairs]
    how = sha256_json(about_run)[:16]
    for number in range(k) if only is None else [only]:
        path = out / f"{slug(target.data.name)}-{slug(Path(retriever.spec.place).name)}-k{k}-s{number}.json"
        told = path.with_suffix(".settings")  # the reference's file has no place for it
        rows = np.flatnonzero(labels == number)
        if path.exists():
            if not told.exists() or told.read_text("utf-8") != how:
                raise UserError(
                    f"'{path}' was made by other settings or another version of this program.", "Choose another folder."
                )
            continue
        golds = [place[pairs[row][1]] for row in rows]
        found = reference_attack(
            retriever.encoder,
            queries[rows],
            target.documents[golds],
            [texts[row] for row in golds],
            settings,
            np.random.default_rng([seed, number]),
        )
        row = {
            "it": found.iteration,
            "best_acc": found.accuracy,
            "dummy": retriever.encoder.tokenizer.pieces(found.ids_L.tolist()),
            "tot": found.dev_pairs,
        }
        write_text(told, how)
        write_text(path, json.dumps(row))
    if only is not None:
        return {"k": k, "found": 1}
    passages, about = read_reference(out, retriever.encoder.tokenizer, k)
    passages.save(out)
    return about
