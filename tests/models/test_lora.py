"""Adapters: the same as `peft`'s in both directions, trained beside frozen weights, merged and taken out again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmlab.errors import LmlabError, UserError
from lmlab.models import (
    LoRAConfig,
    add_lora,
    from_pretrained,
    load_lora,
    merge_lora,
    remove_lora,
    save_lora,
    save_pretrained,
    unmerge_lora,
)
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.attention.visibility import Visibility
from lmlab.models.lora.adapt import adapters

peft = pytest.importorskip("peft", reason="needs the package 'peft'")
transformers = pytest.importorskip("transformers", reason="needs the package 'transformers'")

FAMILIES = ("llama", "qwen2", "qwen3", "olmo2", "gpt2", "opt")
PEFT_TARGETS = {"gpt2": ["c_attn", "mlp.c_proj"], "opt": ["q_proj", "out_proj", "fc2"]}


def fill(parameters, seed=3):
    """Values far from zero, so that an adapter in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def adapted(model, **settings):
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 5.0, **settings}))
    fill([adapter.lora_b for adapter in adapters(model).values()])
    return model


def their_logits(base, directory, ids):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, directory).eval()
    with torch.no_grad():
        return theirs(ids).logits


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": ("query", "ffn.down"), "layers": (1,)},
        {"targets": ("blocks.0.attention.value",), "rank_stabilized": True},
        {"targets": ("key", "up"), "train_fully": ("final_norm",)},
    ],
    ids=["all", "some-layers", "one", "trained-fully"],
)
def test_peft_reads_what_we_write(make_model, ids, tmp_path, kind, settings):
    model = make_model(kind)
    save_pretrained(model, tmp_path / "base")
    adapted(model, **settings)
    if "train_fully" in settings:
        fill([model.final_norm.weight])
    save_lora(model, tmp_path / "adapters", base=str(tmp_path / "base"))
    with torch.no_grad():
        ours = model(ids).logits_BTV
    torch.testing.assert_close(ours, their_logits(tmp_path / "base", tmp_path / "adapters", ids), atol=1e-5, rtol=1e-5)

    again = from_pretrained(tmp_path / "base")
    assert load_lora(again, tmp_path / "adapters") == list(adapters(model))
    assert {name: each.rank for name, each in adapters(again).items()} == {
        name: each.rank for name, each in adapters(model).items()
    }
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits_BTV, ours, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "layers_to_transform": [1]},
        {
            "rank_pattern": {"layers.0.self_attn.q_proj": 5, "h.1.attn.c_attn": 2},
            "alpha_pattern": {"q_proj": 7, "c_attn": 9},
        },
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(h|layers)\.1\..*(q_proj|c_attn|fc1|up_proj)"},
    ],
    ids=["plain", "rslora", "patterns", "all-linear", "regex"],
)
def test_we_read_what_peft_writes(make_model, ids, tmp_path, kind, settings):
    save_pretrained(make_model(kind), tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    targets = PEFT_TARGETS.get(kind, ["q_proj", "o_proj", "up_proj"])
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **{"target_modules": targets, **settings})
    ).eval()
    fill([parameter for name, parameter in theirs.named_parameters() if "lora_B" in name])
    theirs.save_pretrained(tmp_path / "adapters")
    with torch.no_grad():
        expected = theirs(ids).logits
    model = from_pretrained(tmp_path / "base")
    load_lora(model, tmp_path / "adapters")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits_BTV, expected, atol=1e-5, rtol=1e-5)

    save_lora(model, tmp_path / "back")  # the same ranks again, fused matrices included
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapters", "back"))
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    torch.testing.assert_close(their_logits(tmp_path / "base", tmp_path / "back", ids), expected, atol=1e-5, rtol=1e-5)


def test_a_classifier_with_its_head(make_model, ids, tmp_path):
    save_pretrained(make_model("llama", num_labels=3), tmp_path / "base", tokens={"pad_token_id": 0})
    model = adapted(from_pretrained(tmp_path / "base"), train_fully=("score",))
    fill([model.score.weight])
    save_lora(model, tmp_path / "adapters")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    ids = ids.clamp(min=1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).scores_BC, theirs(ids).logits, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "back")
    again = from_pretrained(tmp_path / "base")
    load_lora(again, tmp_path / "back", trainable=True)
    torch.testing.assert_close(again.score.weight, model.score.weight)
    assert again.score.weight.requires_grad and not again.embedding.weight.requires_grad


