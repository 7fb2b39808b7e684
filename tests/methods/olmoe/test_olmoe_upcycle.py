"""Upcycled models against the dense ones they come from; layouts of the training codes; commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lmlab.config import validate
from lmlab.errors import LmlabError, UserError
from lmlab.methods.olmoe import RoutingTrace, UpcycleConfig, read_olmo, upcycle, write_olmo
from lmlab.models import ModelConfig, Transformer, from_pretrained, save_pretrained

TINY = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/olmoe/tiny")
TEXTS = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/texts")
SIZES = {
    "vocab_size": 61,
    "num_layers": 2,
    "d_model": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "d_ff": 48,
    "max_seq_len": 64,
}


def dense_model(**changes) -> Transformer:
    model = Transformer(ModelConfig(**{**SIZES, **changes})).initialize(0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


IDS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("experts", "k", "split"), [(4, 2, 1), (8, 3, 1), (8, 2, 2), (16, 8, 4), (12, 6, 3)])
@torch.no_grad()
def test_upcycling_keeps_the_function(experts, k, split):
    dense = dense_model()
    sparse = upcycle(dense, UpcycleConfig(num_experts=experts, top_k=k, split=split))
    assert sparse.config.moe.expert_hidden_size == 48 // split
    torch.testing.assert_close(sparse(IDS).logits_BTV, dense(IDS).logits_BTV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_the_manner_of_the_paper_a_block_shrinks_by_the_sum_of_the_chosen_probabilities():
    dense = dense_model()
    sparse = upcycle(dense, UpcycleConfig(num_experts=8, top_k=2, preserve_function=False))
    x = torch.randn(2, 7, 32)
    for before, after in zip(dense.blocks, sparse.blocks, strict=True):
        out, routed = after.ffn(x)
        kept = routed.logits_BTE.softmax(-1).topk(2, -1).values.sum(-1, keepdim=True)
        assert 0.2 < float(kept.mean()) < 0.6
        torch.testing.assert_close(out, before.ffn(x) * kept, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_noise_replaces_its_share_of_entries_and_experts_differ():
    dense = dense_model()
    sparse = upcycle(dense, UpcycleConfig(num_experts=4, top_k=2, noise=0.5))
    experts = sparse.mixtures[0].experts
    gate = experts.gate_up[:, :48]
    changed = (gate != dense.blocks[0].ffn.gate.weight).float().mean((1, 2))
    assert ((changed - 0.5).abs() < 0.06).all() and not torch.equal(gate[0], gate[1])
    drawn = gate[gate != dense.blocks[0].ffn.gate.weight]
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.1)


def test_the_experts_learn_apart_and_other_weights_are_copies():
    dense = dense_model()
    sparse = upcycle(dense, UpcycleConfig(num_experts=4, top_k=2)).train()
    sparse.blocks[0].attention.query.weight.data.zero_()
    assert dense.blocks[0].attention.query.weight.any()
    output = sparse(IDS, labels_BT=IDS)
    (output.loss.mean + output.router_losses.total).backward()
    gradient = sparse.mixtures[0].experts.gate_up.grad
    assert not torch.equal(gradient[0], gradient[1]) and sparse.mixtures[0].router.weight.grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 6, "top_k": 2, "split": 4}, "must be multiples of split 4"),
        ({"num_experts": 6, "top_k": 1}, "preserve_function with top_k 1"),
        ({"num_experts": 1, "top_k": 1}, "num_experts"),
        ({"num_experts": 4, "top_k": 2, "noise": 2}, "noise"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        validate(UpcycleConfig, settings, "upcycle")


def test_models_that_cannot_be_upcycled_are_refused():
    sparse = upcycle(dense_model(), UpcycleConfig(num_experts=4, top_k=2))
    with pytest.raises(UserError, match="mixture of experts already"):
        upcycle(sparse, UpcycleConfig(num_experts=4, top_k=2))
    with pytest.raises(UserError, match="needs the section moe, gated: true"):
        upcycle(dense_model(gated=False), UpcycleConfig(num_experts=4, top_k=2))
    with pytest.raises(UserError, match="48 is not a multiple of split 5"):
        upcycle(dense_model(), UpcycleConfig(num_experts=10, top_k=5, split=5))


@pytest.mark.slow
def test_smollm2_upcycled_has_unchanged_perplexity(smollm2):
    """134 M real weights of a dense Llama, whose attention has no QK-norm: 4 experts, 2 for each token, on real
    text.
    """
    from lmlab.data import Tokenizer

    dense, tokenizer = from_pretrained(smollm2), Tokenizer.load(smollm2)
    ids = torch.tensor([tokenizer.encode(Path(F.__file__).read_text()[:6000])[:512]])
    labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
    with torch.no_grad():
        before = dense(ids, labels_BT=labels).loss.mean
        sparse = upcycle(dense, UpcycleConfig(num_experts=4, top_k=2))
        after = sparse(ids, labels_BT=labels).loss.mean
    assert float(after.exp()) == pytest.approx(float(before.exp()), rel=1e-5)
    assert sparse.config.qk_norm == "none"


OLMOE = {
    **SIZES,
    "qk_norm": "full",
    "tie_embeddings": False,
    "ffn": "moe",
    "d_ff": 24,
    "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 24},
}


@pytest.mark.parametrize("kind", ["olmo", "olmo-core"])
@pytest.mark.parametrize("sparse", [True, False])
@torch.no_grad()
def test_layouts_of_the_training_codes_come_back_as_they_were(kind, sparse, tmp_path):
    config = ModelConfig(**(OLMOE if sparse else {**SIZES, "qk_norm": "full", "tie_embeddings": False}))
    model = dense_model(**config.model_dump())
    write_olmo(model, tmp_path, kind)
    again = read_olmo(tmp_path, config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@torch.no_grad()
def test_names_and_orders_of_the_olmo_layout(tmp_path):
    """By the description of the layout: fused queries, keys and values; w1 the gates, v1 the ups, w2 the transposed
    downs; dense: ups first.
    """
    model = dense_model(**OLMOE)
    write_olmo(model, tmp_path)
    stored, block = load_file(tmp_path / "model.safetensors"), model.blocks[1]
    prefix = "transformer.blocks.1."
    attention = block.attention
    assert torch.equal(
        stored[prefix + "att_proj.weight"],
        torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]),
    )
    x = torch.randn(5, 32)
    w1, v1, w2 = (stored[f"{prefix}ffn.experts.mlp.{name}"].view(4, 24, 32) for name in ("w1", "v1", "w2"))
    gate, up = F.linear(x, block.ffn.experts.gate_up[2]).chunk(2, -1)
    expected = F.linear(F.silu(gate) * up, block.ffn.experts.down[2])
    torch.testing.assert_close((F.silu(x @ w1[2].T) * (x @ v1[2].T)) @ w2[2], expected)
    dense = dense_model(qk_norm="full", tie_embeddings=False)
    write_olmo(dense, tmp_path / "dense")
    fused = load_file(tmp_path / "dense" / "model.safetensors")[prefix + "ff_proj.weight"]
    assert torch.equal(fused[:48], dense.blocks[1].ffn.up.weight)


def test_configurations_of_the_training_codes_are_read_and_what_is_not_supported_is_refused(tmp_path):
    model = dense_model(**OLMOE)
    write_olmo(model, tmp_path)
    settings = {
        "vocab_size": 61,
        "embedding_size": 61,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "max_sequence_length": 64,
        "mlp_hidden_size": 48,
        "attention_layer_norm": True,
        "layer_norm_type": "rms",
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "weight_tying": False,
        "include_bias": False,
        "clip_qkv": None,
        "rope": True,
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"model": settings}))
    again = read_olmo(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits_BTV, model(IDS).logits_BTV)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": settings | {"clip_qkv": 8.0}}))
    with pytest.raises(UserError, match=r"does not support clip_qkv = 8\.0"):
        read_olmo(tmp_path)
    core = tmp_path / "core"
    write_olmo(model, core, "olmo-core")
    block = {
        "attention": {"n_heads": 4, "n_kv_heads": 2, "rope": {"theta": 10_000}, "qk_norm": {"name": "rms"}},
        "layer_norm": {"eps": 1e-5},
        "feed_forward_moe": {"num_experts": 4, "hidden_size": 24, "router": {"top_k": 2}},
    }
    (core / "config.json").write_text(
        json.dumps({"model": {"vocab_size": 61, "n_layers": 2, "d_model": 32, "block": block}})
    )
    with torch.no_grad():
        torch.testing.assert_close(read_olmo(core)(IDS).logits_BTV, model(IDS).logits_BTV)


def test_problems_of_a_foreign_checkpoint_are_named_at_once(tmp_path):
    config = ModelConfig(**OLMOE)
    write_olmo(dense_model(**OLMOE), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.blocks.0.ffn.experts.mlp.v1"]
    tensors["transformer.extra"] = torch.zeros(1)
    tensors["transformer.wte.weight"] = torch.zeros(64, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LmlabError) as caught:
        read_olmo(tmp_path, config)
    for part in (
        "missing transformer.blocks.0.ffn.experts.mlp.v1",
        "unexpected transformer.extra",
        "wte.weight has shape [64, 32], not [61, 32]",
    ):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="other files of weights are pickles"):
        read_olmo(tmp_path / "nothing")


CORE_SHAPES = {
    "embeddings.weight": (61, 32),
    "lm_head.norm.weight": (32,),
    "lm_head.w_out.weight": (61, 32),
    **{
        f"blocks.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "attention_norm.weight": (32,),
            "feed_forward_norm.weight": (32,),
            "attention.w_q.weight": (32, 32),
            "attention.w_k.weight": (16, 32),
            "attention.w_v.weight": (16, 32),
            "attention.w_out.weight": (32, 32),
            "attention.q_norm.weight": (32,),
            "attention.k_norm.weight": (16,),
            "feed_forward_moe.router.weight": (4 * 32,),
            "feed_forward_moe.experts.mlp.w1": (4 * 24, 32),
            "feed_forward_moe.experts.mlp.w3": (4 * 24, 32),
            "feed_forward_moe.experts.mlp.w2": (4 * 24, 32),
        }.items()
    },
}
"""Names and shapes by the description of OLMo-core's layout, for `OLMOE`."""


