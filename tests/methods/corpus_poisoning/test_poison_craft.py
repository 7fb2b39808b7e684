"""Crafting: texts become their ids again, files are the same whoever makes them, runs go on; success by thresholds is
that of re-ranking.
"""

from __future__ import annotations

import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_jsonl
from lmlab.methods.corpus_poisoning import (
    AdversarialSet,
    CraftConfig,
    EncoderSpec,
    MeanSimilarity,
    cluster_queries,
    craft,
    evaluate_attack,
    passage_scores,
    smallest_k,
)
from lmlab.methods.corpus_poisoning.attack import craft as craft_module
from lmlab.methods.corpus_poisoning.attack.clusters import Clusters, cover_queries
from lmlab.methods.corpus_poisoning.attack.craft import _named
from lmlab.methods.corpus_poisoning.attack.layout import start_ids
from lmlab.methods.corpus_poisoning.attack.passage import craft_passage
from lmlab.methods.corpus_poisoning.attack.run import craft_for
from lmlab.methods.corpus_poisoning.attack.searching.objective import Coverage
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, places_of
from lmlab.methods.corpus_poisoning.measure.evaluate import success, success_by_count
from lmlab.methods.corpus_poisoning.setup import Retriever
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.retrieval import ExactIndex, Queries, load_dataset, load_encoder
from tiny_retriever import write_collection, write_retriever

FAST = {"length": 10, "evaluations": 250, "candidates": 12, "precision": "fp32"}


def crafted(target, out, tau=None, **changes):
    config = CraftConfig(**{**FAST, "k": 4, **changes})
    return craft(target.retriever.spec, target.data.queries.texts, target.queries(), config, out, tau)


def test_every_text_becomes_its_ids_again_and_both_levels_agree(target, tmp_path):
    found = crafted(target, tmp_path)
    encoder = target.retriever.encoder
    rows = list(read_jsonl(tmp_path / "adversarial.jsonl"))
    assert [row["_id"] for row in rows] == (tmp_path / "removal.txt").read_text().split()
    stuffed = crafted(target, tmp_path / "stuffing", optimizer="none")
    for row, passage, start in zip(rows, found.passages.passages, stuffed.passages.passages, strict=True):
        assert row["metadata"]["redteam"] is True and row["_id"].startswith(f"redteam-{found.run}-")
        assert encoder.tokenizer.inner([row["text"]])[0] == list(passage.token_ids)
        assert passage.objective_ids == pytest.approx(passage.objective_text, abs=1e-6)
        assert passage.objective_text > start.objective_text
        mean = MeanSimilarity(torch.from_numpy(found.clusters.centroids_kH[int(passage.cluster)]))
        text_level = float(mean(torch.from_numpy(encoder.encode_text([row["text"]])))[0])
        assert text_level == pytest.approx(passage.objective_text, abs=1e-5)
    assert AdversarialSet.load(tmp_path) == found.passages


def test_pieces_of_words_that_do_not_survive_are_replaced(target):
    encoder = target.retriever.encoder
    tokenizer = encoder.tokenizer
    id_of = tokenizer.backend.token_to_id
    start = np.array([id_of(token) for token in ("##s", "sea", "##er", "ship", "##ing", "star")])
    assert tokenizer.inner(["##s seaer shiping star"])[0] != start.tolist()
    config = CraftConfig(k=1, length=6, evaluations=30, candidates=20, precision="fp32")
    objective = MeanSimilarity.of(torch.from_numpy(target.queries()))
    passage = craft_passage(encoder, objective, start, config, "run", "0")
    assert "Pieces of words were replaced" in passage.note and passage.evaluations <= config.budget
    assert tokenizer.inner([passage.text])[0] == list(passage.token_ids)
    score = float(objective(torch.from_numpy(encoder.encode_text([passage.text])))[0])
    assert passage.objective_text == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["multiflip", "hotflip", "gcg", "gaslite", "arca", "none"])
