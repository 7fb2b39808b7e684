"""Weights in 8 and 4 bits: products are those of the weight that is applied, and that is near what was given."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.models.random_models import random_model
from torch.nn import functional as F

from lmlab.errors import UserError
from lmlab.evals import ModelScorer, Window
from lmlab.hardware import select_dtype, threads
from lmlab.hardware.threads import Governor, Look
from lmlab.models import (
    GenerationConfig,
    LoRAConfig,
    SoftPrompt,
    add_lora,
    generate,
    load_soft_prompt,
    pack_weights,
    save_pretrained,
    save_soft_prompt,
)
from lmlab.models.layers.linear import Linear
from lmlab.models.layers.packed import PackedLinear, can_be_packed, round_to_4_bits
from lmlab.runs import Model

KINDS = ["int8", "int4"]
SIZES = {"vocab_size": 64, "d_ff": 96, "d_model": 64}
PROMPTS = [[5, 9, 2, 40, 17, 3, 3, 8, 1], [8, 4], [33, 7, 60, 12]]


def layer_of(outputs=80, inputs=96, seed=0):
    layer = Linear(inputs, outputs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(generator=generator).mul_(torch.rand(outputs, 1, generator=generator) + 0.1)
        layer.bias.normal_(generator=generator)
    return layer


def whole(model, packed):
    """A copy of a model in fp32 that has the weights that a packed one applies."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in packed.named_modules():
            if isinstance(layer, PackedLinear) and name != "head":
                model.get_submodule(name).weight.copy_(layer.weight)
    return model


