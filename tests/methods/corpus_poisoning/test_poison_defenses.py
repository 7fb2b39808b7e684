"""Detectors and the gate: thresholds at a rate of clean passages, and what each detector tells."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
import transformers

from lmlab import plugins
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import CraftConfig, craft
from lmlab.methods.corpus_poisoning.defend.detector import (
    DetectorContext,
    Passages,
    Threshold,
    average_precision,
    make_detector,
)
from lmlab.methods.corpus_poisoning.defend.duplicates import _grams, most_shared, nearest_cosine
from lmlab.methods.corpus_poisoning.defend.gate import AdmissionGate, _share_below
from lmlab.methods.corpus_poisoning.defend.language import _bigrams, turned
from lmlab.methods.corpus_poisoning.defend.masking import token_gradients
from lmlab.methods.corpus_poisoning.defend.measure import (
    _change,
    _thirds,
    clean_ndcg,
    measure_defenses,
    measure_fusion,
    without,
)
from lmlab.methods.corpus_poisoning.defend.run import fit_gate, score_passages
from lmlab.methods.corpus_poisoning.measure.evaluate import passage_scores
from lmlab.methods.corpus_poisoning.report import _defenses
from lmlab.retrieval import ExactIndex, fuse_rrf, load_encoder
from lmlab.stats import roc_auc
from tiny_retriever import TOPICS, WORDS, wordpiece, write_retriever


@pytest.fixture(scope="module")
def crafted(target, tmp_path_factory):
    config = CraftConfig(k=3, length=10, evaluations=250, candidates=12, precision="fp32")
    out = tmp_path_factory.mktemp("crafted")
    found = craft(target.retriever.spec, target.data.queries.texts[:20], target.queries()[:20], config, out)
    return Passages.of(found.passages.texts, target.retriever.encoder)


@pytest.fixture
def context(target):
    return DetectorContext(
        target.retriever.encoder, target.index, list(target.data.queries.texts[20:]), target.queries()[20:]
    )


@pytest.fixture
def clean(target):
    return Passages(target.data.corpus.texts, target.documents)


def test_thresholds_and_figures_of_detection_are_those_by_hand():
    clean = np.arange(100.0)
    for rate, refused in ((0.01, 1), (0.05, 5), (0.5, 50), (0.015, 1)):
        assert (clean > Threshold.at(clean, rate).value).sum() == refused
    tied = np.array([1.0] * 50 + [2.0] * 50)
    assert (tied > Threshold.at(tied, 0.1).value).sum() == 0  # never more than the rate
    with pytest.raises(UserError, match="on 0 clean passages"):
        Threshold.at(clean[:0], 0.1)
    with pytest.raises(UserError, match="2 clean documents are too few to fit detectors"):
        _thirds(2)
    generator = np.random.default_rng(0)
    from sklearn.metrics import average_precision_score, roc_auc_score

    for _ in range(10):
        clean, crafted = np.round(generator.normal(size=30), 1), np.round(generator.normal(size=9) + 1, 1)
        labels = np.r_[np.zeros(30), np.ones(9)]
        values = np.r_[clean, crafted]
        assert roc_auc(clean, crafted) == pytest.approx(roc_auc_score(labels, values))
        fine = generator.normal(size=39)  # without ties, where both say the same
        assert average_precision(fine[:30], fine[30:]) == pytest.approx(average_precision_score(labels, fine))


def test_what_lies_in_a_gap_between_clean_scores_is_not_all_alike(context, clean, monkeypatch):
    scores = np.sort(np.r_[np.arange(40.0) / 40, 9.0])  # one clean passage far above the others
    assert _share_below(scores, scores) == pytest.approx(np.arange(41) / 41)
    assert _share_below(np.array([1.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.5, 2.0])) == pytest.approx(
        [0, 0, 1 / 3, 2 / 3]
    )
    within = np.linspace(1.0, 12.0, 50)
    assert (np.diff(_share_below(scores, within)) > 0).all()
    gate = AdmissionGate.fit(["similarity"], context, clean.part(range(41)), clean.part(range(41, 120)), 0.1)
    gate._clean = {"similarity": scores}  # of a detector to which all that it was not fitted on looks odd
    monkeypatch.setattr(gate.detectors["similarity"], "score", lambda passages: within[: len(passages)])
    bound = Threshold.at(gate.suspicion(clean.part(range(50))), 0.1)
    assert (gate.suspicion(clean.part(range(50))) > bound.value).sum() == 5


def test_how_well_a_gate_parts_is_told_on_documents_that_it_was_not_fitted_on(context, clean, crafted, tmp_path):
    gate = AdmissionGate.fit(["similarity"], context, clean.part(range(40)), clean.part(range(40, 100)), 0.05)
    gate.save(tmp_path)
    for found in (gate, AdmissionGate.load(tmp_path, context)):
        assert found.unseen(clean) == list(range(40, 120))
        told = score_passages(found, crafted.texts, clean)
        own = make_detector("similarity", context)
        expected = roc_auc(own.score(clean.part(range(40, 120))), own.score(crafted))
        assert (told["clean"], told["clean_left_out"]) == (80, 40)
        assert told["auroc"]["similarity"] == pytest.approx(expected)
        with pytest.raises(UserError, match="was fitted on all of 40 documents"):
            score_passages(found, crafted.texts, clean.part(range(40)))
    gate.fitted = None  # as of a file that does not say
    with pytest.raises(UserError, match="does not say which documents it was fitted on"):
        score_passages(gate, crafted.texts, clean)
    assert "auroc" not in score_passages(gate, crafted.texts, None)


def test_the_cost_of_a_defense_is_told_from_a_sample_too(context, target, crafted):
    hits = target.hits(140)
    whole = clean_ndcg(hits, target.data.queries.ids, target.data.qrels)
    generator, count = np.random.default_rng(0), len(target.data.corpus)
    refused = np.sort(generator.choice(count, 6, replace=False))

    def lost(*rows: int) -> float:
        kept = without(hits, np.array(rows))
        return clean_ndcg(kept, target.data.queries.ids, target.data.qrels) - whole

    assert _change(hits, refused, target, count) == pytest.approx(lost(*refused))
    added = sum(lost(row) for row in refused)
    told = []  # over halves of the documents the estimates are right on average
    for seed in range(200):
        half = set(np.random.default_rng(seed).permutation(count)[: count // 2].tolist())
        seen = np.array([row for row in refused if row in half], np.int64)
        told.append(_change(hits, seen, target, count // 2))
    assert np.mean(told) == pytest.approx(added, rel=0.2) and added != 0
    (row,) = measure_defenses(["norm"], context, target, {"crafted": crafted}, sample=60)
    assert row.ndcg_change is not None and row.ndcg_change <= 0.05


def test_hubness_counts_the_questions_a_passage_would_be_seen_by(context, clean, crafted):
    detector = make_detector("hubness", context)
    detector.fit(clean)
    scores = detector.score(crafted)
    tau = np.sort(context.sentinel_vectors @ clean.vectors.T, axis=1)[:, -10]
    counts = (context.sentinel_vectors @ crafted.vectors.T >= tau[:, None] - 1e-6).sum(0)
    means = (context.sentinel_vectors @ crafted.vectors.T).mean(0)
    assert np.allclose(scores, counts + np.tanh(means), atol=1e-5)
    assert np.allclose(make_detector("similarity", context).score(crafted), means, atol=1e-6)
    assert roc_auc(detector.score(clean), scores) > 0.8


def test_hubness_refuses_the_same_share_of_documents_that_are_new_as_of_the_corpus():
    """A threshold is set on documents of the corpus, which compete with themselves, and is for those that are not."""
    generator = np.random.default_rng(0)

    def drawn(count):
        vectors = generator.normal(size=(count, 6)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    members, new, sentinels = drawn(600), drawn(6000), drawn(400)
    index = ExactIndex([f"d{number}" for number in range(600)], members)
    detector = make_detector("hubness", DetectorContext(None, index, ("?",), sentinels))
    own, others = Passages([""] * 600, members), Passages([""] * 6000, new)
    detector.fit(own)
    counts = [np.round(detector.score(each) - np.tanh((each.vectors @ sentinels.T).mean(1))) for each in (own, others)]
    assert counts[0].sum() == 10 * 400  # each sentinel's first ten
    assert counts[0].mean() == pytest.approx(counts[1].mean(), rel=0.05)


def test_what_a_defense_leaves_is_of_the_queries_that_are_asked(context, target, crafted):
    """A passage that is one query hits that one, and no other at rank 1 that is not as near."""
    one = Passages(["what is"], target.queries()[:1])
    similar, tau = passage_scores(target.queries(), one.vectors)[:, 0], target.hits(1).tau(1)
    hit = np.flatnonzero(similar > tau).tolist()
    missed = np.flatnonzero(similar <= tau).tolist()
    for asked, expected in ((hit, 1.0), (missed, 0.0), (hit + missed, len(hit) / len(similar))):
        given = ({"one": one}, (1,))
        (row,) = measure_defenses(["near_duplicate"], context, target, *given, asked={"one": asked})
        assert row.tpr["0.01"] == 0 and row.asr["1"] == pytest.approx(expected)
    (whole,) = measure_defenses(["near_duplicate"], context, target, *given)
    assert whole.asr == row.asr
    shares = [measure_fusion(target, *given, 5, asked={"one": [number]})[0].asr["1"] for number in range(20)]
    (together,) = measure_fusion(target, *given, 5, asked={"one": range(20)})
    assert set(shares) <= {0.0, 1.0} and together.asr["1"] == pytest.approx(np.mean(shares))


def test_fusion_knows_no_passage_that_either_search_does_not_find(target, monkeypatch):
    """Else a passage that is nowhere near would be the first behind the documents that were looked at."""
    depth, fused = 3, []
    target.hits(40)  # what another command has looked up deeper changes nothing

    def kept(runs, k):
        fused.append(runs)
        return fuse_rrf(runs, k)

    monkeypatch.setattr("lmlab.methods.corpus_poisoning.defend.measure.fuse_rrf", kept)
    far = Passages(["bread oven"] * 2, -target.queries()[[0, 0]])  # nothing is further from the first question
    measure_fusion(target, {"far": far}, (1,), depth)
    (dense, _), (dense_too, _) = fused
    similar = passage_scores(target.queries(), far.vectors)
    assert len(fused) == 2 and all(len(found) == depth for found in dense_too.values())
    for query, found in dense.items():
        best = sorted([*found.values(), *similar[target.data.queries.ids.index(query)].tolist()], reverse=True)[:depth]
        assert sorted(dense_too[query].values(), reverse=True) == pytest.approx(best)
    first = target.data.queries.ids[0]
    assert dense_too[first] == dense[first]


def test_excerpts_of_the_documents_tell_what_is_near_to_all_of_them(context, clean, crafted):
    detector = make_detector("excerpts", DetectorContext(context.encoder))  # without questions, without an index
    detector.fit(clean)
    excerpts = detector.state()["excerpts"]
    assert len(excerpts) == len(clean.texts) and np.allclose(np.linalg.norm(excerpts, axis=1), 1, atol=1e-5)
    scores = detector.score(crafted)
    assert scores == pytest.approx((crafted.vectors @ excerpts.T).mean(1), abs=1e-6)
    assert roc_auc(detector.score(clean), scores) > 0.8
    again = make_detector("excerpts", DetectorContext(context.encoder))
    again.fit(clean)
    assert np.array_equal(again.state()["excerpts"], excerpts)  # the same every time
    again.restore(detector.state())
    assert np.array_equal(again.score(crafted), scores)
    with pytest.raises(UserError, match="is fitted on documents with text"):
        again.fit(Passages(["", " "], crafted.vectors[:2]))


def test_lengths_are_compared_at_equal_numbers_of_tokens(tmp_path, target):
    encoder = load_encoder(write_retriever(tmp_path, normalize=False))
    texts = [" ".join(TOPICS[n % 6][: 1 + n % 9]) for n in range(120)]
    clean = Passages.of(texts, encoder)
    detector = make_detector("norm", DetectorContext(encoder))
    detector.fit(clean)
    scores = detector.score(clean)
    counts = np.array([len(text.split()) for text in texts])
    assert abs(scores.mean()) < 1e-4 and scores.std() == pytest.approx(1, abs=1e-4)
    assert abs(np.corrcoef(np.log(counts + 2), scores)[0, 1]) < 1e-3


def test_near_duplicates_are_told_by_vectors_and_by_words(context, target):
    texts = ["sea ship captain island storm", "sea ship captain island moon", "bread flour oven baker yeast"]
    passages = Passages(texts, np.eye(3, 32, dtype=np.float32))
    scores = make_detector("near_duplicate", context).score(passages)
    assert scores.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0])
    same = Passages(["sea", "ship"], np.ones((2, 32), np.float32))
    assert make_detector("near_duplicate", context).score(same).tolist() == pytest.approx([1.0, 1.0])
    assert make_detector("near_duplicate", context).score(same.part([0])).tolist() == [0.0]
    empty = Passages(["", " ", "\U0001f600"], np.ones((3, 32), np.float32))  # many documents may be empty
    assert make_detector("near_duplicate", context).score(empty).tolist() == [0.0] * 3


def test_near_duplicates_of_many_passages_are_those_of_comparing_all_with_all():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3000, 16)).astype(np.float32)
    vectors[2000:] = vectors[:1000] + 0.1 * generator.normal(size=(1000, 16)).astype(np.float32)
    exact, by_pivots = nearest_cosine(vectors), nearest_cosine(vectors, all_pairs=0)
    assert (by_pivots <= exact + 1e-6).all() and (by_pivots[2000:] > exact[2000:] - 1e-6).mean() > 0.98
    # every passage has common 3-grams with thousands; copies stand far apart and in one long row
    texts = [f"it is one of the {' '.join(map(str, generator.integers(0, 500, 12)))}" for _ in range(2000)]
    texts += [f"{text} again" for text in texts[:300]] + [f"{texts[5]} {number}" for number in range(300)]
    grams = [_grams(text) for text in texts]
    sets = [set(each.tolist()) for each in grams]
    shares = most_shared(grams)
    for row in (*range(0, 2000, 97), *range(2000, 2600, 41)):
        best = max(len(sets[row] & other) for number, other in enumerate(sets) if number != row) / len(sets[row])
        assert shares[row] <= best and (best < 0.5 or shares[row] == pytest.approx(best))
    started = time.process_time()
    most_shared([np.arange(60) for _ in range(8000)])  # 3.8 billion pairs
    assert time.process_time() - started < 20


def test_copied_questions_are_told_from_documents(context, clean, target):
    detector = make_detector("questions", context)
    detector.fit(clean)
    stuffed = [" ".join(target.data.queries.texts[n : n + 2]) for n in range(10)]
    scores = detector.score(Passages(stuffed, clean.vectors[:10]))
    assert roc_auc(detector.score(clean), scores) == 1.0
    fluent = "sea captain sailor ocean wind. what is sea ship captain?"  # a question within a document
    assert detector.score(Passages([fluent], clean.vectors[:1]))[0] > np.quantile(detector.score(clean), 0.99)
    again = make_detector("questions", context)
    again.restore(detector.state())
    assert np.array_equal(again.score(clean), detector.score(clean))
    assert detector.score(Passages(["", "?"], clean.vectors[:2])).shape == (2,)  # texts without words


def test_statements_become_questions_and_what_is_not_counted_tells_where_clean_text_lies(context, clean):
    told = ["Sea water is salty. The captain, who was late, has a ship! No verb here.", "is it? wind"]
    assert turned(told) == ["is sea water salty", "was the captain who late has a ship"]
    assert turned(["word " * 30 + "is far", ""]) == []
    questions = make_detector("questions", context)
    questions.fit(clean)
    pairs = [*_bigrams(" ".join(clean.texts)), *_bigrams(" ".join(context.sentinels))]
    counted = questions._ratio.keys() | questions._documents.keys()
    assert counted < set(pairs) | set(_bigrams(" ".join(turned(clean.texts))))
    aside = [row for row in np.random.default_rng(0).permutation(120)[:24]]
    scores = questions.score(clean.part(aside))
    assert (scores > 1).mean() <= 2 * 0.01 + 1 / 24  # by either figure
    # of a whole passage the mean counts: the same question twice is more than once before a document
    one = f"{context.sentinels[0]} {clean.texts[0]} {clean.texts[1]}"
    two = " ".join(context.sentinels[:4])
    assert questions.score(Passages([two], clean.vectors[:1])) > questions.score(Passages([one], clean.vectors[:1]))


def test_masking_the_tokens_that_carry_the_similarity_is_what_it_says(context, crafted):
    encoder = context.encoder
    scores = make_detector("mask_collapse", context).score(crafted)
    text, vector = crafted.texts[0], crafted.vectors[0]
    query = torch.from_numpy(context.sentinel_vectors[int((context.sentinel_vectors @ vector).argmax())])
    ids = encoder.tokenize([text])[0]
    similarity, lengths = token_gradients(encoder, ids, query)
    assert similarity == pytest.approx(float(query @ torch.from_numpy(vector)), abs=1e-5)
    inner = range(1, len(ids) - 1)
    mean = float(lengths[1:-1].mean())
    masked = [encoder.tokenizer.mask_id if n in inner and lengths[n] >= mean else id for n, id in enumerate(ids)]
    after = float(torch.from_numpy(encoder.encode_ids(torch.tensor([masked])).detach().numpy())[0] @ query)
    assert scores[0] == pytest.approx((similarity - after) / abs(similarity), abs=1e-4)


def masked_model(place, vocab_size, seed=0, kind="Bert", **more):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocab_size, **sizes, **more)
    getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(place)
    return place


def test_gmtp_reads_the_least_likely_of_the_tokens_that_matter(context, clean, crafted, tmp_path):
    context.masked_model = str(masked_model(tmp_path / "one", wordpiece().get_vocab_size()))
    scores = make_detector("gmtp", context).score(crafted)
    assert (scores > 1).all() and np.isfinite(scores).all()
    gate = AdmissionGate.fit(["gmtp"], context, clean.part(range(60)), clean.part(range(60, 120)), 0.05)
    gate.save(tmp_path / "gate")
    again = AdmissionGate.load(tmp_path / "gate", DetectorContext(context.encoder))  # a pipeline names no model
    assert np.allclose(again.suspicion(crafted), gate.suspicion(crafted))
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = DetectorContext(context.encoder, masked_model=str(tmp_path / "moved"))
    assert np.allclose(AdmissionGate.load(tmp_path / "gate", moved).suspicion(crafted), gate.suspicion(crafted))
    other = masked_model(tmp_path / "other", wordpiece().get_vocab_size(), seed=1)
    with pytest.raises(UserError, match="masked language model at .*other' is not the one that the detector gmtp was"):
        AdmissionGate.load(tmp_path / "gate", DetectorContext(context.encoder, masked_model=str(other)))
    context.masked_model = str(masked_model(tmp_path / "small", 20))
    with pytest.raises(UserError, match="has 20 ids, the retriever .*: their vocabularies differ"):
        make_detector("gmtp", context)


def test_gmtp_asks_a_model_of_another_vocabulary_about_what_stands_there(context, crafted, tmp_path):
    """RoBERTa's tokens are bytes with spaces, and its positions begin late; the retriever's tokens are words."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS[:40])] * 2, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = transformers.RobertaTokenizerFast(tokenizer_object=bpe._tokenizer)
    place = masked_model(tmp_path, 300, kind="Roberta", max_position_embeddings=40, pad_token_id=1)
    tokenizer.save_pretrained(place)
    context.masked_model = str(place)
    found = make_detector("gmtp", context).score(crafted)
    model = transformers.AutoModelForMaskedLM.from_pretrained(place).eval()
    encoder, expected = context.encoder, []
    for text, vector in zip(crafted.texts, crafted.vectors, strict=True):
        query = torch.from_numpy(context.sentinel_vectors[int((context.sentinel_vectors @ vector).argmax())])
        ids = encoder.tokenize([text])[0]
        _, lengths = token_gradients(encoder, ids, query)
        mean = float(lengths[1:-1].mean())
        places = sorted((n for n in range(1, len(ids) - 1) if lengths[n] >= mean), key=lambda n: -lengths[n])[:10]
        words, losses = text.split(), []
        assert [piece.removeprefix("##") for piece in encoder.tokenizer.pieces(ids[1:-1])] == words  # a word a token
        for n in places:
            before = len(" ".join(words[: n - 1])) + (n > 1)
            span = range(before, before + len(words[n - 1]))
            read = tokenizer(text, return_offsets_mapping=True)
            own = [t for t, (a, b) in enumerate(read["offset_mapping"]) if a < b and (a in span or b - 1 in span)]
            rows = torch.tensor([read["input_ids"]])[:, :38]
            own = [t for t in own if t < 38 and rows[0, t] != tokenizer.eos_token_id]
            if not own:
                continue
            wanted, rows[0, own] = rows[0, own].clone(), tokenizer.mask_token_id
            with torch.no_grad():
                chances = model(rows).logits[0, own].log_softmax(-1)
            losses.append(-float(chances[range(len(own)), wanted].mean()))
        expected.append(np.mean(sorted(losses)[-5:]))
    assert found == pytest.approx(expected, abs=1e-4)