@pytest.mark.parametrize("budget", [1, 25, 60, 400])
def test_repairs_are_within_the_budget(optimizer, budget, target):
    encoder = target.retriever.encoder
    start = np.full(6, encoder.tokenizer.mask_id)  # a start that no text has
    config = CraftConfig(k=1, length=6, evaluations=budget, candidates=20, optimizer=optimizer, precision="fp32")
    told: list[int] = []
    objective = MeanSimilarity.of(torch.from_numpy(target.queries()))
    passage = craft_passage(encoder, objective, start, config, "run", "0", told=told.append)
    assert passage.evaluations <= budget and sum(told) == passage.evaluations
    assert encoder.tokenizer.inner([passage.text])[0] == list(passage.token_ids)


def test_a_concept_a_question_and_a_passage_for_each_question(target, small, tmp_path):
    config = CraftConfig(**{**FAST, "evaluations": 80, "concept": "SEA", "each_query": True})
    found = craft_for(target.retriever, str(small), "train", config, tmp_path / "each")
    asked = [text for text in target.data.queries.texts if "sea" in text.split() or " sea?" in text]
    assert len(found.passages) == len(asked) == len(found.clusters) and max(found.clusters.sizes) == 1
    vectors = target.retriever.encoder.encode_text(asked, "query")
    for number, passage in enumerate(found.passages.passages):  # each is for its own question
        own = float(target.retriever.encoder.encode_text([passage.text])[0] @ vectors[int(passage.cluster)])
        assert passage.objective_text == pytest.approx(own, abs=1e-5) and passage.cluster == str(number)
    one = CraftConfig(**{**FAST, "k": 1, "query_id": (target.data.queries.ids[3],)})
    single = craft_for(target.retriever, str(small), "train", one, tmp_path / "one")
    assert single.clusters.sizes == [1] and single.run != found.run
    for changes, message in (
        ({"concept": "submarine"}, "None of 40 queries holds 'submarine'"),
        ({"concept": "se"}, "None of 40 queries holds 'se'"),  # whole words
        ({"query_id": ("q999",)}, "There is no query 'q999'"),
    ):
        with pytest.raises(UserError, match=message):
            craft_for(target.retriever, str(small), "train", CraftConfig(**FAST, **changes), tmp_path / "none")


def test_a_cap_on_lengths_holds_where_length_ranks(tmp_path, target):
    place = write_retriever(tmp_path / "dot", normalize=False)
    retriever = Retriever(EncoderSpec(str(place)), tmp_path / "cache")
    data = str(write_collection(tmp_path / "data", 60, 40))

    def longest(**changes):
        config = CraftConfig(**{**FAST, "k": 2, **changes})
        found = craft_for(retriever, data, "train", config, tmp_path / str(changes)).passages
        return float(np.linalg.norm(retriever.encoder.encode_text(found.texts), axis=1).max()), found

    free, _ = longest()
    cap = 0.9 * free
    bounded, found = longest(norm_cap=cap)
    assert bounded < free and (bounded <= cap * 1.001 or any("above the cap" in each.note for each in found.passages))
    with pytest.raises(UserError, match="All vectors of this retriever have length 1"):
        crafted(target, tmp_path / "cosine", norm_cap=1.0)


def test_scores_that_are_not_finite_are_tried_once_more_in_fp32(target, monkeypatch, tmp_path):
    from lmlab.methods.corpus_poisoning import Problem
    from lmlab.methods.corpus_poisoning.attack.searching import problem as module

    scores, always = Problem.scores, [False]

    def overflow(self, ids, precision=None):
        if always[0] or (precision or self.precision) == "bf16":
            raise module.NotFiniteError("A score is not finite.")
        return scores(self, ids, precision)

    monkeypatch.setattr(Problem, "scores", overflow)
    found = crafted(target, tmp_path / "once", k=2, precision="bf16").passages.passages
    plain = crafted(target, tmp_path / "plain", k=2).passages.passages
    assert all(each.note.startswith("A score is not finite. Tried again in fp32.") for each in found)
    assert [each.text for each in found] == [each.text for each in plain]
    always[0] = True
    kept = crafted(target, tmp_path / "never", k=2, precision="bf16").passages.passages
    assert all("Not finite in fp32 either: the start is kept." in each.note for each in kept)
    assert all(each.text and each.stopped == "not finite" for each in kept)


