"""Quantized weights beside adapters, against bitsandbytes and peft."""

from __future__ import annotations

import importlib

import pytest
import torch
from random_models import random_model
from torch import nn

from lmlab.errors import UserError
from lmlab.models import LoRAConfig, add_lora, from_pretrained, load_lora, merge_lora, remove_lora, save_lora
from lmlab.models import save_pretrained as save
from lmlab.models.lora import quantized
from lmlab.models.lora.adapt import adaptable, adapters, quantize_base
from lmlab.models.lora.quantized import QuantizedLinear, quantized_bytes

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the package 'bitsandbytes'")
KINDS = ["nf4", "int8"]
_FOLDED = 5e-5  # logits of folded weights, whose sums are rounded otherwise: 1.5e-5 was seen


def fill(model, seed=0):
    """Adapters that have learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_bitsandbytes_s_and_its_gradient_that_of_the_weight_it_applies(kind, bias):
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    ours = QuantizedLinear(plain, kind)
    if kind == "nf4":
        theirs = bitsandbytes.nn.Linear4bit(48, 20, bias, torch.float32, compress_statistics=False, quant_type="nf4")
        theirs.load_state_dict(plain.state_dict())
        theirs = theirs.to("cpu")
        weight = bitsandbytes.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    else:
        packed, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(plain.weight.data)
        weight = bitsandbytes.functional.int8_vectorwise_dequant(packed, scales)
    torch.testing.assert_close(ours.weight, weight, atol=0, rtol=0)
    assert 0 < (weight - plain.weight).abs().max() < (0.03 if kind == "nf4" else 0.002)
    x = torch.randn(2, 5, 48, requires_grad=True)
    expected = nn.functional.linear(x, weight, plain.bias)
    expected.square().sum().backward()
    wanted, x.grad = x.grad, None
    found = ours(x)
    torch.testing.assert_close(found, expected)
    if kind == "nf4":
        torch.testing.assert_close(found, theirs(x))
    found.square().sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    assert ours.packed.nbytes + ours.scales.nbytes == quantized_bytes(20, 48, kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmoe"])
def test_adapters_beside_four_bits_give_the_logits_and_gradients_of_peft(kind, ids, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    # of GPT-2 and of experts peft's own conversion takes other layers; there the base is quantized by hand
    model = random_model(kind)
    save(model, tmp_path / "base")
    targets = ("query", "output") if kind == "olmoe" else None
    add_lora(model, LoRAConfig(rank=3, quantize="nf4", targets=targets))
    fill(model)
    save_lora(model, tmp_path / "adapter")
    if kind == "llama":
        settings = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=settings, dtype=torch.float32
        )
        assert isinstance(base.model.layers[0].self_attn.q_proj, bitsandbytes.nn.Linear4bit)
    else:
        whole = random_model(kind)
        quantize_base(whole, LoRAConfig(quantize="nf4"))
        remove_lora(whole, merge=False)
        save(whole, tmp_path / "rounded")
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "rounded", dtype=torch.float32)
    # not in evaluation: there bitsandbytes packs weights anew for CPUs, and fails on narrow ones
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).train(kind == "llama")
    expected = theirs(ids).logits
    found = model(ids).logits_BTV
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    expected.logsumexp(-1).sum().backward()
    found.logsumexp(-1).sum().backward()
    if kind == "llama":
        grads = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
        grad = next(value for name, value in grads.items() if "layers.0.self_attn.q_proj.lora_A" in name)
        torch.testing.assert_close(model.blocks[0].attention.query.lora_a.grad, grad, atol=1e-3, rtol=1e-3)
    frozen = [each for name, each in model.named_parameters() if "lora_" not in name]
    assert all(each.grad is None for each in frozen)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_folded_in_the_model_is_the_one_that_was_trained(kind, ids, tmp_path):
    model = random_model("llama")
    config = LoRAConfig(rank=2, quantize=kind, targets=("query", "down"), train_fully=("blocks.1.ffn.gate",))
    add_lora(model, config)
    fill(model)
    layers = {name for name, each in model.named_modules() if hasattr(each, "packed")}
    assert layers == {*adaptable(model)} - {"blocks.1.ffn.gate"}  # what is trained itself stays whole
    expected = model(ids).logits_BTV
    merge_lora(model)  # nothing to fold into: a quantized weight has too few digits
    torch.testing.assert_close(model(ids).logits_BTV, expected, atol=0, rtol=0)
    with pytest.raises(ValueError, match="merge or remove"):
        save(model, tmp_path / "model")
    save_lora(model, tmp_path / "adapter")
    remove_lora(model, merge=True)
    assert not adapters(model) and all(each.requires_grad for each in model.parameters())
    torch.testing.assert_close(model(ids).logits_BTV, expected, atol=_FOLDED, rtol=1e-5)
    save(model, tmp_path / "model")
    torch.testing.assert_close(from_pretrained(tmp_path / "model")(ids).logits_BTV, expected, atol=_FOLDED, rtol=1e-5)
    again = random_model("llama")
    quantize_base(again, config)
    load_lora(again, tmp_path / "adapter")
    torch.testing.assert_close(again(ids).logits_BTV, expected, atol=_FOLDED, rtol=1e-5)


def test_where_it_does_not_work_it_is_refused_by_name(monkeypatch):
    quantized._library.cache_clear()
    try:
        for error, named in ((ImportError, r"which is not installed"), (OSError, "does not work on this machine")):

            def refuse(name, *rest, error=error, load=importlib.__import__):
                if name.startswith("bitsandbytes"):
                    raise error("no")
                return load(name, *rest)

            with monkeypatch.context() as patch:
                patch.setattr("builtins.__import__", refuse)
                with pytest.raises(UserError, match=named):
                    add_lora(random_model("llama"), LoRAConfig(quantize="nf4"))
    finally:
        quantized._library.cache_clear()