def test_perplexity_is_the_language_models_and_a_window_shows_a_hidden_tail(context, tmp_path):
    from lmlab.data import Tokenizer
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    tokenizer = Tokenizer.train(["the sea and the ship"] * 3, 270)
    config = ModelConfig(vocab_size=270, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, max_seq_len=64)
    save_pretrained(Transformer(config).initialize(0), tmp_path)
    tokenizer.save(tmp_path)
    context.language_model = str(tmp_path)
    detector = make_detector("perplexity", context)
    whole, window = detector.surprise(["the sea and the SHIP" * 3, "x"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("the sea and the ship" * 3)]])  # lower-cased
    with torch.no_grad():
        expected = float(theirs(ids, labels=ids).loss)
    assert whole[0] == pytest.approx(expected, abs=1e-4) and window[0] >= whole[0] - 1e-9
    passages = Passages(["the sea " * 5, "the ship " * 4], np.zeros((2, 32), np.float32))
    detector.fit(passages)
    assert np.isfinite(detector.score(passages)).all()


def test_a_language_model_may_lie_elsewhere_but_is_the_one_that_was_fitted_with(target, context, clean, tmp_path):
    from lmlab.data import Tokenizer
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    tokenizer = Tokenizer.train(["the sea and the ship"] * 3, 270)
    config = ModelConfig(vocab_size=270, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, max_seq_len=64)
    for seed, name in enumerate(("here", "other")):
        save_pretrained(Transformer(config).initialize(seed), tmp_path / name)
        tokenizer.save(tmp_path / name)
    context.language_model = str(tmp_path / "here")
    gate = AdmissionGate.fit(["perplexity"], context, clean.part(range(20)), clean.part(range(20, 60)), 0.05)
    gate.save(tmp_path / "gate")
    (tmp_path / "here").rename(tmp_path / "there")

    def opened(name):
        return AdmissionGate.load(tmp_path / "gate", DetectorContext(context.encoder, language_model=str(name)))

    some = clean.part(range(60, 70))
    assert np.allclose(opened(tmp_path / "there").suspicion(some), gate.suspicion(some))
    with pytest.raises(UserError, match="other' is not the one that the detector perplexity was fitted with"):
        opened(tmp_path / "other").suspicion(some)
    how = CraftConfig(
        k=1,
        length=8,
        evaluations=40,
        candidates=8,
        known_gate=tmp_path / "gate",
        language_model=str(tmp_path / "there"),
    )
    found = craft(target.retriever.spec, target.data.queries.texts, target.queries(), how, tmp_path / "attack")
    assert len(found.passages) == 1


