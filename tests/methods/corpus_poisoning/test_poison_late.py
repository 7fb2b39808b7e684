"""Crafting against a retriever of late interaction, and its success by brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import CraftConfig, MaxSim
from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.attack.late import late_means, late_objective
from lmlab.methods.corpus_poisoning.attack.run import craft_for
from lmlab.methods.corpus_poisoning.measure.run import evaluate_on
from lmlab.methods.corpus_poisoning.setup import Retriever
from lmlab.retrieval import load_dataset, load_late_encoder, maxsim
from tiny_retriever import write_late

SETTINGS = {"k": 2, "length": 10, "evaluations": 150, "candidates": 12, "precision": "fp32"}


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    return Retriever(
        EncoderSpec(str(write_late(tmp_path_factory.mktemp("late") / "encoder"))), tmp_path_factory.mktemp("c")
    )


@pytest.fixture(scope="module")
def found(victim, small, tmp_path_factory):
    return craft_for(victim, str(small), "train", CraftConfig(**SETTINGS), tmp_path_factory.mktemp("attack") / "a")


def test_passages_near_their_queries_more_than_stuffed_ones_and_are_text(victim, small, found, tmp_path):
    encoder = victim.spec.load_late()
    stuffed = craft_for(
        victim, str(small), "train", CraftConfig(**{**SETTINGS, "optimizer": "none"}), tmp_path / "none"
    )
    data = load_dataset(small, "train")
    for passage, before in zip(found.passages.passages, stuffed.passages.passages, strict=True):
        assert encoder.tokenizer.inner([passage.text])[0] == list(passage.token_ids)
        assert passage.objective_ids == pytest.approx(passage.objective_text, abs=1e-5)
        assert passage.objective_text > before.objective_text and passage.evaluations <= 150
        rows = np.flatnonzero(found.clusters.labels_n == int(passage.cluster))
        queries = encoder.encode_text([data.queries.texts[row] for row in rows], "query")
        (own,) = encoder.encode_text([passage.text])
        by_hand = np.mean([maxsim(query, own) for query in queries])
        assert passage.objective_text == pytest.approx(by_hand, abs=1e-4)


def test_the_success_is_that_of_searching_corpus_and_passages_together(victim, small, found, tmp_path):
    found.passages.save(tmp_path)
    told = evaluate_on(victim, str(small), "test", tmp_path, [1, 5, 10])
    encoder, data = victim.spec.load_late(), load_dataset(small, "test")
    documents = encoder.encode_text([*data.corpus.texts, *found.passages.texts])
    ranks = []
    for query in encoder.encode_text(data.queries.texts, "query"):
        scores = np.array([maxsim(query, each) for each in documents], np.float32)
        best = scores[len(data.corpus) :].max()
        ranks.append(1 + int((scores[: len(data.corpus)] >= best).sum()))
    assert told["asr"] == {str(k): pytest.approx(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
    assert told["perfect"] is None and told["ndcg_before"] is not None


def test_the_command_crafts_evaluates_and_goes_on_where_it_was_cut_off(victim, small, found, lmlab, tmp_path):
    place = tmp_path / "attack"
    common = ("--data", small, "--encoder", victim.spec.place, "--precision", "fp32", "--cache", tmp_path / "cache")
    fast = ("--k", 2, "--length", 10, "--evaluations", 150, "--candidates", 12, "--out", place)
    assert lmlab("poison", "craft", *common, *fast).code == 0
    whole = (place / "adversarial.jsonl").read_bytes()
    assert AdversarialSet.load(place).texts == found.passages.texts
    one = sorted((place / "clusters").iterdir())[1]
    one.unlink()
    (place / "adversarial.jsonl").unlink()
    assert lmlab("poison", "craft", *common, *fast).code == 0
    assert (place / "adversarial.jsonl").read_bytes() == whole
    done = lmlab("poison", "evaluate", "--passages", place, *common, "--k", 5, "--json")
    assert done.code == 0 and 0 <= json.loads(done.out)["asr"]["5"] <= 1
    done = lmlab("poison", "evaluate", "--passages", place, *common, "--k", 5, "--index", "hnsw")
    assert done.code == 2 and "late interaction has more" in done.err


def test_a_start_from_relevant_documents_is_their_words(victim, small, tmp_path):
    settings = CraftConfig(**{**SETTINGS, "k": 1, "start": "gold", "optimizer": "none", "length": 4})
    (passage,) = craft_for(victim, str(small), "train", settings, tmp_path).passages.passages
    data = load_dataset(small, "train")
    texts = dict(zip(data.corpus.ids, data.corpus.texts, strict=True))
    means = late_means(victim.spec.load_late(), data.queries.texts)
    judged = data.qrels[data.queries.ids[int((means @ means.mean(0)).argmax())]]
    first = texts[next(id for id, grade in judged.items() if grade > 0)]
    assert passage.text.split() == first.split()[:4]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "coverage"}, "objective coverage"),
        ({"norm_cap": 2.0}, "norm_cap"),
        ({"target_asr": 0.5}, "target_asr"),
        ({"known_gate": "gate"}, "known_gate"),
        ({"optimizer": "decode", "language_model": "model"}, "optimizer decode"),
    ],
)
def test_what_needs_one_vector_for_a_text_is_refused_by_name(victim, small, changes, named, tmp_path):
    with pytest.raises(UserError, match=f"no one vector for a text, which {named} needs"):
        craft_for(victim, str(small), "train", CraftConfig(**{**SETTINGS, **changes}), tmp_path)
    spec = EncoderSpec(victim.spec.place, {"device": "cpu", "pooling": "mean"})
    with pytest.raises(UserError, match="not pooling"):
        craft_for(Retriever(spec, tmp_path), str(small), "train", CraftConfig(**SETTINGS), tmp_path)
    with pytest.raises(UserError, match="late interaction"):
        _ = victim.encoder  # what detectors and hardening ask


def test_of_many_queries_some_are_drawn_by_the_seed(victim):
    encoder = load_late_encoder(victim.spec.place)
    texts = [f"sea ship {'star ' * (number % 5)}" for number in range(300)]
    objective = late_objective(encoder, texts, 3)
    assert isinstance(objective, MaxSim) and len(objective.queries_nTH) == 256
    assert torch.equal(objective.queries_nTH, late_objective(encoder, texts, 3).queries_nTH)
    assert not torch.equal(objective.queries_nTH, late_objective(encoder, texts, 4).queries_nTH)
    means = late_means(encoder, texts[:3])
    assert means.shape == (3, 16) and np.allclose(np.linalg.norm(means, axis=1), 1, atol=1e-6)
