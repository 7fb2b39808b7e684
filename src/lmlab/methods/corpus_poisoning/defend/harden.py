"""Hardening: train the retriever with crafted passages as negatives, then attack what comes out with fresh seeds, and
again. Both figures are reported: that of the old passages, and that of the new attack, which is the honest one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.files import sha256_json, write_json
from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec, craft
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.attack.run import gold_texts
from lmlab.methods.corpus_poisoning.config import CraftConfig, HardenConfig
from lmlab.methods.corpus_poisoning.defend.measure import clean_ndcg
from lmlab.methods.corpus_poisoning.measure.evaluate import passage_scores, require_depth, success
from lmlab.methods.corpus_poisoning.setup import Retriever, Target, chosen_queries
from lmlab.retrieval import TextEncoder, save_encoder
from lmlab.retrieval.training import TrainingPair, train_encoder

_KEPT = ("device", "truncate_dim")


def harden(
    retriever: Retriever, data: str, config: CraftConfig, settings: HardenConfig, out: Path
) -> list[dict[str, Any]]:
    """Rounds of attack and training on a collection: crafted on its split `train`, measured on `test`. Each round's
    encoder is in `round-N/encoder`, a directory that sentence-transformers reads too.

    Returns:
        Before the first round, and after each: clean nDCG@10, success of all old passages, success of a new attack.

    Raises:
        UserError: the retriever has two networks or one that cannot be trained here, or the attacker is to know a gate.
    """
    if config.known_gate is not None:
        raise UserError("A gate is for one encoder, and each round makes another.", "Leave --known-gate out.")
    # what the directory of an encoder does not hold
    options = {name: retriever.spec.options[name] for name in _KEPT if name in retriever.spec.options}
    current = retriever
    every: list[AdversarialSet] = []
    rows: list[dict[str, Any]] = []
    for number in range(settings.rounds + 1):
        if not isinstance(current.encoder, TextEncoder):
            raise UserError("Hardening trains one network for queries and documents; this retriever has two.")
        train, test = (Target.load(current, data, split) for split in ("train", "test"))
        require_depth(settings.depth, test.depth(), option="--depth")
        attack = config.model_copy(update={"seed": config.seed + number})
        rank, asked = config.coverage_rank, chosen_queries(train.data.queries, config)
        found = craft(
            current.spec,
            [train.data.queries.texts[row] for row in asked],
            train.queries()[asked],
            attack,
            out / f"round-{number}" / "attack",
            train.hits(rank).tau(rank)[asked] if config.objective == "coverage" else None,
        )
        rows.append(_measured(current, test, every, found.passages, settings.depth, number))
        write_json(out / "rounds.json", rows)
        every.append(found.passages)
        if number == settings.rounds:
            break
        pairs = training_pairs(train, every, settings.negatives, config.seed + number)
        place = out / f"round-{number + 1}"
        # a training that was cut off goes on: what it learns from and how must be the same
        how = [settings.steps, settings.batch, settings.learning_rate, config.seed + number]
        named = sha256_json([current.encoder.fingerprint, [asdict(pair) for pair in pairs], how])[:8]
        trained, _ = train_encoder(
            current.encoder,
            pairs,
            place / f"training-{named}",
            settings.steps,
            min(settings.batch, len(pairs)),
            settings.learning_rate,
            seed=config.seed + number,
        )
        save_encoder(trained, place / "encoder")
        current = Retriever(EncoderSpec(str(place / "encoder"), options), retriever.cache, retriever.precision)
    return rows


def training_pairs(target: Target, sets: list[AdversarialSet], negatives: int, seed: int) -> list[TrainingPair]:
    """Each judged query with its first relevant document and crafted passages that are drawn for it."""
    texts = [text for each in sets for text in each.texts]
    generator = np.random.default_rng(seed)
    golds = gold_texts(target)
    pairs = []
    for query, text in zip(target.data.queries.ids, target.data.queries.texts, strict=True):
        if query in golds:
            drawn = generator.choice(len(texts), negatives, replace=len(texts) < negatives)
            pairs.append(TrainingPair(text, golds[query], tuple(texts[row] for row in drawn)))
    return pairs


def _measured(
    retriever: Retriever, test: Target, old: list[AdversarialSet], new: AdversarialSet, k: int, number: int
) -> dict[str, Any]:
    hits, queries = test.hits(max(100, k)), test.queries()

    def rate(passages: list[str]) -> float | None:
        if not passages:
            return None
        scores = passage_scores(queries, retriever.encoder.encode_text(passages))
        return float(success(scores, hits, k).mean())

    return {
        "round": number,
        "clean_ndcg@10": clean_ndcg(hits, test.data.queries.ids, test.data.qrels),
        f"asr@{k}_old": rate([text for each in old for text in each.texts]),
        f"asr@{k}_new": rate(new.texts),
    }