def test_a_gate_refuses_its_share_of_clean_passages_and_is_stored(context, clean, crafted, tmp_path, target):
    even, odd = clean.part(range(0, 120, 2)), clean.part(range(1, 120, 2))
    gate = AdmissionGate.fit(["hubness", "similarity", "questions"], context, even, odd, rate=0.05)
    refused = [not verdict.admit for verdict in gate.check_all(odd)]
    assert sum(refused) <= 3
    verdicts = gate.check_all(crafted)
    assert all(verdict.reasons for verdict in verdicts if not verdict.admit)
    gate.save(tmp_path)
    again = AdmissionGate.load(tmp_path, DetectorContext(target.retriever.encoder))
    for text, vector, verdict in zip(crafted.texts, crafted.vectors, verdicts, strict=True):
        found = again.check(text, vector)
        assert found.admit == verdict.admit and found.suspicion == pytest.approx(verdict.suspicion, abs=1e-9)
        assert again.check(text).admit == verdict.admit
    other = load_encoder(write_retriever(tmp_path / "other", seed=9))
    with pytest.raises(UserError, match="is for another encoder: model is '[0-9a-f]+', not '[0-9a-f]+'"):
        AdmissionGate.load(tmp_path, DetectorContext(other))
    (tmp_path / "gate.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="is not a gate, or is damaged"):
        AdmissionGate.load(tmp_path, DetectorContext(target.retriever.encoder))


class _Remembers:
    """A detector to which what it was fitted on looks clean, and all else odd, in different ways."""

    def __init__(self, spread: float) -> None:
        self._spread, self._seen = spread, set()

    def fit(self, clean):
        self._seen = set(clean.texts)

    def score(self, passages):
        odd = np.array([0.0 if text in self._seen else 1.0 for text in passages.texts])
        return passages.vectors[:, 0].astype(float) * self._spread + odd * self._spread * 10


class _Plain(_Remembers):
    def score(self, passages):
        return passages.vectors[:, 1].astype(float)


def test_shares_and_threshold_of_a_gate_are_those_of_clean_passages_that_no_detector_has_seen(context, monkeypatch):
    made = {"remembers": _Remembers, "plain": _Plain}
    monkeypatch.setattr(
        "lmlab.methods.corpus_poisoning.defend.gate.make_detector", lambda name, context: made[name](1.0)
    )
    drawn = np.random.default_rng(0).normal(size=(9000, 2)).astype(np.float32)
    every = Passages([str(number) for number in range(9000)], drawn)
    gate = AdmissionGate.fit(list(made), context, every.part(range(3000)), every.part(range(3000, 6000)), rate=0.05)
    come = gate.check_all(every.part(range(6000, 9000)))
    refused = [verdict.reasons for verdict in come if not verdict.admit]
    assert 0.04 < len(refused) / 3000 < 0.06
    # each of the two refuses about half: by shares of what was seen, all would be odd to one, and nothing to the other
    counts = [sum(name in reasons for reasons in refused) for name in made]
    assert min(counts) > 50 and sum(gate.suspicion(every.part(range(3000, 6000))) > gate.threshold.value) <= 150
    odd_to_one = Passages(["new"], np.array([[0.0, 9.0]], np.float32))
    assert gate.check_all(odd_to_one)[0].reasons == ("plain",)
    none = gate.excess(Passages(["new"], np.array([[0.0, 0.0]], np.float32)))
    assert none[0] == 0 and gate.excess(odd_to_one)[0] > 0


def test_a_gate_of_another_version_says_how_to_fit_again(context, clean, tmp_path):
    AdmissionGate.fit(["similarity"], context, clean, clean, rate=0.05).save(tmp_path)
    about = json.loads((tmp_path / "gate.json").read_text())
    for version, told in ((None, "an earlier version"), (99, "another version")):
        other = {key: value for key, value in about.items() if key != "version"}
        (tmp_path / "gate.json").write_text(json.dumps(other | ({} if version is None else {"version": version})))
        with pytest.raises(UserError, match=f"written by {told}") as caught:
            AdmissionGate.load(tmp_path, context)
        assert "lmlab poison detect fit" in str(caught.value)


def test_a_gate_that_refuses_none_or_all_is_refused(target, context, clean, tmp_path):
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="is not between 0 and 1"):
            fit_gate(target, context, ["similarity"], rate, tmp_path)
        with pytest.raises(UserError, match="is not between 0 and 1"):
            AdmissionGate.fit(["similarity"], context, clean, clean, rate)
    assert not list(tmp_path.iterdir())


