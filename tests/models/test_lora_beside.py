"""Adapters on the embedding and on experts: the same as `peft`'s in both directions, and what folding them in makes."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import UserError
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
from lmlab.models.lora.adapt import thin_pairs

peft = pytest.importorskip("peft", reason="needs the package 'peft'")
transformers = pytest.importorskip("transformers", reason="needs the package 'transformers'")


def _fill(pairs, seed=3):
    """Values far from zero, so that an adapter in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in pairs:
            for matrix in (pair.lora_a, pair.lora_b):
                matrix.copy_(torch.randn(matrix.shape, generator=generator) * 0.2)


def _adapted(model, **settings):
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 5.0, **settings}))
    _fill(thin_pairs(model).values())
    return model


def _their_logits(base, directory, ids):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, directory).eval()
    with torch.no_grad():
        return theirs(ids).logits


CASES = {
    "tied-embedding": ("llama", {"targets": ("embedding", "query")}),
    "embedding-alone": ("qwen2", {"targets": ("embedding",)}),
    "padded-vocabulary": ("llama", {"targets": ("embedding",)}),
    "experts": ("olmoe", {"targets": ("experts",), "dropout": 0.1}),
    "one-stack": ("olmoe", {"targets": ("experts.down", "value", "embedding")}),
    "other-stack-of-one-layer": ("olmoe", {"targets": ("experts.gate_up",), "layers": (1,), "rank_stabilized": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_reads_what_we_write_and_folding_in_changes_nothing(make_model, ids, tmp_path, case):
    kind, settings = CASES[case]
    model = make_model(kind, **({"vocab_multiple": 64} if case == "padded-vocabulary" else {}))
    save_pretrained(model, tmp_path / "base")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    _adapted(model, **settings)
    save_lora(model, tmp_path / "adapters", base=str(tmp_path / "base"))
    with torch.no_grad():
        ours = model.eval()(ids).logits_BTV
    torch.testing.assert_close(ours, _their_logits(tmp_path / "base", tmp_path / "adapters", ids), atol=2e-5, rtol=1e-5)

    again = from_pretrained(tmp_path / "base")
    assert load_lora(again, tmp_path / "adapters") == list(thin_pairs(model))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits_BTV, ours, atol=1e-5, rtol=1e-5)
        merge_lora(model)
        torch.testing.assert_close(model(ids).logits_BTV, ours, atol=2e-5, rtol=1e-5)
        unmerge_lora(model)
        now = dict(model.named_parameters())
        assert all(torch.equal(now[name], parameter) for name, parameter in before.items())
        remove_lora(model, merge=True)
        torch.testing.assert_close(model(ids).logits_BTV, ours, atol=2e-5, rtol=1e-5)
    save_pretrained(model, tmp_path / "folded")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folded", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("olmoe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
        (
            "olmoe",
            {
                "target_modules": ["embed_tokens"],
                "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
                "rank_pattern": {"experts.down_proj": 2, "embed_tokens": 5},
                "alpha_pattern": {"experts.gate_up_proj": 9},
            },
        ),
    ],
    ids=["embedding", "one-stack", "both-stacks"],
)
def test_we_read_what_peft_writes(make_model, ids, tmp_path, kind, settings):
    save_pretrained(make_model(kind), tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        theirs.save_pretrained(tmp_path / "adapters")
        expected = theirs(ids).logits
    model = from_pretrained(tmp_path / "base")
    load_lora(model, tmp_path / "adapters")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits_BTV, expected, atol=2e-5, rtol=1e-5)
    save_lora(model, tmp_path / "back")
    torch.testing.assert_close(_their_logits(tmp_path / "base", tmp_path / "back", ids), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [("embedding",), ("experts", "embedding", "query")])
def test_training_moves_only_the_adapters(make_model, ids, targets):
    model = make_model("olmoe" if "experts" in targets else "llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        plain = model(ids).logits_BTV
    add_lora(model, LoRAConfig(rank=4, targets=targets))
    with torch.no_grad():
        assert torch.equal(model(ids).logits_BTV, plain)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], parameter) for name, parameter in before.items())
    assert all(float((pair.lora_b @ pair.lora_a).abs().max()) > 0 for pair in thin_pairs(model).values())


def test_a_router_is_no_target(make_model):
    with pytest.raises(UserError, match="Routers cannot have adapters"):
        add_lora(make_model("olmoe"), LoRAConfig(targets=("router",)))


def test_experts_of_all_layers_get_one_adapter(make_model, ids):
    moe = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 24, "share_across_layers": True}
    model = make_model("olmoe", moe=moe)
    _adapted(model, targets=("experts",))
    assert list(thin_pairs(model)) == ["blocks.0.ffn.experts.gate_up", "blocks.0.ffn.experts.down"]
    assert model.blocks[0].ffn.experts is model.blocks[1].ffn.experts
