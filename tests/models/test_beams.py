"""Beam search with a cache is beam search without one, and with one beam it is greedy."""

from __future__ import annotations

import itertools

import pytest
import torch

from lmlab.errors import LmlabError, UserError
from lmlab.models import GenerationConfig, ModelConfig, SoftPrompt, Transformer, beam_search, generate

_LEARNED = {"positions": "learned", "position_offset": 2, "norm": "layernorm", "gated": False}


def _model(**changes: object) -> Transformer:
    shape = {"vocab_size": 7, "num_layers": 2, "d_model": 16, "num_heads": 2, "max_seq_len": 32, "init_std": 0.5}
    return Transformer(ModelConfig.model_validate(shape | changes)).initialize(0).double().eval()


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1}, _LEARNED])
@pytest.mark.parametrize("behind", [False, True])
def test_with_enough_beams_the_best_of_all_continuations_is_found(changes: dict[str, object], behind: bool) -> None:
    model = _model(**changes)
    vectors = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1)).double()
    before = SoftPrompt(vectors, positions=not changes.get("positions")) if behind else None
    found = beam_search(model, [1, 4], 49, 3, soft_prompt=before, length_penalty=0.0)
    best = []
    for ids in itertools.product(range(7), repeat=3):
        text = torch.tensor([[1, 4, *ids]])
        log_probs = model(text, soft_prompt=before).logits_BTV[0].log_softmax(-1)
        best.append((float(sum(log_probs[1 + n, token] for n, token in enumerate(ids))), ids))
    best.sort(reverse=True)
    assert [beam.ids for beam in found[:20]] == [ids for _, ids in best[:20]]
    assert [beam.log_prob for beam in found[:20]] == pytest.approx([value for value, _ in best[:20]])


def test_one_beam_is_greedy_and_ends_are_counted() -> None:
    model = _model()
    config = GenerationConfig(temperature=0, max_new_tokens=8)
    (greedy,) = generate(model, [[2, 3]], config)[0]
    assert list(beam_search(model, [2, 3], 1, 8)[0].ids) == greedy.ids
    end = greedy.ids[2]
    (cut,) = generate(model, [[2, 3]], config.model_copy(update={"eos_ids": (end,)}))[0]
    found = beam_search(model, [2, 3], 3, 8, eos_ids=[end])
    assert any(
        beam.ended and list(beam.ids) == cut.ids for beam in beam_search(model, [2, 3], 1, 8, eos_ids=[end])
    ) or (list(beam_search(model, [2, 3], 1, 8, eos_ids=[end])[0].ids) != greedy.ids)
    assert [beam.score(1.0) for beam in found] == sorted((beam.score(1.0) for beam in found), reverse=True)
    with pytest.raises(UserError, match="at least 1"):
        beam_search(model, [2], 0, 3)
    with pytest.raises(UserError, match="exceeds"):
        beam_search(model, [2], 2, 40)


def test_beams_whose_logits_are_no_numbers_are_refused() -> None:
    model = _model()
    best = beam_search(model, [2, 3], 2, 4)
    with torch.no_grad():
        model.block(1).ffn.down.weight[3] = float("nan")
    with pytest.raises(LmlabError, match="not numbers"):
        beam_search(model, [2, 3], 2, 4)
    assert len(best) == 2
