"""What tokens gain from what stands far back: by definition, window by window."""

from __future__ import annotations

import math

import pytest
import torch

from lmlab.errors import UserError
from lmlab.evals.long import LongPPLConfig, key_tokens, long_perplexity
from lmlab.models import ModelConfig, Transformer, label_log_probs, long_short_difference, near_log_probs
from lmlab.train import language_model_step, long_ce_step


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=30, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, init_std=0.3)
    return Transformer(config).initialize(0)


def _log_prob(model, ids, label):
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits_BTV[0, -1].log_softmax(-1)[label])


def test_each_token_sees_its_window_alone(model):
    ids = torch.randint(30, (1, 26), generator=torch.Generator().manual_seed(0))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    near = near_log_probs(model, inputs, labels, context=6, slide=4)
    assert (near[0, :6] == 0).all()
    for place in range(6, 25):
        start = (place - 6) // 4 * 4  # windows begin every four tokens
        expected = _log_prob(model, inputs[0, start : place + 1].tolist(), int(labels[0, place]))
        assert float(near[0, place]) == pytest.approx(expected, abs=1e-5), place
    gain = long_short_difference(model, inputs, labels, context=6, slide=4)
    whole = label_log_probs(model, inputs, labels).detach()
    assert torch.allclose(gain[:, 6:], (whole - near)[:, 6:]) and (gain[:, :6] == 0).all()
    assert float(gain.abs().max()) > 0.1


def test_windows_begin_with_what_every_text_begins_with(model):
    ids = torch.randint(30, (1, 26), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 3  # the begin mark of the text itself
    inputs, labels = ids[:, :-1], ids[:, 1:]
    near = near_log_probs(model, inputs, labels, context=6, slide=4, begin_ids=[3])
    for place in (6, 9, 10, 24):
        start = (place - 6) // 4 * 4
        seen = ([3] if start else []) + inputs[0, start : place + 1].tolist()  # the first window has the text's own
        assert float(near[0, place]) == pytest.approx(_log_prob(model, seen, int(labels[0, place])), abs=1e-5), place
    assert near.shape == inputs.shape and (near[0, :6] == 0).all()


def test_documents_of_a_row_do_not_see_each_other(model):
    ids = torch.randint(30, (1, 25), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 10 + [1] * 15])
    labels = ids.roll(-1, 1).clone()
    labels[0, [9, 24]] = -100
    near = near_log_probs(model, ids, labels, documents, context=4, slide=4)
    place, start = 14, 10  # of the second document; its window reaches back to 8
    expected = _log_prob(model, ids[0, start : place + 1].tolist(), int(labels[0, place]))
    assert float(near[0, place]) == pytest.approx(expected, abs=1e-5) and float(near[0, 9]) == 0


def test_long_ce_weighs_tokens_by_their_gain(model):
    ids = torch.randint(30, (2, 24), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": torch.zeros_like(ids)}
    batch["labels"][:, -1] = -100
    output = long_ce_step(context=8, slide=4)(model, batch)
    log_probs = label_log_probs(model, ids, batch["labels"]).detach()
    gain = long_short_difference(model, ids, batch["labels"], context=8, slide=4)
    weights = gain.exp().clamp(max=5)
    assert output.loss_sum.item() == pytest.approx(float(-(weights * log_probs).sum()), rel=1e-5)
    assert int(output.count) == 46 and float(output.sums["loss/plain"][0]) == pytest.approx(
        language_model_step(model, batch).loss_sum.item(), rel=1e-5
    )
    flat = long_ce_step(context=23)(model, batch)  # nothing stands farther back: the plain loss
    assert flat.loss_sum.item() == pytest.approx(float(flat.sums["loss/plain"][0]), rel=1e-6)


def test_long_perplexity_is_that_of_the_key_tokens(model):
    texts = [torch.randint(30, (40,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(3)]
    config = LongPPLConfig(context=8, slide=4, least_gain=0.2, least_log_prob=-4.0)
    keys = key_tokens(model, texts, config)
    found = long_perplexity(model, texts, keys, config)
    logs = [
        _log_prob(model, text[:place], text[place])
        for text, places in zip(texts, keys, strict=True)
        for place in places
    ]
    assert found.keys == len(logs) > 3 and found.tokens == 3 * 31
    assert found.long_perplexity == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-4)
    assert all(
        _log_prob(model, text[:p], text[p]) > -4 for text, places in zip(texts, keys, strict=True) for p in places
    )
    with pytest.raises(UserError, match="not those of these texts"):
        long_perplexity(model, texts[:2], keys, config)
    with pytest.raises(UserError, match="No text is longer"):
        long_perplexity(model, [[1, 2, 3]], [[]], config)
