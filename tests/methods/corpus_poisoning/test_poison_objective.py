"""Gradients, the centroid's identity, batches, the vocabulary, and the optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import OPTIMIZERS, Budget, Coverage, HubCapped, MeanSimilarity, Problem, optimize
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, reads_back, spell
from lmlab.retrieval import load_encoder
from tiny_retriever import SPECIAL, WORDS, write_retriever

LENGTH = 8


def problem_of(target, objective=None, budget=400, precision="fp32", **changes) -> Problem:
    encoder = target.retriever.encoder
    objective = objective or MeanSimilarity.of(torch.from_numpy(target.queries()))
    allowed = allowed_ids(encoder.tokenizer)
    return Problem(encoder, objective, allowed, np.ones(LENGTH, bool), Budget(budget), precision, **changes)


def start(problem, seed=0):
    return np.random.default_rng(seed).choice(problem.allowed_V, problem.length)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_first_order_gain_is_the_derivative_along_the_replacement(pooling, tmp_path, target):
    encoder = load_encoder(write_retriever(tmp_path, pooling=pooling))
    encoder.body.module.double()
    objective = MeanSimilarity.of(torch.from_numpy(target.queries()).double())
    problem = Problem(encoder, objective, allowed_ids(encoder.tokenizer), np.ones(LENGTH, bool), Budget(999))
    ids = start(problem)
    gains = problem.first_order(problem.gradient(ids[None]), ids)
    table = encoder.embedding_matrix_VD
    wrapped = problem.wrap(ids[None])
    generator = np.random.default_rng(1)
    for _ in range(20):
        place, column = int(generator.integers(LENGTH)), int(generator.integers(len(problem.allowed_V)))
        if problem.allowed_V[column] == ids[place]:
            assert gains[place, column] == -np.inf
            continue
        step = table[problem.allowed_V[column]] - table[ids[place]]
        values = []
        for size in (1e-4, -1e-4):
            embeddings = table[wrapped].clone()
            embeddings[0, 1 + place] += size * step  # one token stands before the passage
            values.append(float(objective(encoder.variant(dim=0).encode_embeds(embeddings))[0]))
        slope = (values[0] - values[1]) / 2e-4
        assert gains[place, column] == pytest.approx(slope, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_mean_similarity_is_the_product_with_the_centroid(normalize, tmp_path):
    encoder = load_encoder(write_retriever(tmp_path, normalize=normalize))
    queries = torch.from_numpy(encoder.encode_text([" ".join(WORDS[n : n + 4]) for n in range(30)], "query")).double()
    passages = torch.from_numpy(encoder.encode_text([" ".join(WORDS[n : n + 9]) for n in range(20)])).double()
    objective = MeanSimilarity.of(queries, unit=normalize)
    assert torch.allclose(objective(passages), (passages @ queries.T).mean(1), atol=1e-6, rtol=1e-6)
    if normalize:
        assert objective(passages).max() <= objective.bound + 1e-6
        best = objective.mu_H / objective.mu_H.norm()
        assert float(objective(best[None])) == pytest.approx(objective.bound)
    else:
        assert objective.bound is None


def test_scores_in_a_batch_are_those_of_single_passages_however_they_are_padded(target):
    problem = problem_of(target)
    ids = np.stack([start(problem, seed) for seed in range(30)])
    single = np.array([problem.score(each) for each in ids])
    assert np.abs(problem.scores(ids) - single).max() < 1e-5
    assert np.abs(problem.scores(ids[:7]) - single[:7]).max() < 1e-5
    encoder = target.retriever.encoder
    rows = problem.wrap(ids)
    padded = torch.cat([rows, torch.zeros(30, 6, dtype=torch.long)], 1)
    mask = torch.arange(padded.shape[1])[None].expand(30, -1) < rows.shape[1]
    with torch.no_grad():
        values = problem.objective(encoder.encode_ids(padded, mask)).numpy()
    assert np.abs(values - single).max() < 1e-5
    assert problem.budget.spent == 30 + 30 + 7


def test_allowed_words_survive_being_text_and_the_others_are_left_out(target):
    tokenizer = target.retriever.encoder.tokenizer
    allowed = allowed_ids(tokenizer)
    pieces = tokenizer.pieces(allowed.tolist())
    assert set(WORDS) <= set(pieces) and not set(pieces) & {*SPECIAL, "##s", "##ing"}
    generator = np.random.default_rng(0)
    for _ in range(50):
        assert reads_back(tokenizer, generator.choice(allowed, 12))
    letters = tokenizer.pieces(allowed_ids(tokenizer, "letters").tolist())
    assert "." not in letters and "1" not in letters and "sea" in letters
    assert spell(tokenizer, tokenizer.inner(["ships sailing"])[0]) == "ships sailing" or "[UNK]" in spell(
        tokenizer, tokenizer.inner(["ships sailing"])[0]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_keeps_to_its_budget_and_never_ends_below_its_start(name, target):
    problem = problem_of(target, budget=900)
    ids = start(problem)
    before = problem.score(ids)
    problem.budget.spent = 0
    found = optimize(problem, ids, name, candidates=12, seed=3)
    assert problem.budget.spent <= 901
    assert found.value == pytest.approx(problem.score(found.ids_L), abs=1e-6)
    assert found.value >= before and (name == "none" or found.value > before)
    assert np.isin(found.ids_L, problem.allowed_V).all()
    again = optimize(problem_of(target, budget=900), ids, name, candidates=12, seed=3)
    assert np.array_equal(again.ids_L, found.ids_L) and again.value == found.value
    values = [value for _, value in problem.trace]
    assert values == sorted(values)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("words", [1, 2, 3])
def test_where_few_words_are_allowed_all_are_tried_and_the_search_ends(name, words, target):
    """Nothing is left to ask the network about; what is found is the best of all texts, or where each flip loses."""
    problem = problem_of(target, budget=900)
    problem.allowed_V = problem.allowed_V[:words]
    problem.free_L = np.array([False] * 5 + [True] * 3)
    ids = np.full(8, problem.allowed_V[0])
    found = optimize(problem, ids, name, candidates=12, seed=3)
    assert np.isin(found.ids_L, problem.allowed_V).all() and np.array_equal(found.ids_L[:5], ids[:5])
    assert found.value == pytest.approx(problem_of(target).score(found.ids_L), abs=1e-6)
    if name == "multiflip":
        assert found.stopped == "plateau" and problem.budget.spent < 600
        flips = [found.ids_L.copy() for _ in range(3 * words)]
        for number, flip in enumerate(flips):
            flip[5 + number // words] = problem.allowed_V[number % words]
        assert problem_of(target).scores(np.array(flips)).max() <= found.value + 1e-6


def test_frozen_positions_stay_and_a_bound_or_a_target_ends_the_work(target):
    problem = problem_of(target, budget=300)
    problem.free_L = np.array([False] * 3 + [True] * 5)
    ids = start(problem)
    found = optimize(problem, ids, candidates=10)
    assert np.array_equal(found.ids_L[:3], ids[:3]) and not np.array_equal(found.ids_L, ids)
    own = target.retriever.encoder.encode_ids(problem.wrap(ids[None])).detach()[0]
    reached = optimize(problem_of(target, MeanSimilarity(own)), ids)
    assert reached.stopped == "bound" and np.array_equal(reached.ids_L, ids)
    stopped = optimize(problem_of(target), ids, "hotflip", 10, target=lambda passage: True)
    assert stopped.stopped == "target"


def test_coverage_rises_where_the_thresholds_are_passed_and_a_cap_on_hubs_lowers_the_mean(target):
    queries = torch.from_numpy(target.queries())
    tau = torch.from_numpy(target.hits(3).tau(3))
    objective = Coverage(queries, tau)
    passage = queries[:1]
    exact = torch.sigmoid(((queries @ passage[0]) - tau) * 30).mean()
    assert float(objective(passage)) == pytest.approx(float(exact), rel=1e-5)
    beside = Coverage(queries, tau, others_n=queries @ queries[1])
    assert float(beside(passage)) >= float(exact) - 1e-6
    problem = problem_of(target, objective, budget=600)
    ids = start(problem)
    before = problem.score(ids)
    assert optimize(problem, ids, candidates=12).value > before
    plain = optimize(problem_of(target, budget=600), ids, candidates=12)
    mean = MeanSimilarity.of(queries)
    capped = HubCapped(mean, queries, cap=float(plain.value) - 0.05)
    found = optimize(problem_of(target, capped, budget=600), ids, candidates=12)
    value = float(mean(target.retriever.encoder.encode_ids(problem.wrap(found.ids_L[None])))[0])
    assert value < plain.value - 0.01


def test_a_gradient_of_zero_and_a_passage_too_long_are_told(target):
    problem = problem_of(target, MeanSimilarity(torch.zeros(32)))
    with pytest.raises(UserError, match="The gradient is zero at the passage encoder: check that the document encoder"):
        problem.gradient(start(problem)[None])
    with pytest.raises(UserError, match="A passage of 31 tokens and 2 around it has 33; the encoder reads 32"):
        Problem(problem.encoder, problem.objective, problem.allowed_V, np.ones(31, bool), Budget(9))
