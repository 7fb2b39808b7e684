"""Bits per byte: every token once, comparable between tokenizers, equal to sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data import Document, Tokenizer
from lmlab.evals import Evaluator, ModelScorer, bits_per_byte, measure_documents, perplexity_figures
from lmlab.evals.perplexity import sliding_windows
from lmlab.models import ModelConfig, Transformer

TEXTS = ["the cat sat on the mat, and the dog sat on the log. " * 4, "été à la plage " * 9, "x", ""]


def scored(vocab_size, window, stride=None):
    tokenizer = Tokenizer.train(TEXTS * 20, vocab_size)
    model = Transformer(
        ModelConfig(vocab_size=vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=512)
    ).initialize(0)
    documents = [Document(id=str(n), text=text) for n, text in enumerate(TEXTS)]
    rows = {
        row["id"]: row for row in measure_documents(ModelScorer(model, "fp32"), tokenizer, documents, window, stride)
    }
    return tokenizer, model, [rows[str(n)] for n in range(len(TEXTS))]


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_bits_per_byte_is_a_hand_computation_with_any_tokenizer(vocab_size):
    tokenizer, model, rows = scored(vocab_size, 500)
    by_hand = 0.0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            log_probs = model(ids).logits_BTV[0, :-1].log_softmax(-1)
        by_hand -= float(log_probs.gather(1, ids[0, 1:, None]).sum()) / math.log(2)
    assert bits_per_byte(rows).value == pytest.approx(by_hand / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_figures_of_tokens_follow_from_bits():
    _, _, rows = scored(300, 500)
    figures = perplexity_figures(rows)
    tokens, bits, size = (sum(row[key] for row in rows) for key in ("tokens", "bits", "bytes"))
    assert figures["bits_per_token"].value == pytest.approx(bits / tokens)
    assert figures["perplexity"].value == pytest.approx(2 ** (bits / tokens))
    assert figures["bits_per_byte"].value * size == pytest.approx(figures["bits_per_token"].value * tokens)


def test_an_empty_text_has_a_row_without_bits():
    _, _, rows = scored(300, 500)
    assert rows[3] == {"id": "3", "domain": "text", "bits": 0.0, "tokens": 0, "bytes": 0}


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_windows_score_every_token_once_and_keep_their_context(length, window, stride):
    stride = min(stride, window)
    ids = list(range(length))
    found = list(sliding_windows(ids, window, stride))
    assert [token for each in found for token in each.ids[len(each.ids) - each.num_scored :]] == ids[1:]
    for number, each in enumerate(found):
        assert len(each.ids) <= window + 1
        if number:
            assert len(each.ids) - each.num_scored >= min(window - stride, 1)


def test_the_begin_mark_may_stand_before_every_window():
    ids = [99, *range(20)]
    for stride in (3, 7):
        found = list(sliding_windows(ids, 7, stride, begin_every=True))
        assert [token for each in found for token in each.ids[len(each.ids) - each.num_scored :]] == ids[1:]
        assert all(each.ids[0] == 99 and len(each.ids) <= 8 for each in found)
    assert found[1].ids == [99, *range(7, 14)] and found[1].num_scored == 7


@pytest.mark.parametrize(("family", "every"), [("gemma", True), ("gemma2", True), ("llama", False)])
def test_models_that_need_it_get_it_unasked(family, every):
    gemma = {"norm_offset": True, "embedding_scale": 32**0.5, "activation": "gelu_tanh", "head_dim": 8}
    both = {"norm_position": "both", "attention_soft_cap": 50.0, "logit_soft_cap": 30.0}
    features = {"gemma": gemma, "gemma2": {**gemma, **both}, "llama": {}}[family]
    model = Transformer(ModelConfig(vocab_size=300, num_layers=1, d_model=32, num_heads=2, **features)).initialize(0)
    model.read_as = family
    tokenizer = Tokenizer.train(TEXTS * 20, 300)
    assert Evaluator(ModelScorer(model, "fp32"), tokenizer, model).begins_windows == every
