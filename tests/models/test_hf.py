from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmlab.errors import LmlabError, UserError
from lmlab.models import family_of, from_pretrained, save_pretrained


def edit_weights(directory, edit):
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def edit_settings(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmoe", "no_family"])
def test_missing_unexpected_and_mis_shaped_tensors_are_all_named_in_one_error(kind, make_model, tmp_path):
    save_pretrained(make_model(kind), tmp_path)
    names = {
        "llama": ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"),
        "gpt2": ("transformer.ln_f.weight", "transformer.h.1.attn.c_attn.weight"),
        "olmoe": ("model.layers.0.mlp.experts.5.down_proj.weight", "model.layers.1.mlp.experts.0.up_proj.weight"),
        "no_family": ("final_norm.weight", "blocks.1.ffn.up.weight"),
    }
    missing, reshaped = names[kind]

    def damage(weights):
        del weights[missing]
        weights[reshaped] = torch.zeros(3, 4)
        weights["something.else"] = torch.zeros(2)

    edit_weights(tmp_path, damage)
    with pytest.raises(LmlabError) as caught:
        from_pretrained(tmp_path)
    message = str(caught.value)
    assert f"missing {missing}" in message
    assert f"{reshaped} has shape" in message
    assert "unexpected something.else" in message
    assert str(tmp_path / "model.safetensors") in message


def test_a_directory_without_config_is_a_user_error(make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        from_pretrained(tmp_path)


def test_a_directory_without_weights_is_a_user_error(make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_damaged_weights_are_an_error_that_names_the_file(size, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LmlabError, match=r"model\.safetensors' is damaged"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '"llama"', '{"model_type": "lmlab"}'])
def test_a_broken_configuration_is_a_user_error_that_names_the_file(text, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["lama", "t5", None])
def test_an_unknown_model_type_is_a_user_error(model_type, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    edit_settings(tmp_path, model_type=model_type)
    with pytest.raises(UserError, match=f"model type '{model_type}' is not supported") as caught:
        from_pretrained(tmp_path)
    assert "llama" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act = mish"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 8.0}}, "rotary scaling of type ntk"),
        ({"hidden_act": "mish", "partial_rotary_factor": 0.5}, "hidden_act = mish; partial_rotary_factor"),
        ({"hidden_size": "wide"}, "d_model"),
    ],
)
def test_settings_that_are_not_supported_are_user_errors(changes, message, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path)
    edit_settings(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        from_pretrained(tmp_path)


def test_a_model_that_fits_no_family_round_trips_in_the_native_format(make_model, ids, tmp_path):
    model = make_model("no_family")
    assert family_of(model.config) is None
    assert save_pretrained(model, tmp_path) == "lmlab"
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(ids).logits_BTV, model(ids).logits_BTV)


def test_a_gpt2_with_grouped_key_value_heads_is_no_gpt2(make_model):
    assert family_of(make_model("gpt2").config).model_type == "gpt2"
    assert family_of(make_model("gpt2", num_kv_heads=2).config) is None


def test_special_tokens_and_dtype_are_written(make_model, tmp_path):
    save_pretrained(make_model(), tmp_path, torch.bfloat16, tokens={"bos_token_id": 3, "eos_token_id": 4})
    settings, generation = (
        json.loads((tmp_path / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert (
        (settings["bos_token_id"], settings["eos_token_id"])
        == (3, 4)
        == (generation["bos_token_id"], generation["eos_token_id"])
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert from_pretrained(tmp_path).embedding.weight.dtype == torch.float32


def test_a_tied_matrix_is_stored_once(make_model, tmp_path):
    model = make_model(tie_embeddings=True)
    save_pretrained(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = from_pretrained(tmp_path)
    assert loaded.head_weight_VD is loaded.embedding.weight
