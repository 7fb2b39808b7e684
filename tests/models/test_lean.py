"""A step of decoding with few operators gives what the model's own forward pass gives."""

from __future__ import annotations

import pytest
import torch
from tests.models.random_models import CONFIGS, random_model

from lmlab.models import Decoding, DecodingConfig, GenerationConfig, KVCache, LoRAConfig, SoftPrompt, add_lora, generate
from lmlab.models.generation.lean import LeanStep, can_be_lean

GREEDY = GenerationConfig(max_new_tokens=8, temperature=0)
PROMPTS = [[5, 9, 2, 40, 17, 3, 3, 8, 1], [8, 4], [33, 7, 60, 12]]
EXTRAS = {
    "post": ("llama", {"norm_position": "post"}),
    "both": ("llama", {"norm_position": "both", "norm_offset": True, "embedding_scale": 2.0, "logit_scale": 0.5}),
    "windows": ("llama", {"sliding_window": 4, "attention": ("sliding", "full"), "sliding_rope_theta": 500.0}),
    "capped": ("llama", {"attention_soft_cap": 3.0, "logit_soft_cap": 4.0, "attention_scale": 0.3, "clip_qkv": 1.0}),
    "scaled": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "residual_multiplier": 0.5}),
}


def model_of(kind):
    if kind in EXTRAS:
        family, changes = EXTRAS[kind]
        return random_model(family, **changes)
    return random_model(kind)


def steps(model, lean, padded, dtype=torch.float32):
    """The logits of three steps after a prompt of three rows, of which one is padded."""
    ids = torch.randint(0, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[1, :5] = False
    found, cache = [], KVCache(model.config, 3, 12, dtype)
    with torch.inference_mode():
        model(ids[:, :9], attention_mask_BT=valid if padded else None, cache=cache)
        for place in range(9, 12):
            newest = ids[:, place : place + 1]
            if lean:
                assert can_be_lean(model, cache)
                found.append(LeanStep(model).run(newest, cache))
            else:
                found.append(model(newest, cache=cache).logits_BTV[:, 0].float())
    return torch.stack(found)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [*CONFIGS, *EXTRAS])
def test_logits_are_those_of_the_forward_pass(kind, padded):
    model = model_of(kind)
    torch.testing.assert_close(steps(model, True, padded), steps(model, False, padded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "olmo2", "gpt2"])
def test_in_half_precision_they_are_as_near_to_the_exact_ones(kind):
    model = model_of(kind)
    exact = steps(model, False, True)
    model = model.to(torch.bfloat16)
    errors = [float((steps(model, lean, True, torch.bfloat16) - exact).abs().mean()) for lean in (True, False)]
    assert errors[0] < 1.2 * errors[1]


def test_adapters_and_soft_prompts_go_the_same_way(monkeypatch):
    model = random_model("llama")
    add_lora(model, LoRAConfig(rank=2, targets=("query", "up", "down")), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    prompt = SoftPrompt(torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1)))
    taken = []
    run = LeanStep.run
    monkeypatch.setattr(LeanStep, "run", lambda self, *given: taken.append(1) or run(self, *given))
    lean = [each.ids for (each,) in generate(model, PROMPTS, GREEDY, soft_prompt=prompt)]
    assert len(taken) == 7
    monkeypatch.setattr("lmlab.models.generation.decoding.can_be_lean", lambda *given: False)
    assert lean == [each.ids for (each,) in generate(model, PROMPTS, GREEDY, soft_prompt=prompt)]
    assert len(taken) == 7


def test_what_somebody_wraps_is_not_passed_by():
    model, cache = random_model("llama"), KVCache(random_model("llama").config, 1, 9)
    assert can_be_lean(model, cache)
    seen = []
    handle = model.block(0).register_forward_hook(lambda *given: seen.append(1))
    assert not can_be_lean(model, cache)
    decoding = Decoding(model)
    decoding.add([(PROMPTS[0], DecodingConfig(max_new_tokens=4, temperature=0))])
    while decoding.live:
        decoding.step()
    assert len(seen) == 4
    handle.remove()
    model.block(1).attention.compile()
    assert not can_be_lean(model, cache)


@pytest.mark.parametrize("place", ["blocks.0.attention.query", "blocks.1.ffn_norm", "blocks.0.ffn.up", "final_norm"])
def test_what_somebody_wraps_within_a_block_is_not_passed_by(place):
    model, cache = random_model("llama"), KVCache(random_model("llama").config, 1, 9)
    part = model.get_submodule(place)
    with torch.inference_mode():
        for wrap in (part.register_forward_hook, part.register_forward_pre_hook):
            handle = wrap(lambda *given: None)
            assert not can_be_lean(model, cache)
            handle.remove()
            assert can_be_lean(model, cache)
        part.forward = lambda x, forward=part.forward: 0.5 * forward(x)
        assert not can_be_lean(model, cache)


def test_a_hook_on_all_modules_is_not_passed_by():
    model, cache = random_model("llama"), KVCache(random_model("llama").config, 1, 9)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert not can_be_lean(model, cache)
    finally:
        handle.remove()
    assert can_be_lean(model, cache)


def test_a_full_cache_and_a_full_table_are_refused():
    model = random_model("gpt2", max_seq_len=9)
    cache = KVCache(model.config, 1, 10)
    with torch.inference_mode():
        model(torch.tensor([[1] * 9]), cache=cache)
        with pytest.raises(ValueError, match="table of 9 positions"):
            LeanStep(model).run(torch.tensor([[1]]), cache)
        with pytest.raises(ValueError, match="holds 10 tokens"):
            LeanStep(model).run(torch.tensor([[1]]), cache)