@torch.no_grad()
def test_names_shapes_and_orders_of_the_olmo_core_layout_with_and_without_capacities(tmp_path):
    model = dense_model(**OLMOE)
    write_olmo(model, tmp_path, "olmo-core")
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == CORE_SHAPES
    prefix, experts = "blocks.1.feed_forward_moe.", model.blocks[1].ffn.experts
    assert torch.equal(stored[prefix + "router.weight"].view(4, 32), model.blocks[1].ffn.router.weight)
    x = torch.randn(5, 32)
    w1, w3, w2 = (stored[f"{prefix}experts.mlp.{name}"].view(4, 24, 32) for name in ("w1", "w3", "w2"))
    gate, up = F.linear(x, experts.gate_up[2]).chunk(2, -1)
    torch.testing.assert_close(
        (F.silu(x @ w1[2].T) * (x @ w3[2].T)) @ w2[2], F.linear(F.silu(gate) * up, experts.down[2])
    )
    for layer, part in ((layer, part) for layer in range(2) for part in ("w1", "w3")):
        name = f"blocks.{layer}.feed_forward_moe.experts.mlp.{part}"
        stored[name] = torch.cat([each.T for each in stored[name].view(4, 24, 32)])
    save_file(stored, tmp_path / "model.safetensors")
    again = read_olmo(tmp_path, model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_experts_as_wide_as_the_model_need_a_configuration_that_says_their_layout(tmp_path):
    shape = {**OLMOE, "moe": {**OLMOE["moe"], "expert_hidden_size": 32}}
    model = dense_model(**shape)
    write_olmo(model, tmp_path, "olmo-core")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="shapes do not tell which layout"):
        read_olmo(tmp_path, model.config)
    for name, transposed in (("dropless", False), ("default", True)):
        (tmp_path / "config.json").write_text(json.dumps({"model": {"block": {"feed_forward_moe": {"name": name}}}}))
        read = read_olmo(tmp_path, model.config).blocks[0].ffn.experts.gate_up[1, :32]
        ours = model.blocks[0].ffn.experts.gate_up[1, :32]
        assert torch.equal(read, ours.T if transposed else ours)


