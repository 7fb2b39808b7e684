"""Fluent passages by a language model's beam search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lmlab.data import Tokenizer
from lmlab.methods.corpus_poisoning import Budget, CraftConfig, MeanSimilarity, craft
from lmlab.methods.corpus_poisoning.attack.passage import seed_of
from lmlab.methods.corpus_poisoning.attack.searching.decode import continuations, fluent_search, language_model
from lmlab.models import GenerationConfig, ModelConfig, Transformer, generate, save_pretrained
from tiny_retriever import WORDS


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A language model that knows the collection's words."""
    place = tmp_path_factory.mktemp("writer")
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 20, 400)
    config = ModelConfig(vocab_size=400, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, max_seq_len=64)
    save_pretrained(Transformer(config).initialize(0), place)
    tokenizer.save(place)
    return str(place)


def test_the_search_nears_its_target_keeps_to_length_and_budget_and_tells_the_surprise(target, writer):
    encoder, own = target.retriever.encoder, torch.from_numpy(target.queries()[:6])
    search, objective, budget = fluent_search(writer, encoder, 9.0), MeanSimilarity.of(own), Budget(300)
    found = search.run(objective, lambda text: text, 10, budget)
    assert budget.spent <= 300 and len(encoder.tokenizer.inner([found.text])[0]) <= 10
    assert found.value == pytest.approx(float(objective(torch.from_numpy(encoder.encode_text([found.text])))[0]))
    at_random = [" ".join(np.random.default_rng(seed).permutation(WORDS)[:10]) for seed in range(50)]
    others = objective(torch.from_numpy(encoder.encode_text(at_random)))
    assert found.value > float(others.quantile(0.9))
    ids = search.tokenizer.encode(found.text, "as_text")
    assert found.text == found.text.lower() and all(ids.count(id) <= 4 for id in ids)
    rows = torch.tensor([[search.tokenizer.bos_id, *search.tokenizer.encode(found.text, "as_text")]])
    with torch.no_grad():
        log_probs = search.model(rows[:, :-1]).logits_BTV.double().log_softmax(-1)
    losses = -log_probs.gather(-1, rows[:, 1:, None])[0, :, 0]
    assert found.surprise == pytest.approx(float(losses.mean()), abs=1e-3)
    strict = fluent_search(writer, encoder, 4.0).run(objective, lambda text: text, 10, Budget(300))
    assert strict.surprise < found.surprise + 1e-9 and strict.value <= found.value + 1e-9


def test_the_first_word_begins_the_text_unless_a_payload_stands_before_it(target, writer, monkeypatch):
    search = fluent_search(writer, target.retriever.encoder, 9.0)
    objective, begun, first = MeanSimilarity.of(torch.from_numpy(target.queries()[:6])), [], search._liking_first
    monkeypatch.setattr(search, "_liking_first", lambda liking_V: begun.append(True) or first(liking_V))
    frames = {"{}": True, "{} sea ship": True, "sea ship {}": False, "a sea ship {}": False, "bay {}": False}
    for frame, begins in frames.items():
        begun.clear()
        found = search.run(objective, frame.format, 8, Budget(60))
        assert begun == [True] * begins and found.text.startswith(frame.partition("{}")[0])


def test_passages_of_a_language_model_have_their_payload_and_are_the_same_each_time(target, writer, tmp_path):
    config = CraftConfig(
        k=2, length=12, evaluations=120, optimizer="decode", language_model=writer, payload_position="suffix",
        payload="sea ship",
    )  # fmt: skip
    texts, vectors = target.data.queries.texts[:20], target.queries()[:20]
    found = [craft(target.retriever.spec, texts, vectors, config, tmp_path / name) for name in ("one", "two")]
    for passage in found[0].passages.passages:
        assert passage.text.endswith(" sea ship") and len(passage.token_ids) <= 12 and "nats a token" in passage.note
        assert passage.objective_ids == passage.objective_text and passage.evaluations <= 120
    files = [(tmp_path / name / "adversarial.jsonl").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    with pytest.raises(ValidationError, match="optimizer decode needs language_model"):
        CraftConfig(optimizer="decode")


def test_a_start_that_a_language_model_wrote_is_what_it_writes_after_the_queries(target, writer, tmp_path):
    texts, vectors = target.data.queries.texts[:20], target.queries()[:20]
    order = np.argsort(-(vectors @ vectors.astype(np.float64).mean(0)), kind="stable")
    asked = [texts[row] for row in order[:4]]
    written = continuations(writer, "cpu", asked, 12, seed=5)
    assert written == continuations(writer, "cpu", asked, 12, seed=5) != continuations(writer, "cpu", asked, 12, seed=6)
    assert len(written) == 4 and not any("\n" in each for each in written)
    model, tokenizer, _ = language_model(writer, "cpu")
    rows = [[tokenizer.bos_id, *tokenizer.encode(text, "as_text")] for text in asked]
    settings = GenerationConfig(max_new_tokens=12, seed=5, top_p=0.9, eos_ids=(tokenizer.eos_id,))
    drawn = [tokenizer.decode(completions[0].ids) for completions in generate(model, rows, settings)]
    assert written == [" ".join(text.split()) for text in drawn]
    settings = {"k": 1, "length": 8, "start": "lm", "language_model": writer, "objective": "mean"}
    spec, one = target.retriever.spec, CraftConfig(**settings, optimizer="none")
    (still,) = craft(spec, texts, vectors, one, tmp_path / "still").passages.passages
    tokens = target.retriever.encoder.tokenizer
    own = continuations(writer, "cpu", asked, 8, seed_of(0, 0))
    few = vectors[order[:4]]
    again = np.argsort(-(few @ few.astype(np.float64).mean(0)), kind="stable")
    assert list(still.token_ids) == tokens.inner([" ".join(own[row] for row in again)])[0][:8]
    more = CraftConfig(**settings, evaluations=200, candidates=12)
    (moved,) = craft(spec, texts, vectors, more, tmp_path / "moved").passages.passages
    assert moved.objective_text > still.objective_text
    with pytest.raises(ValidationError, match="start lm needs language_model"):
        CraftConfig(start="lm")


def test_a_language_model_that_nothing_asks_is_not_loaded(target, tmp_path, capsys):
    """Neither is it a part of what decides on passages."""
    given = (target.retriever.spec, target.data.queries.texts, target.queries())
    how = {"k": 1, "length": 8, "evaluations": 40, "candidates": 8, "precision": "fp32"}
    plain = craft(*given, CraftConfig(**how), tmp_path / "plain")
    named = craft(*given, CraftConfig(**how, language_model=str(tmp_path / "nowhere")), tmp_path / "named")
    assert named.run == plain.run and named.passages == plain.passages
    assert "is not asked" in " ".join("".join(capsys.readouterr()).split())