@pytest.mark.parametrize("rows", [1, 5, 40, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_weight_that_is_applied(kind, rows):
    layer = layer_of()
    packed = PackedLinear(layer, kind)
    x = torch.randn(2, rows, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        expected = F.linear(x.double(), packed.weight.double(), layer.bias.double())
        torch.testing.assert_close(packed(x).double(), expected, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_flows_to_the_input(kind):
    packed = PackedLinear(layer_of(), kind)
    x = torch.randn(3, 96, dtype=torch.bfloat16, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.weight.sum(0).expand(3, -1), rtol=2e-2, atol=5e-2)


def test_no_weight_is_further_than_half_a_step():
    weight = layer_of().weight.detach()
    packed = PackedLinear(layer_of(), "int8")
    steps = (packed.weight.float() - weight).abs() / packed.scales.float()[:, None]
    assert steps.max() < 1.01  # half of one, and what bf16 leaves of scale and product
    numbers, scales, zeros = (each.float() for each in round_to_4_bits(weight))
    applied = ((numbers - 8).unflatten(1, (-1, 32)) * scales[..., None] + zeros[..., None]).flatten(1)
    assert applied.sub(weight).square().mean() < 0.0065 * weight.square().mean()
    torch.testing.assert_close(PackedLinear(layer_of(), "int4").weight.float(), applied, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["Q4_0", "Q4_1"])
def test_blocks_of_gguf_files_are_met_again(form):
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(0, 16, (48, 4, 32), generator=generator)
    numbers[..., 0], numbers[..., 1] = 0, 15  # a block reaches as far as its type does: Q4_0 to -8 at least
    scale = (torch.rand(48, 4, 1, generator=generator) * 0.1).half().float()
    low = -scale * (4 + 8 * torch.rand(48, 4, 1, generator=generator) if form == "Q4_1" else 8)
    found, _, _ = round_to_4_bits((numbers * scale + low).flatten(1))
    assert torch.equal(found.view_as(numbers), numbers.int())


@pytest.mark.parametrize("outputs", [16, 48, 64, 112, 336])
def test_4_bit_numbers_are_read_back_from_the_order_of_the_kernel(outputs, monkeypatch):
    layer = layer_of(outputs, 64)
    packed = PackedLinear(layer, "int4")
    assert packed.pairs is None  # nothing is kept twice
    weight = packed.weight
    monkeypatch.setattr("lmlab.models.layers.packed._rows_of_a_block", lambda: None)  # an order that is not known
    other = PackedLinear(layer, "int4")
    assert other.pairs is not None and torch.equal(other.weight, weight)


@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_the_kernels_lack_are_added_and_left_out_again(kind, rows):
    layer = layer_of(outputs=61)
    packed = PackedLinear(layer, kind)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        expected = F.linear(x.double(), packed.weight.double(), layer.bias.double())
        assert packed.weight.shape == (61, 96)
        torch.testing.assert_close(packed(x).double(), expected, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_of_any_size_is_packed(kind):
    model = pack_weights(random_model("llama", **SIZES | {"vocab_size": 61}), kind)
    assert isinstance(model.head, PackedLinear)
    with torch.no_grad():
        found = model(torch.tensor([PROMPTS[0]]))
        expected = found.hidden_BTD.float() @ model.head.weight.float().T
    assert found.logits_BTV.shape[-1] == 61
    torch.testing.assert_close(found.logits_BTV.float(), expected, rtol=2e-2, atol=5e-2)


def test_packed_weights_are_not_drawn_afresh():
    with pytest.raises(ValueError, match=r"blocks\.0\.\S+ are packed"):
        pack_weights(random_model("llama", **SIZES), "int8").initialize(0)


def test_rows_of_zeros_stay_zeros():
    layer = layer_of()
    with torch.no_grad():
        layer.weight[3] = 0
    for kind in KINDS:
        assert not PackedLinear(layer, kind).weight[3].any()


@pytest.mark.parametrize("family", ["llama", "qwen2", "olmo2", "olmoe", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_model_computes_with_its_weights_and_no_others(family, kind):
    model = random_model(family, **SIZES)
    packed = pack_weights(copy.deepcopy(model), kind)
    names = [name for name, each in packed.named_modules() if isinstance(each, PackedLinear)]
    assert {"blocks.0.attention.query", "blocks.1.attention.output", "head"} <= set(names)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        same = whole(model, packed)
        exact = F.linear(same(ids).hidden_BTD, packed.head_weight_VD.float())
        found = packed(ids).logits_BTV.float()
    assert (found - exact).square().mean() < 0.01 * exact.square().mean()  # bf16, which routers make more of


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_has_the_probabilities_that_are_scored(kind):
    model = pack_weights(random_model("llama", **SIZES), kind)
    config = GenerationConfig(max_new_tokens=6, temperature=0)
    for prompt, (completion,) in zip(PROMPTS, generate(model, PROMPTS, config), strict=True):
        window = Window((*prompt, *completion.ids), len(completion.ids))
        ((_, score),) = ModelScorer(model, kind).score([window])
        assert score.log_prob == pytest.approx(sum(completion.log_probs), abs=0.15)


def test_what_cannot_be_packed_is_refused(tmp_path):
    with pytest.raises(UserError, match="no layer"):
        pack_weights(random_model("llama", d_model=36, head_dim=10, d_ff=70), "int4")
    model = random_model("llama", **SIZES)
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(UserError, match="adapters"):
        pack_weights(model, "int8")
    with pytest.raises(ValueError, match="packed weights"):
        save_pretrained(pack_weights(random_model("llama", **SIZES), "int8"), tmp_path)
    with pytest.raises(UserError, match="Unknown precision 'int2'"):
        select_dtype("int2", torch.device("cpu"))
    assert not can_be_packed(Linear(48, 64), "int4") and can_be_packed(Linear(48, 64), "int8")
    with pytest.raises(UserError, match="packed already"):
        pack_weights(pack_weights(random_model("llama", **SIZES), "int8"), "int4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_before_any_is_packed(value):
    model = random_model("llama", **SIZES)
    with torch.no_grad():
        model.block(1).attention.query.weight[3, 5] = value
    with pytest.raises(UserError, match="blocks.1.attention.query.weight holds numbers that are not finite"):
        pack_weights(model, "int4")
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_packed_weights_get_no_adapters():
    for settings in ({}, {"targets": ("down",)}):
        model = pack_weights(random_model("llama", **SIZES), "int4")
        with pytest.raises(UserError, match="packed in int4"):
            add_lora(model, LoRAConfig(rank=2, **settings))


@pytest.mark.parametrize("cast", ["float", "double", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_model_that_is_cast_keeps_its_weights(kind, cast):
    model = pack_weights(random_model("llama", **SIZES), kind)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected = model(ids).logits_BTV.float()
        found = getattr(copy.deepcopy(model), cast)()
        assert found(ids).logits_BTV.float().sub(expected).square().mean() < 1e-3 * expected.square().mean()
    assert torch.equal(found.block(0).ffn.up.weight, model.block(0).ffn.up.weight)
    (short,), (long,) = (generate(found, [prompt], GenerationConfig(max_new_tokens=4))[0] for prompt in PROMPTS[:2])
    assert len(short.ids) == len(long.ids) == 4


@pytest.mark.parametrize(("kind", "rows"), [("int8", 33), ("int4", 161)])
def test_many_rows_of_a_step_take_the_product_for_many(kind, rows, monkeypatch):
    packed = PackedLinear(layer_of(), kind)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    formed = []
    weight = PackedLinear.weight.fget
    monkeypatch.setattr(PackedLinear, "weight", property(lambda layer: formed.append(1) or weight(layer)))
    few, many = packed.product(x[:-1]), packed.product(x)
    assert len(formed) == 1
    torch.testing.assert_close(few, many[:-1], rtol=2e-2, atol=0.2)


def test_a_place_is_read_in_every_precision(tmp_path):
    model = random_model("llama", **SIZES)
    save_pretrained(model, tmp_path)
    found, ids = Model.find(tmp_path), torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        exact = model(ids).logits_BTV
        errors = {
            precision: float((found.load_in(precision)(ids).logits_BTV.float() - exact).square().mean())
            for precision in ("fp32", "bf16", "int8", "int4")
        }
    assert (
        errors["fp32"] < 1e-9 < errors["bf16"] < errors["int8"] < errors["int4"] < 0.25 * float(exact.square().mean())
    )


def test_vectors_of_the_same_model_in_full_precision_are_refused_with_what_to_do(tmp_path):
    model, path = random_model("llama", **SIZES), tmp_path / "prompt.safetensors"
    save_soft_prompt(SoftPrompt(model.embedding.weight.detach()[None, :3]), path, model)
    with pytest.raises(UserError, match="Load the model in full precision"):
        load_soft_prompt(path, pack_weights(model.bfloat16(), "int8"))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_wait_are_given_up_while_weights_are_packed(kind, monkeypatch):
    taken, now = [], iter(range(1000))

    def look():  # two threads that share one core
        seconds = next(now) - 1000.0
        return Look(seconds, seconds, seconds, 0.0)

    monkeypatch.setattr(threads._local, "watch", Governor(2, look=look, apply=taken.append), raising=False)
    monkeypatch.setattr(threads._local, "alone", False, raising=False)
    pack_weights(random_model("llama", **SIZES), kind)
    assert taken[:1] == [1]
