"""Fluent passages by a language model's beam search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lmlab.data import Tokenizer
from lmlab.methods.corpus_poisoning import Budget, CraftConfig, MeanSimilarity, craft
from lmlab.methods.corpus_poisoning.attack.searching.decode import fluent_search
from lmlab.models import ModelConfig, Transformer, save_pretrained
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
    rows = torch.tensor([[search.tokenizer.bos_id, *search.tokenizer.encode(f" {found.text}", "as_text")]])
    with torch.no_grad():
        log_probs = search.model(rows[:, :-1]).logits_BTV.double().log_softmax(-1)
    losses = -log_probs.gather(-1, rows[:, 1:, None])[0, :, 0]
    assert found.surprise == pytest.approx(float(losses.mean()), abs=1e-3)
    strict = fluent_search(writer, encoder, 4.0).run(objective, lambda text: text, 10, Budget(300))
    assert strict.surprise < found.surprise + 1e-9 and strict.value <= found.value + 1e-9


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
