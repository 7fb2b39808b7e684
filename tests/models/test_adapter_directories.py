"""Adapters of every odd kind: equal to `peft`'s, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from compared_directories import TOLERANCE, load_theirs
from random_directories import draw_directory, random_ids

from lmlab.errors import UserError
from lmlab.models import LoRAConfig, add_lora, from_pretrained, load_lora, remove_lora, save_lora, save_pretrained

peft = pytest.importorskip("peft", reason="needs the package 'peft'")


def fill(model, parts=("lora_B", "lora_embedding_A", "modules_to_save")):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def their_adapters(base, target, **settings):
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], **settings}
    model = peft.get_peft_model(load_theirs(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    fill(model)
    model.save_pretrained(target)
    return model


@torch.no_grad()
def same(ours, theirs):
    ids = random_ids(0)
    torch.testing.assert_close(ours(ids).logits_BTV, theirs(ids).logits, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["norm", "input_layernorm"], "use_rslora": True},
        {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {r"layers\.0\..*q_proj": 9}, "layers_to_transform": [0]},
        {"target_modules": "all-linear", "exclude_modules": ["v_proj"]},
    ],
    ids=str,
)
def test_modules_that_are_saved_beside_adapters_are_those_of_peft_and_stay(make_model, settings, tied, tmp_path):
    if settings.get("ensure_weight_tying") and not tied:
        pytest.skip("peft refuses it")
    save_pretrained(make_model("llama", tie_embeddings=tied, vocab_size=50), tmp_path / "base")
    theirs = their_adapters(tmp_path / "base", tmp_path / "theirs", **settings)
    ours = from_pretrained(tmp_path / "base")
    load_lora(ours, tmp_path / "theirs")
    same(ours, theirs)
    save_lora(ours, tmp_path / "ours")
    again = from_pretrained(tmp_path / "base")
    load_lora(again, tmp_path / "ours", trainable=True)
    same(again, theirs)
    same(again, peft.PeftModel.from_pretrained(load_theirs(tmp_path / "base"), tmp_path / "ours").eval())
    remove_lora(ours, merge=True)
    save_pretrained(ours, tmp_path / "merged")
    same(from_pretrained(tmp_path / "merged"), theirs)


def test_a_table_that_is_the_head_too_and_was_trained_is_both_in_peft(make_model, tmp_path):
    model = make_model("llama", tie_embeddings=True, vocab_size=50)
    save_pretrained(model, tmp_path / "base")
    add_lora(model, LoRAConfig(rank=2, targets=("query",), train_fully=("embedding",)))
    with torch.no_grad():
        model.embedding.weight.add_(0.3)
    save_lora(model, tmp_path / "adapters")
    same(model, peft.PeftModel.from_pretrained(load_theirs(tmp_path / "base"), tmp_path / "adapters").eval())
    again = from_pretrained(tmp_path / "base")
    load_lora(again, tmp_path / "adapters")
    assert again.config.tie_embeddings and again.head is None
    assert torch.equal(again.embedding.weight, model.embedding.weight)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("gpt_neox", ["query_key_value", "dense", "dense_h_to_4h"]),
        ("phi3", ["qkv_proj", "gate_up_proj", "o_proj"]),
        ("phi", ["q_proj", "dense", "fc1"]),
        ("gemma3_text", ["q_proj", "v_proj", "up_proj"]),
        ("granite", ["k_proj", "gate_proj"]),
    ],
)
def test_adapters_on_fused_matrices_of_other_families(family, targets, tmp_path):
    draw_directory(7, tmp_path / "base", family, odd=False)
    theirs = their_adapters(tmp_path / "base", tmp_path / "theirs", target_modules=targets)
    ours = from_pretrained(tmp_path / "base")
    load_lora(ours, tmp_path / "theirs")
    same(ours, theirs)
    save_lora(ours, tmp_path / "back")
    same(ours, peft.PeftModel.from_pretrained(load_theirs(tmp_path / "base"), tmp_path / "back").eval())


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_was_trained_keeps_its_bias(tied, make_model, tmp_path):
    save_pretrained(make_model("phi", vocab_size=50, tie_embeddings=tied), tmp_path / "base")
    theirs = their_adapters(
        tmp_path / "base", tmp_path / "theirs", target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]
    )
    ours = from_pretrained(tmp_path / "base")
    before = ours.head_bias.detach().clone()
    load_lora(ours, tmp_path / "theirs")
    assert not torch.equal(ours.head_bias, before)
    same(ours, theirs)
    save_lora(ours, tmp_path / "back")
    same(ours, peft.PeftModel.from_pretrained(load_theirs(tmp_path / "base"), tmp_path / "back").eval())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}, "no DoRA on model.embed_tokens"),
        ({"lora_bias": True}, "no bias in 'model.layers.0.self_attn.q_proj'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(make_model, settings, named, tmp_path):
    save_pretrained(make_model("llama", vocab_size=50), tmp_path / "base")
    their_adapters(tmp_path / "base", tmp_path / "theirs", **settings)
    with pytest.raises(UserError, match=named):
        load_lora(from_pretrained(tmp_path / "base"), tmp_path / "theirs")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": "x"}, "r:"),
        ({"r": -1}, "r:"),
        ({"r": 1.5}, "r:"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_modules": 5}, "target_modules"),
        ({"target_modules": "(["}, "no regular expression"),
        ({"modules_to_save": {"a": 1}}, "modules_to_save"),
        ({"layers_to_transform": "one"}, "layers_to_transform"),
        ({"lora_dropout": 7}, "lora_dropout"),
        ({"peft_type": "IA3"}, "peft_type = IA3"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"init_lora_weights": ["a"]}, "init_lora_weights"),
        ({"kasa_config": {"a": 1}}, "kasa_config"),
    ],
)
def test_malformed_settings_are_a_sentence_that_names_them(make_model, changes, named, tmp_path):
    save_pretrained(make_model("llama", vocab_size=50), tmp_path / "base")
    their_adapters(tmp_path / "base", tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=named):
        load_lora(from_pretrained(tmp_path / "base"), tmp_path / "theirs")


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("granite", ["k_proj", "gate_proj"]),
        ("qwen2", ["q_proj", "v_proj"]),
        ("gpt2", ["c_attn", "c_fc"]),
        ("gpt_neox", ["query_key_value", "dense_4h_to_h"]),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"bias": "all"}, {"bias": "lora_only", "use_dora": True}, {"lora_bias": True}],
    ids=str,
)
def test_dora_and_biases_are_folded_in_as_peft_applies_them(family, targets, settings, tmp_path):
    draw_directory(7, tmp_path / "base", family, odd=False)
    if settings.get("lora_bias") and family in ("granite", "gpt_neox"):
        pytest.skip("the matrices of this one have no biases")
    theirs = their_adapters(tmp_path / "base", tmp_path / "theirs", target_modules=targets, **settings)
    fill(theirs, ("magnitude", "lora_B.default.bias", ".bias"))
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(load_theirs(tmp_path / "base"), tmp_path / "theirs").eval()  # as it is read
    ours = from_pretrained(tmp_path / "base")
    assert load_lora(ours, tmp_path / "theirs")
    same(ours, theirs)
    remove_lora(ours, merge=True)
    save_pretrained(ours, tmp_path / "merged")
    same(from_pretrained(tmp_path / "merged"), theirs)
    with pytest.raises(UserError, match="not trained further"):
        load_lora(from_pretrained(tmp_path / "base"), tmp_path / "theirs", trainable=True)
