"""A step of decoding with few operators gives what the model's own forward pass gives."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from tests.models.random_models import CONFIGS, random_model
from torch.nn import functional as F

from lmlab.errors import LmlabError
from lmlab.hardware import gemm, ways
from lmlab.models import (
    Decoding,
    DecodingConfig,
    GenerationConfig,
    KVCache,
    LoRAConfig,
    SoftPrompt,
    add_lora,
    from_pretrained,
    generate,
    lay_out,
    pack_weights,
    save_pretrained,
)
from lmlab.models.attention.backends import one_query
from lmlab.models.attention.visibility import Visibility
from lmlab.models.generation.steps.lean import LeanStep, can_be_lean
from lmlab.models.generation.steps.pages import into_large_pages
from lmlab.models.layers.joined import joint

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


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "windows"])
def test_a_query_that_is_asked_twice_gathers_the_same(kind, padded):
    model = model_of(kind).to(torch.bfloat16)
    found = {}
    for way in ("alone", "twice"):
        with ways.using({"query bf16": way}):
            found[way] = steps(model, True, padded, torch.bfloat16)
    torch.testing.assert_close(found["twice"], found["alone"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_heads_with_keys_of_their_own_are_exact_either_way(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 16, generator=generator).bfloat16() for n in (1, 30, 30))
    mask = torch.rand(2, 1, 1, 30, generator=generator) > 0.5 if masked else None
    seen = Visibility(1, 30, mask_BTS=mask)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask).transpose(1, 2)
    for way in ("alone", "twice"):
        with ways.using({"query bf16": way}):
            torch.testing.assert_close(one_query(q, k, v, seen, None).double(), exact, rtol=0.02, atol=0.02)


def parts_of(model):
    """The layers of each block that read the same input."""
    for block in model.blocks:
        attention = block.attention
        yield attention.query, attention.key, attention.value
        if getattr(block.ffn, "gate", None) is not None:
            yield block.ffn.gate, block.ffn.up


@pytest.mark.parametrize("kind", [*CONFIGS, *EXTRAS])
def test_matrices_that_lie_together_give_the_same_in_one_product(kind):
    model = model_of(kind)
    expected, weights = steps(model, True, True), {name: each.clone() for name, each in model.state_dict().items()}
    assert all(joint(layers) is None for layers in parts_of(model))
    lay_out(model)
    assert all(joint(layers) is not None for layers in parts_of(model))
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    torch.testing.assert_close(steps(model, True, True), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(steps(model, False, True), expected, rtol=1e-5, atol=1e-5)
    places = [each.data_ptr() for each in model.parameters()]
    lay_out(model)  # once
    assert places == [each.data_ptr() for each in model.parameters()]


def test_a_model_that_was_laid_out_is_trained_moved_and_saved_as_before(tmp_path):
    model, other = lay_out(random_model("qwen2")), random_model("qwen2")
    ids = torch.tensor([PROMPTS[0]])
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        each.train()(ids, labels_BT=ids).loss.sum.backward()
        optimizer.step()
        each.eval()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    save_pretrained(model, tmp_path)
    found = from_pretrained(tmp_path)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), found.parameters(), strict=True))
    expected = [each.ids for (each,) in generate(other.to(torch.bfloat16), PROMPTS, GREEDY)]
    assert [each.ids for (each,) in generate(model.to(torch.bfloat16), PROMPTS, GREEDY)] == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "olmoe", "post"])
def test_weights_that_are_kept_in_order_too_give_the_same_and_follow_what_is_written(kind, monkeypatch):
    if not ways.QUESTIONS["step bf16"].possible("ordered"):
        pytest.skip("this processor, or this build of PyTorch, has no products in bf16 by oneDNN")
    monkeypatch.setattr(gemm, "_ordered", {})
    with ways.using({"step bf16": "plain"}):
        plain = lay_out(model_of(kind).to(torch.bfloat16))
    assert not gemm._ordered
    with ways.using({"step bf16": "ordered"}):
        ordered = lay_out(model_of(kind).to(torch.bfloat16))
    assert len(gemm._ordered) >= ordered.config.num_layers * 2 + 1
    expected = steps(plain, True, False, torch.bfloat16)
    torch.testing.assert_close(steps(ordered, True, False, torch.bfloat16), expected, rtol=0.05, atol=0.05)
    with torch.no_grad():
        for model in (plain, ordered):
            for each in model.parameters():
                each.mul_(1.5)
    expected = steps(plain, True, False, torch.bfloat16)
    torch.testing.assert_close(steps(ordered, True, False, torch.bfloat16), expected, rtol=0.05, atol=0.05)
    assert not gemm._ordered


def test_copies_in_order_go_with_their_model_and_are_none_of_another_device(monkeypatch):
    if not ways.QUESTIONS["step bf16"].possible("ordered"):
        pytest.skip("this processor, or this build of PyTorch, has no products in bf16 by oneDNN")
    monkeypatch.setattr(gemm, "_ordered", {})
    monkeypatch.setattr("lmlab.models.generation.steps.pages._FEWEST_BYTES", 0)  # where memory moves each time
    with ways.using({"step bf16": "ordered"}):
        lay_out(random_model("llama").to("meta", torch.bfloat16))
        assert not gemm._ordered
        model = lay_out(random_model("llama").to(torch.bfloat16))
        kept = gemm.bytes_in_order()
        lay_out(model)
    assert 0 < gemm.bytes_in_order() == kept
    del model
    gc.collect()
    assert not gemm._ordered


def test_a_model_that_was_laid_out_writes_by_what_a_fused_optimizer_made_of_it(monkeypatch):
    if not ways.QUESTIONS["step bf16"].possible("ordered"):
        pytest.skip("this processor, or this build of PyTorch, has no products in bf16 by oneDNN")
    monkeypatch.setattr(gemm, "_ordered", {})
    with ways.using({"step bf16": "ordered"}):
        model = lay_out(random_model("llama").to(torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train()(torch.tensor([PROMPTS[0]]), labels_BT=torch.tensor([PROMPTS[0]])).loss.sum.backward()
    optimizer.step()
    model.eval()
    expected = steps(copy.deepcopy(model), True, False, torch.bfloat16)
    torch.testing.assert_close(steps(model, True, False, torch.bfloat16), expected, rtol=0.05, atol=0.05)


def test_weights_are_not_kept_twice_where_they_fill_memory(monkeypatch):
    monkeypatch.setattr(gemm, "_ordered", {})
    monkeypatch.setattr("lmlab.models.generation.steps.packing.memory_bytes", lambda: 4096)
    with ways.using({"step bf16": "ordered"}):
        lay_out(random_model("llama").to(torch.bfloat16))
    assert not gemm._ordered


def test_what_has_no_numbers_takes_no_place_in_large_pages(monkeypatch):
    monkeypatch.setattr("lmlab.models.generation.steps.pages._FEWEST_BYTES", 0)
    given = torch.arange(40.0), torch.empty(0), torch.empty(3, 0), torch.tensor(2)
    before = [each.clone() for each in given]
    into_large_pages(given)
    assert all(torch.equal(each, old) for each, old in zip(given, before, strict=True))


def test_large_pages_change_nothing_that_is_computed_shared_or_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.models.generation.steps.pages._FEWEST_BYTES", 0)
    model, other = random_model("llama"), random_model("llama")
    assert model.head is None  # tied
    lay_out(model)
    places = sorted(each.data_ptr() for each in model.parameters())
    assert places[-1] - places[0] < 2 * sum(each.nbytes for each in model.parameters())  # one beside the other
    assert all(joint(layers) is not None for layers in parts_of(model))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))
    copied = copy.deepcopy(model.block(0).attention.output)
    assert copied.weight.untyped_storage().nbytes() == copied.weight.nbytes
    save_pretrained(model, tmp_path)
    found = from_pretrained(tmp_path)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), found.parameters(), strict=True))
    torch.testing.assert_close(steps(model, True, True), steps(other, True, True), rtol=1e-5, atol=1e-5)
    ids = torch.tensor([PROMPTS[0]])
    model.train()(ids, labels_BT=ids).loss.sum.backward()
    assert all(each.grad is not None for each in model.parameters())
    packed = lay_out(pack_weights(random_model("llama", d_model=64, d_ff=96), "int4"))
    assert packed(ids).logits_BTV.isfinite().all()


def test_what_has_adapters_or_is_shared_with_other_processes_stays_where_it_is():
    model = random_model("llama")
    add_lora(model, LoRAConfig(rank=2, targets=("query", "up")), seed=0)
    model.block(0).attention.value.weight.share_memory_()
    places = {name: each.data_ptr() for name, each in model.named_parameters()}
    lay_out(model)
    assert places == {name: each.data_ptr() for name, each in model.named_parameters()}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_matrices_that_lie_together_give_the_same_in_one_product(family, kind):
    sizes = {"d_model": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "d_ff": 192, "vocab_size": 61}
    model = pack_weights(random_model(family, **sizes), kind)
    expected = steps(model, True, True, torch.bfloat16)
    weights = [[layer.weight for layer in layers] for layers in parts_of(model)]
    lay_out(model)
    for layers, before in zip(parts_of(model), weights, strict=True):
        assert torch.equal(joint(layers).weight, torch.cat(before))
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    assert torch.equal(steps(model, True, True, torch.bfloat16), expected)
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        assert model(ids).logits_BTV.isfinite().all()  # each by itself


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_told_and_not_hidden(dtype, name, lean, monkeypatch):
    model = random_model("llama").to(dtype)
    if not lean:
        monkeypatch.setattr("lmlab.models.generation.decoding.can_be_lean", lambda *given: False)
    with torch.no_grad():
        getattr(model.block(1).attention, name).weight[3] = float("nan")
    with pytest.raises(LmlabError, match="not numbers"):
        generate(model, [[5]], GREEDY)
    cache = KVCache(model.config, 1, 9, dtype)
    with torch.inference_mode():
        if lean:
            assert LeanStep(model).run(torch.tensor([[5]]), cache).isnan().all()
        else:
            assert model(torch.tensor([[5]]), cache=cache).logits_BTV.isnan().all()


@pytest.mark.parametrize("kind", ["llama", "olmo2", "gpt2"])
def test_in_half_precision_they_are_as_near_to_the_exact_ones(kind):
    lean, plain = 0.0, 0.0
    for seed in range(1, 9):  # of one model the ratio is 0.8 to 1.25, by how a processor rounds
        model = random_model(kind, seed)
        exact = steps(model, False, True)
        model = model.to(torch.bfloat16)
        lean += float((steps(model, True, True, torch.bfloat16) - exact).abs().mean())
        plain += float((steps(model, False, True, torch.bfloat16) - exact).abs().mean())
    assert lean < 1.15 * plain


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


def test_rows_that_join_and_leave_take_the_same_step_and_other_weights_a_new_one(monkeypatch):
    model, built = random_model("llama"), []
    make = LeanStep.__init__
    monkeypatch.setattr(LeanStep, "__init__", lambda self, given: built.append(1) or make(self, given))
    decoding = Decoding(model)

    def finish(prompts):
        found = []
        for prompt in prompts:
            ((row,),) = decoding.add([(prompt, DecodingConfig(max_new_tokens=6, temperature=0))])
            found.append(row)
            decoding.step()
        while decoding.live:
            decoding.step()
        return [row.ids for row in found]

    for number in (1, 2):
        expected = [each.ids for (each,) in generate(model, PROMPTS, GREEDY.model_copy(update={"max_new_tokens": 6}))]
        built.clear()
        assert finish(PROMPTS) == expected and len(built) == 1, number
        with torch.no_grad():
            model.block(0).attention_norm.weight.mul_(-2)


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