def test_gradients_are_those_of_peft(make_model, ids, tmp_path):
    model = make_model("llama")
    save_pretrained(model, tmp_path / "base")
    save_lora(adapted(model), tmp_path / "adapters")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters", is_trainable=True)
    theirs(ids, labels=ids).loss.backward()
    model(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean.backward()
    expected = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(expected) == len(ours) == 2 * len(adapters(model))
    for layer in (0, 1):
        for our_name, their_name in (("attention.query", "self_attn.q_proj"), ("ffn.down", "mlp.down_proj")):
            for a, b in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                found = expected[f"base_model.model.model.layers.{layer}.{their_name}.{b}.weight"]
                torch.testing.assert_close(ours[f"blocks.{layer}.{our_name}.{a}"], found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_only_the_adapters(make_model, ids, dtype):
    model = make_model("llama").to(dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        plain = model(ids).logits_BTV
    add_lora(model, LoRAConfig(rank=4, dropout=0.1, targets=("query", "value", "up")))
    with torch.no_grad():
        assert torch.equal(model(ids).logits_BTV, plain)  # B is zero
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(dict(model.named_parameters())[name], parameter) for name, parameter in before.items())
    assert all(float(adapter.lora_b.detach().abs().max()) > 0 for adapter in adapters(model).values())


def test_merge_and_back(make_model, ids, tmp_path):
    model = make_model("gpt2")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    adapted(model)
    with torch.no_grad():
        beside = model(ids).logits_BTV
        merge_lora(model)
        merge_lora(model)
        torch.testing.assert_close(model(ids).logits_BTV, beside, atol=1e-5, rtol=1e-5)
        assert not torch.equal(model.blocks[0].attention.query.weight, before["blocks.0.attention.query.weight"])
        unmerge_lora(model)
        assert all(torch.equal(dict(model.named_parameters())[name], parameter) for name, parameter in before.items())
        torch.testing.assert_close(model(ids).logits_BTV, beside, atol=0, rtol=0)
    with pytest.raises(ValueError, match="adapters"):
        save_pretrained(model, tmp_path / "refused")
    remove_lora(model, merge=True)
    assert not adapters(model) and all(parameter.requires_grad for parameter in model.parameters())
    save_pretrained(model, tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained(tmp_path / "merged")(ids).logits_BTV, beside, atol=1e-5, rtol=1e-5)


def test_remove_without_merging_gives_the_base_model(make_model, ids):
    model = make_model("llama")
    with torch.no_grad():
        plain = model(ids).logits_BTV
    merge_lora(adapted(model))
    remove_lora(model, merge=False)
    with torch.no_grad():
        assert torch.equal(model(ids).logits_BTV, plain)


def test_inputs_and_outputs_of_single_heads_include_the_adapters(make_model):
    model = adapted(make_model("llama"))
    attention = model.blocks[0].attention
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    context = AttentionContext(Visibility(5, 5))
    with torch.no_grad():
        shared = attention.heads(x, context)
        single = attention.heads(
            *(x[:, :, None].expand(-1, -1, n, -1) if i != 1 else context for i, n in ((0, 4), (1, 0), (2, 2), (3, 2)))
        )
        torch.testing.assert_close(single, shared, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention.head_outputs(shared).sum(2), attention(x, context), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"targets": ("querry",)}, "Did you mean 'query'"),
        ({"layers": (7,)}, "no layer 7; the model has 2"),
        ({"targets": ("blocks.0.attention.key",), "layers": (1,)}, "nothing in common"),
        ({"train_fully": ("scores",)}, "'scores'"),
    ],
)
def test_wrong_targets(make_model, settings, expected):
    with pytest.raises(UserError, match=expected):
        add_lora(make_model("llama"), LoRAConfig(**settings))


def test_adapters_twice_are_refused(make_model, tmp_path):
    model = adapted(make_model("llama"))
    save_lora(model, tmp_path)
    for again in (lambda: add_lora(model, LoRAConfig()), lambda: load_lora(model, tmp_path)):
        with pytest.raises(UserError, match="adapters already"):
            again()
    with pytest.raises(UserError, match="no adapters"):
        save_lora(make_model("llama"), tmp_path)


def test_all_wrong_tensors_are_named_at_once_and_nothing_changes(make_model, tmp_path):
    save_lora(adapted(make_model("llama"), targets=("query", "key")), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.layers.0.self_attn."
    del tensors[f"{prefix}q_proj.lora_A.weight"]
    tensors[f"{prefix}k_proj.lora_B.weight"] = torch.zeros(5, 3)
    tensors[f"{prefix}v_proj.lora_A.weight"] = torch.zeros(3, 32)
    save_file(tensors, path)
    model = make_model("llama")
    with pytest.raises(LmlabError) as error:
        load_lora(model, tmp_path)
    for part in (
        "missing model.layers.0.self_attn.q_proj.lora_A",
        "k_proj.lora_B.weight has shape [5, 3], not [16, 3]",
        "unexpected model.layers.0",
    ):
        assert part in str(error.value)
    assert not adapters(model) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, "missing .*lora_magnitude_vector"),
        ({"peft_type": "LOHA"}, "peft_type = LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"target_modules": ["embed_tokens"]}, "missing model.embed_tokens.lora_embedding_A"),
    ],
)
def test_other_kinds_of_adapters_are_refused(make_model, tmp_path, changes, expected):
    save_lora(adapted(make_model("llama")), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(LmlabError, match=expected):
        load_lora(make_model("llama"), tmp_path)


def test_missing_damaged_and_pickled_files(make_model, ids, tmp_path):
    model = make_model("llama")
    with pytest.raises(UserError, match="not a directory of adapters"):
        load_lora(model, tmp_path)
    directory = tmp_path / "adapters"
    with torch.no_grad():
        save_lora(adapted(make_model("llama")), directory)
    weights = directory / "adapter_model.safetensors"
    pickled = tmp_path / "pickled"
    shutil.copytree(directory, pickled)
    torch.save(load_file(weights), pickled / "adapter_model.bin")
    (pickled / weights.name).unlink()
    with pytest.raises(UserError, match="only as a pickle"):
        load_lora(model, pickled)
    load_lora(model, pickled, allow_pickle=True)
    expected = adapted(make_model("llama"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits_BTV, expected(ids).logits_BTV)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LmlabError, match="damaged"):
        load_lora(make_model("llama"), directory)