def test_the_same_seed_gives_the_same_bytes_in_workers_in_any_order(target, tmp_path, monkeypatch):
    def in_workers(function, jobs, workers):  # what a worker gets and does, without the seconds that its imports take
        for number in reversed(range(len(jobs))):
            yield number, function(pickle.loads(pickle.dumps(jobs[number])))  # noqa: S301

    threads = torch.get_num_threads()
    crafted(target, tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr("lmlab.methods.corpus_poisoning.attack.craft.fan_out", in_workers)
        crafted(target, tmp_path / "workers", workers=2)
    torch.set_num_threads(threads)
    files = [(tmp_path / name / "adversarial.jsonl").read_bytes() for name in ("here", "workers")]
    assert files[0] == files[1]
    other = crafted(target, tmp_path / "seed", seed=1)
    assert other.passages.texts != AdversarialSet.load(tmp_path / "here").texts


def test_a_run_that_is_stopped_by_a_signal_goes_on_to_the_same_file(forkserver, target, place, small, tmp_path):
    config = CraftConfig(**{**FAST, "k": 6, "evaluations": 700})
    whole = craft_for(target.retriever, str(small), "train", config, tmp_path / "whole")
    assert len(whole.passages) >= 4
    arguments = ["poison", "craft", "--data", small, "--encoder", place, "--cache", target.retriever.cache, "--k", 6]
    arguments += ["--length", 10, "--evaluations", 700, "--precision", "fp32", "--candidates", 12]
    out = tmp_path / "cut"
    (process,) = forkserver.start(*arguments, "--out", out)
    deadline = time.monotonic() + 120
    while len(list((out / "clusters").glob("*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate()
    done = len(list((out / "clusters").glob("*.json")))
    assert process.returncode == 130 and 2 <= done < len(whole.passages), message
    assert not (out / "adversarial.jsonl").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "clusters").glob("*.json")}
    craft_for(target.retriever, str(small), "train", config, out)
    assert (out / "adversarial.jsonl").read_bytes() == (tmp_path / "whole" / "adversarial.jsonl").read_bytes()
    assert all((out / "clusters" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert os.path.exists(out / "removal.txt")


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_a_payload_stands_verbatim_in_the_text(position, target, tmp_path):
    with pytest.raises(UserError, match="cannot spell"):
        crafted(target, tmp_path / "canary", payload_position=position)  # this vocabulary has no letters of its own
    payload = "The Captain is a sailor"
    found = crafted(target, tmp_path, payload=payload, payload_position=position)
    stuffed = crafted(target, tmp_path / "none", payload=payload, payload_position=position, optimizer="none")
    for passage, start in zip(found.passages.passages, stuffed.passages.passages, strict=True):
        assert passage.text.startswith(payload) if position == "prefix" else passage.text.endswith(payload)
        assert target.retriever.encoder.tokenizer.inner([passage.text])[0] == list(passage.token_ids)
        assert passage.payload == payload and passage.objective_text >= start.objective_text
    with pytest.raises(
        UserError, match="The payload has 10 tokens, and with 2 around it leaves no room .* of 10 tokens"
    ):
        crafted(target, tmp_path / "long", payload="sea " * 10, payload_position=position)


def test_the_default_payload_is_a_canary_of_the_run():
    from lmlab.methods.corpus_poisoning.attack.layout import payload_of

    assert payload_of(CraftConfig(payload_position="prefix"), "ab12") == "REDTEAM-CANARY-ab12"
    assert payload_of(CraftConfig(), "ab12") == ""


def by_re_ranking(target, queries, vectors, passages, k):
    """Corpus and passages in one list, ties to the clean."""
    clean, crafted_ = passage_scores(vectors, target.documents), passage_scores(vectors, passages)
    hit = []
    for own, other in zip(clean, crafted_, strict=True):
        rows = sorted([(-score, 0) for score in own.tolist()] + [(-score, 1) for score in other.tolist()])
        hit.append(any(kind for _, kind in rows[:k]))
    return float(np.mean(hit))


def test_success_by_thresholds_is_success_by_re_ranking_at_every_k(target, tmp_path):
    found = crafted(target, tmp_path, k=5)
    passages = target.retriever.encoder.encode_text(found.passages.texts)
    passages = np.concatenate([passages, target.documents[:2]])  # two copies of clean documents tie
    vectors = target.queries()
    hits = target.hits(100)
    scores = passage_scores(vectors, passages)
    report = evaluate_attack(scores, hits, 120, range(1, 101), target.data.queries.ids, target.data.qrels)
    for k in range(1, 101):
        assert report.asr[k] == by_re_ranking(target, None, vectors, passages, k), k
    low, high = report.interval[10]
    assert low <= report.asr[10] <= high and report.queries == 40
    merged = ExactIndex(
        [*target.data.corpus.ids, *(f"!{n}" for n in range(len(passages)))],
        np.concatenate([target.documents, passages]),
    ).topk(vectors, 10)  # "!" sorts before all ids, so that ties go to the clean here too
    assert report.share[10] == pytest.approx(float((merged.rows_QK >= 120).mean()), abs=1e-9)
    assert report.ndcg_after <= report.ndcg_before
    plain, sure = smallest_k(scores, hits, 20, report.asr[20])
    assert plain <= len(passages) and (sure is None or sure >= plain)


def test_each_further_passage_adds_what_the_set_with_it_reaches(target, tmp_path):
    found = crafted(target, tmp_path, k=6, evaluations=60)
    scores = passage_scores(target.queries(), target.retriever.encoder.encode_text(found.passages.texts))
    hits = target.hits(10)
    curve = success_by_count(scores, hits, 5)
    assert list(curve) == sorted({1, 2, 3, 5, scores.shape[1]})
    assert all(rate == success(scores[:, :count], hits, 5).mean() for count, rate in curve.items())
    assert success_by_count(scores[:, :0], hits, 5) == {}


def test_success_on_the_published_questions_is_success_by_re_ranking(target):
    generator = np.random.default_rng(0)
    documents = generator.normal(size=(3000, 24)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:200] + 0.3 * generator.normal(size=(200, 24)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    passages = cluster_queries(queries, 50).perfect_kH
    index = ExactIndex([f"d{number}" for number in range(3000)], documents)
    from lmlab.methods.corpus_poisoning import clean_hits

    asked = Queries(tuple(f"q{number}" for number in range(200)), ("",) * 200)
    hits = clean_hits(index, queries, asked, 1000)
    scores = passage_scores(queries, passages)
    both = ExactIndex([*index.ids, *(f"!{n}" for n in range(len(passages)))], np.concatenate([documents, passages]))
    rows = both.topk(queries, 1000).rows_QK
    for k in (1, 3, 5, 10, 20, 50, 100, 1000):
        assert float(success(scores, hits, k).mean()) == float((rows[:, :k] >= 3000).any(1).mean())


def test_a_query_without_a_relevant_document_has_none_to_be_beaten(target):
    ids, hits = target.data.queries.ids, target.hits(20)
    scores = passage_scores(target.queries(), target.queries()[:2])
    first, second = ids[:2]
    relevant = {first: {target.data.corpus.ids[int(hits.rows_QK[0, 0])]: 1}}
    both = {**relevant, second: {target.data.corpus.ids[0]: 0}}
    found = [evaluate_attack(scores, hits, 120, [1], ids, each).beats_gold for each in (relevant, both)]
    assert found == [1.0, 1.0]
    assert evaluate_attack(scores, hits, 120, [1], ids, {second: both[second]}).beats_gold is None


def test_a_query_that_is_a_document_does_not_count_itself(target):
    from lmlab.methods.corpus_poisoning import clean_hits

    ids = target.data.corpus.ids
    asked = Queries(("q1", ids[3]), ("", target.data.corpus.texts[3]))
    vectors = np.stack([target.documents[5], target.documents[3]])
    hits = clean_hits(target.index, vectors, asked, 10)
    assert hits.self_matches == 1 and hits.rows_QK[1][0] != 3 and 3 not in hits.rows_QK[1] and hits.rows_QK[0][0] == 5
    assert hits.rows_QK.shape == (2, 10)


def test_clusters_are_by_size_small_ones_are_merged_and_another_encoder_is_refused(target, tmp_path):
    vectors = target.queries()
    far = np.concatenate([vectors, -vectors.mean(0, keepdims=True)])
    found = cluster_queries(far, 3, about={"encoder": {"model": "a"}, "k": 3})
    assert found.sizes == sorted(found.sizes, reverse=True) and sum(found.sizes) == len(far)
    assert found.merged + len(found) == 3 and found.merged >= 1
    for number in range(len(found)):
        assert np.allclose(found.centroids_kH[number], far[found.labels_n == number].mean(0), atol=1e-5)
    assert np.allclose(np.linalg.norm(found.perfect_kH, axis=1), 1, atol=1e-6)
    found.save(tmp_path / "clusters.npz")
    again = Clusters.load(tmp_path / "clusters.npz", found.about)
    assert np.array_equal(again.labels_n, found.labels_n) and again.inertia == found.inertia
    with pytest.raises(UserError, match=r"belong to something else: k is 3, not 4"):
        Clusters.load(tmp_path / "clusters.npz", {**found.about, "k": 4})
    with pytest.raises(UserError, match="41 clusters of 40 distinct queries"):
        cluster_queries(vectors, 41)
    assert len(cluster_queries(vectors, 4, spherical=True)) <= 4
    (tmp_path / "clusters.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a file of clusters, or is damaged"):
        Clusters.load(tmp_path / "clusters.npz")


def test_vectors_that_cover_queries_together_cover_more_than_centroids_and_share_the_queries(target, tmp_path):
    vectors, tau = target.queries(), target.hits(20).tau(20)
    plain = cluster_queries(vectors, 4)
    found = cover_queries(plain, vectors, tau)
    objective = Coverage(torch.from_numpy(vectors), torch.from_numpy(tau))
    before, after = (float(objective.of_all(torch.from_numpy(each.perfect_kH))) for each in (plain, found))
    by_hand = (torch.from_numpy(vectors @ found.perfect_kH.T) * 40).logsumexp(1) / 40 - torch.from_numpy(tau)
    assert after == pytest.approx(float(torch.sigmoid(by_hand * 30).mean()), abs=1e-5) and after > before
    assert np.allclose(np.linalg.norm(found.centroids_kH, axis=1), 1, atol=1e-5)
    assert found.sizes == sorted(found.sizes, reverse=True) and sum(found.sizes) == len(vectors)
    assert np.array_equal(found.labels_n, (vectors @ found.centroids_kH.T).argmax(1))
    assert np.array_equal(cover_queries(plain, vectors, tau).centroids_kH, found.centroids_kH)
    settings = {"k": 2, "objective": "coverage", "clusters": "coverage", "evaluations": 60}
    one = crafted(target, tmp_path / "a", tau=tau, **settings)
    assert one.run != crafted(target, tmp_path / "b", tau=tau, **{**settings, "clusters": "means"}).run
    with pytest.raises(UserError, match="belong to something else: covering"):
        crafted(target, tmp_path / "a", tau=tau + 0.1, **settings)
    with pytest.raises(ValueError, match="clusters coverage is for the objective coverage"):
        CraftConfig(clusters="coverage")


def test_a_start_from_relevant_documents_is_their_words(target, small, tmp_path):
    config = CraftConfig(**{**FAST, "k": 2, "start": "gold", "evaluations": 60})
    found = craft_for(target.retriever, str(small), "train", config, tmp_path / "gold")
    data = load_dataset(small, "train")
    texts = dict(zip(data.corpus.ids, data.corpus.texts, strict=True))
    vectors = target.retriever.encoder.encode_text(data.queries.texts, "query")
    own = found.clusters.labels_n == 0
    nearest = np.flatnonzero(own)[int((vectors[own] @ vectors[own].mean(0)).argmax())]
    judged = data.qrels[data.queries.ids[nearest]]
    first = texts[next(id for id, grade in judged.items() if grade > 0)].split()
    still = craft_for(
        target.retriever, str(small), "train", config.model_copy(update={"evaluations": 1}), tmp_path / "still"
    )
    assert still.passages.texts[0].split()[:4] == first[:4]
    assert found.passages.passages[0].objective_text > still.passages.passages[0].objective_text
    (tmp_path / "others.jsonl").write_text('{"_id": "x", "text": "sea ship"}\n{"_id": "y", "text": "star moon"}\n')
    with pytest.raises(UserError, match="2 of 2 queries have no relevant document"):
        craft_for(target.retriever, str(small), "train", config, tmp_path / "o", str(tmp_path / "others.jsonl"))


def test_a_run_stops_adding_passages_at_its_target(target, small, tmp_path):
    config = CraftConfig(**FAST, k=6, target_asr=0.01, coverage_rank=100)
    found = craft_for(target.retriever, str(small), "train", config, tmp_path)
    assert len(found.passages) == 1 and len(found.clusters) == 6


def test_a_target_is_reached_with_the_same_passages_by_any_number_of_workers(target, small, tmp_path, monkeypatch):
    def in_workers(function, jobs, workers):  # the last clusters come first, and two are made beyond what is needed
        for number in (*range(4, len(jobs)), *range(4)):
            yield number, function(jobs[number])

    config = CraftConfig(**{**FAST, "k": 6, "target_asr": 0.02, "coverage_rank": 100})
    rates = iter([False, True, True, True, True, True, True])
    monkeypatch.setattr(
        "lmlab.methods.corpus_poisoning.attack.run.passage_scores",
        lambda queries, passages: np.full((len(queries), len(passages)), 2.0 if next(rates) else -2.0, np.float32),
    )
    alone = craft_for(target.retriever, str(small), "train", config, tmp_path / "alone")
    threads, rates = torch.get_num_threads(), iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr("lmlab.methods.corpus_poisoning.attack.craft.fan_out", in_workers)
        together = config.model_copy(update={"workers": 2})
        craft_for(target.retriever, str(small), "train", together, tmp_path / "together")
    torch.set_num_threads(threads)
    assert len(alone.passages) == 2 and len(list((tmp_path / "together" / "clusters").iterdir())) == 4
    files = [(tmp_path / name / "adversarial.jsonl").read_bytes() for name in ("alone", "together")]
    assert files[0] == files[1]
    rates = iter([False, True])  # what was made beyond the target is not taken when the run is repeated
    assert len(craft_for(target.retriever, str(small), "train", config, tmp_path / "together").passages) == 2


def test_impossible_settings_end_before_any_work(target, place, small, tmp_path):
    from pydantic import ValidationError

    hits = target.hits(100)
    scores = passage_scores(target.queries(), target.documents[:1])
    with pytest.raises(UserError, match="The success at 121 means nothing in a corpus of 120 documents"):
        evaluate_attack(scores, hits, 120, [121])
    with pytest.raises(UserError, match="The success at 101 cannot be told: 100 clean documents"):
        hits.tau(101)
    with pytest.raises(UserError, match="0 queries"):
        evaluate_attack(scores[:0], hits, 120, [1])
    with pytest.raises(UserError, match="0 queries"):
        craft(target.retriever.spec, [], target.queries()[:0], CraftConfig(), tmp_path)
    with pytest.raises(UserError, match="50 tokens and 2 around it has 52; the encoder reads 32"):
        craft(target.retriever.spec, target.data.queries.texts, target.queries(), CraftConfig(), tmp_path)
    assert not (tmp_path / "clusters.npz").exists()
    with pytest.raises(ValidationError, match="payload needs payload_position"):
        CraftConfig(payload="x")
    overlay = tmp_path / "adversarial.jsonl"
    overlay.write_text('{"_id": "a", "text": "clean"}\n')
    with pytest.raises(UserError, match="line 1: the record is not marked as crafted"):
        AdversarialSet.load(overlay)
    other = EncoderSpec(str(write_retriever(tmp_path / "other", seed=5)))
    crafted(target, tmp_path / "one")
    with pytest.raises(UserError, match="something else: encoder.model is '[0-9a-f]+', not '[0-9a-f]+'"):
        craft(other, target.data.queries.texts, target.queries(), CraftConfig(**FAST, k=4), tmp_path / "one")
    assert write_collection(tmp_path / "c").exists() and place.exists() and small.exists()


def test_all_settings_that_decide_on_passages_tell_runs_apart(target, place):
    """Passages of another setting would be taken for those asked for."""
    default = _named(CraftConfig())
    assert not {"norm_cap", "each_query", "together", "concept", "query_id"} & default.keys()
    for changed in ({"norm_cap": 1.0}, {"norm_cap": 2.0}, {"each_query": True}, {"together": 2}, {"concept": "sea"}):
        assert _named(CraftConfig(**changed)) == {**default, **changed}


def test_what_other_code_has_made_is_not_taken_up(target, tmp_path, monkeypatch):
    """Files of clusters are named by all that decides on them, the version of crafting too."""
    found = crafted(target, tmp_path / "one")
    monkeypatch.setattr(craft_module, "_VERSION", craft_module._VERSION + 1)
    with pytest.raises(UserError, match="belong to something else: version is"):
        crafted(target, tmp_path / "one")
    (tmp_path / "one" / "clusters.npz").unlink()
    made = {path.name for path in (tmp_path / "one" / "clusters").iterdir()}
    again = crafted(target, tmp_path / "one")
    assert again.run != found.run and not made & {f"{again.run}-{n:05d}.json" for n in range(len(again.clusters))}
    assert again.passages.texts == found.passages.texts


def test_passages_for_other_thresholds_are_not_taken_from_a_finished_run(target, tmp_path):
    config = CraftConfig(**{**FAST, "k": 2, "evaluations": 60, "objective": "coverage"})
    given = (target.retriever.spec, target.data.queries.texts, target.queries(), config, tmp_path)
    tau = target.hits(20).tau(20)
    runs = [craft(*given, each).run for each in (tau, tau, tau + np.float32(0.1))]
    assert runs[0] == runs[1] != runs[2]  # a corpus that has changed has other thresholds


@pytest.mark.parametrize("position", ["none", "prefix", "suffix"])
def test_passages_against_a_decoder_are_read_back_too(position, tmp_path):
    """Its tokenizer spells spaces: a word has one id at the beginning of a text and another behind a space, and what is
    not a word may join its neighbors.
    """
    words = "the sea ship captain island storm harbor sailor whale ocean wind moon star king bread"
    tokenizer = Tokenizer.train([" ".join(words.split()[::-1]), words] * 20, 420)
    config = ModelConfig(vocab_size=420, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=40, max_seq_len=64)
    save_pretrained(Transformer(config).initialize(0), tmp_path)
    tokenizer.save(tmp_path)
    encoder = load_encoder(tmp_path, pooling="mean")
    allowed = allowed_ids(encoder.tokenizer)
    first, later = places_of(encoder.tokenizer, allowed)
    assert first.sum() > 5 and later.sum() > 5 and not (first & later).any()
    texts = ["the sea is a whale?", "who is the captain of the storm"]
    vectors = encoder.encode_text(texts, "query")
    payload = "" if position == "none" else "moon king"
    for optimizer in ("multiflip", "gcg", "hotflip", "arca", "gaslite"):
        settings = {"k": 1, "length": 10, "evaluations": 260, "candidates": 12, "optimizer": optimizer}
        settings |= {} if position == "none" else {"payload_position": position, "payload": payload}
        how = CraftConfig(**settings)
        start = start_ids(how, encoder, texts, vectors)
        passage = craft_passage(encoder, MeanSimilarity.of(torch.from_numpy(vectors)), start, how, "run", "0", payload)
        assert encoder.tokenizer.inner([passage.text])[0] == list(passage.token_ids), (optimizer, passage.note)
        assert passage.objective_ids == pytest.approx(passage.objective_text, abs=1e-6) and payload in passage.text