def test_the_page_of_defenses_has_its_rates_and_depths_in_order():
    row = {"defense": "excerpts", "attack": "a", "auroc": 0.5, "fpr": 0.01, "ndcg_change": 0.0}
    rows = [
        {**row, "tpr": {"0.01": 0.1, "0.05": 0.2}, "asr": {"20": 0.4, "10": 0.3}},
        {**row, "tpr": {"0.005": 0.3}, "asr": {"10": 0.5, "20": 0.6}},
    ]
    (table,) = _defenses(rows).blocks
    assert list(table.columns) == [
        "Defense", "Attack", "AUROC", "Refused at 0.5 % clean", "Refused at 1 % clean", "Refused at 5 % clean",
        "ASR@10 % left", "ASR@20 % left", "Clean refused %", "Clean nDCG@10",
    ]  # fmt: skip
    assert table.rows[0][3:8] == [None, 10.0, 20.0, 30.0, 40.0] and table.rows[1][3:8] == [30.0, None, None, 50.0, 60.0]


def test_the_gate_takes_a_millisecond_beside_encoding(context, clean):
    generator = np.random.default_rng(0)
    context.sentinel_vectors = generator.normal(size=(5000, 32)).astype(np.float32)
    gate = AdmissionGate.fit(["hubness", "similarity", "questions"], context, clean, clean, rate=0.05)
    gate.check(clean.texts[0], clean.vectors[0])
    times = []
    for row in range(50):
        started = time.perf_counter()
        gate.check(clean.texts[row], clean.vectors[row])
        times.append(time.perf_counter() - started)
    assert min(times) < 0.003  # on an idle core below 1 ms; the least of many, as others may use the machine


def test_what_a_detector_lacks_is_told(context, clean, target):
    assert {"hubness", "perplexity", "questions"} <= set(plugins.known("detectors"))
    with pytest.raises(UserError, match="unknown detector 'hubnes'. Did you mean 'hubness'"):
        make_detector("hubnes", context)
    bare = DetectorContext(target.retriever.encoder)
    for name, lacking in (
        ("hubness", "sentinel questions"),
        ("questions", "sentinel questions"),
        ("mask_collapse", "sentinel questions"),
        ("perplexity", "a language model"),
    ):
        with pytest.raises(UserError, match=f"needs {lacking}"):
            make_detector(name, bare)
    with pytest.raises(UserError, match=r"120 clean passages cannot tell a threshold at which 0.1 % are refused"):
        AdmissionGate.fit(["hubness"], context, clean, clean, rate=0.001)
    with pytest.raises(UserError, match="is not between 0 and 1"):
        AdmissionGate.fit(["hubness"], context, clean, clean, rate=1.0)