def test_a_padded_vocabulary_and_a_configuration_without_keys_are_explained(tmp_path):
    model = dense_model(**{**OLMOE, "vocab_size": 64})
    write_olmo(model, tmp_path)
    with pytest.raises(LmlabError, match=r"has shape \[64, 32\], not \[61, 32\]") as caught:
        read_olmo(tmp_path, ModelConfig(**OLMOE))
    assert "set the size of the embedding to 64" in str(caught.value.remedy)
    (tmp_path / "config.yaml").write_text("model: {n_layers: 2, n_heads: 4}")
    with pytest.raises(UserError, match="no configuration of OLMo: it lacks the key 'd_model'"):
        read_olmo(tmp_path)
    write_olmo(model, tmp_path / "core", "olmo-core")
    (tmp_path / "core" / "config.json").write_text('{"model": {"block": 3}}')
    with pytest.raises(UserError, match="is not a configuration of OLMo-core"):
        read_olmo(tmp_path / "core")


@pytest.mark.skipif(not TINY.exists(), reason="needs the trained miniature (LMLAB_SHARED)")
def test_from_texts_to_a_page_on_the_command_line(lmlab, tmp_path):
    options = ["--tokenizer", "bytes", "--length", "128", "--sequences", "4", "--domain-field", "domain"]
    done = lmlab(
        "olmoe", "trace", TINY / "checkpoint", f"{TEXTS}/*.jsonl.zst", "--out", tmp_path / "final.npz", *options
    )
    assert done.code == 0, done.err
    assert "2,560 tokens of 5 domains, layers 0, 1, 2, 3" in done.out
    assert RoutingTrace.load(tmp_path / "final.npz").domains == ("arxiv", "book", "c4", "github", "wikipedia")
    stored = TINY / "trace_val.npz"
    arguments = [stored, "--step", "step600", "--earlier", f"10%={stored}:step60", "--out"]
    done = lmlab("olmoe", "analyze", *arguments, tmp_path / "figures.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    expected = json.loads((TINY / "expected_val.json").read_text())
    assert figures["saturation"]["10%"]["4"]["value"] == pytest.approx(
        expected["router_saturation"]["60"]["4"], abs=1e-6
    )
    assert max(figures["saturation"]["10%"]["4"]["half_width"]) < 0.1
    done = lmlab(
        "olmoe", "report", *arguments, tmp_path / "page.html", "--tokenizer", "bytes", "--published", TINY.parent
    )
    assert done.code == 0, done.err
    assert "as published" in (tmp_path / "page.html").read_text()


def test_mistakes_on_the_command_line_are_explained(lmlab, tmp_path):
    dense = tmp_path / "dense"
    save_pretrained(dense_model(), dense)
    for arguments, message in (
        (["trace", tmp_path / "none", "x.txt", "--out", "t.npz"], "where a model is needed"),
        (["trace", dense, "x.txt", "--out", "t.npz"], "no mixture-of-experts layers"),
        (["trace", dense, "x.txt", "--out", "t.json"], "a trace is a .npz file"),
        (["analyze", tmp_path / "none.npz"], "There is no file"),
        (["analyze", tmp_path / "none.npz", "--earlier", "x"], "There is no file"),
        (["upcycle", dense, dense], "already holds a model"),
        (["convert", dense, tmp_path / "out", "--to", "pt"], "known are hf, olmo and olmo-core"),
        (["ablate", tmp_path / "none.yaml"], "No such file"),
    ):
        done = lmlab("olmoe", *arguments)
        assert done.code == 2 and message in done.err, (arguments, done.err)


def test_a_dense_model_is_upcycled_and_converted_on_the_command_line(lmlab, tmp_path):
    source = dense_model(qk_norm="full", num_kv_heads=4, tie_embeddings=False)
    save_pretrained(source, tmp_path / "dense")
    done = lmlab("olmoe", "upcycle", tmp_path / "dense", tmp_path / "moe", "--num-experts", "4", "--top-k", "2")
    assert done.code == 0 and "as olmoe" in done.out, done.err
    with torch.no_grad():
        torch.testing.assert_close(
            from_pretrained(tmp_path / "moe")(IDS).logits_BTV, source(IDS).logits_BTV, atol=1e-5, rtol=1e-5
        )
    done = lmlab("olmoe", "convert", tmp_path / "moe", tmp_path / "olmo", "--to", "olmo")
    assert done.code == 0 and load_file(tmp_path / "olmo" / "model.safetensors"), done.err


def test_a_conversion_is_verified_and_swapped_gates_change_logits_alone(lmlab, tmp_path):
    model = dense_model(**OLMOE)
    write_olmo(model, tmp_path / "olmo-core", "olmo-core")
    block = {
        "attention": {"n_heads": 4, "n_kv_heads": 2, "rope": {"theta": 10_000}, "qk_norm": {"name": "rms"}},
        "layer_norm": {"eps": 1e-5},
        "feed_forward_moe": {"name": "dropless", "num_experts": 4, "hidden_size": 24, "router": {"top_k": 2}},
    }
    config = {"model": {"vocab_size": 61, "n_layers": 2, "d_model": 32, "block": block}}
    (tmp_path / "olmo-core" / "config.json").write_text(json.dumps(config))
    done = lmlab("olmoe", "convert", tmp_path / "olmo-core", tmp_path / "hf", "--verify")
    assert done.code == 0, done.err
    assert float(done.out.split("transformers: ")[1]) < 1e-4
    tensors = load_file(tmp_path / "olmo-core" / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".w1")]:
        other = name[:-2] + "w3"
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, tmp_path / "olmo-core" / "model.safetensors")
    with torch.no_grad():
        difference = read_olmo(tmp_path / "olmo-core")(IDS).logits_BTV - model(IDS).logits_BTV
    assert difference.abs().max() > 1e-3
