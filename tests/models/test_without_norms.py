"""Networks without norms and without causal order, and the parts of blocks that are called by themselves."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import UserError
from lmlab.models import GenerationConfig, ModelConfig, Transformer, family_of, generate
from lmlab.models.internals import surgery
from lmlab.models.internals.taps import Recorder


def test_a_network_without_norms_or_causal_order_equals_its_formula(make_model, ids):
    model = make_model("no_family", norm="none", causal=False, num_layers=1, head_dim=5, gated=False)
    weights = dict(model.named_parameters())
    x = weights["embedding.weight"][ids]

    def project(name, inputs):
        out = inputs @ weights[f"blocks.0.{name}.weight"].T
        return out + weights[f"blocks.0.{name}.bias"]

    q, k, v = (
        project(f"attention.{part}", x).unflatten(-1, (4, 5)).transpose(1, 2) for part in ("query", "key", "value")
    )
    x = x + project("attention.output", ((q @ k.mT / 5**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    x = x + project("ffn.down", project("ffn.up", x).relu())
    assert torch.allclose(model(ids).logits_BTV, x @ weights["head.weight"].T, rtol=1e-3, atol=1e-3)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters()


def test_without_causal_order_documents_and_padding_stay_apart(make_model, ids):
    model = make_model("llama", causal=False)
    documents = torch.arange(17).ge(9).long().expand(3, -1)
    packed = model(ids, document_ids_BT=documents).hidden_BTD
    assert torch.allclose(packed[:, :9], model(ids[:, :9]).hidden_BTD, atol=1e-4)
    assert torch.allclose(packed[:, 9:], model(ids[:, 9:]).hidden_BTD, atol=1e-4)
    padded = model(ids, attention_mask_BT=documents == 0).hidden_BTD
    assert torch.allclose(padded[:, :9], packed[:, :9], atol=1e-4)
    assert not torch.allclose(model(ids).hidden_BTD[:, :5], model(ids[:, :5]).hidden_BTD, atol=1e-2)


def test_such_networks_belong_to_no_family_and_do_not_generate(make_model):
    model = make_model("llama", causal=False)
    assert family_of(model.config) is None
    with pytest.raises(UserError, match="not causal cannot generate"):
        generate(model, [[1, 2]], GenerationConfig(max_new_tokens=2))
    with pytest.raises(ValueError, match="norm: none has no bias"):
        ModelConfig(vocab_size=9, num_layers=1, d_model=8, num_heads=2, norm="none", norm_bias=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2"])
def test_parts_of_blocks_add_up_to_the_forward_pass(make_model, ids, kind):
    model: Transformer = make_model(kind)
    parts, context = model.embeddings(ids)
    x = torch.stack(parts).sum(0)
    seen = Recorder("blocks.*.attention.head_outputs")
    for layer in range(2):
        block = model.block(layer)
        heads = surgery.heads(block, x, context)
        if kind != "olmo2":
            assert torch.allclose(
                surgery.write_heads(block, heads, bias=True).sum(2), surgery.write_attention(block, heads), atol=1e-4
            )
        x = x + surgery.write_attention(block, heads)
        x = x + surgery.feed_forward(block, x, context)[0]
    expected = model(ids, taps=seen).logits_BTV
    assert torch.allclose(model.read_out(x), expected, atol=1e-3)


def test_outputs_of_single_experts_add_up(make_model, ids):
    for changes in (
        {},
        {
            "moe": {
                "num_experts": 4,
                "top_k": 2,
                "expert_hidden_size": 24,
                "num_shared_experts": 1,
                "shared_expert_combine": "weighted_mean",
            }
        },
    ):
        model = make_model("olmoe", **changes)
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
        block = model.block(0)
        apart = surgery.expert_outputs(block, x)
        _, context = model.embeddings(ids)
        assert torch.allclose(apart.sum(2), surgery.feed_forward(block, x, context)[0], atol=1e-4)
        chosen = block.ffn.config.top_k + bool(changes)
        assert bool(((apart.abs().sum(-1) > 0).sum(-1) == chosen).all())
