"""The mixture-of-experts layer: against `transformers`, against the stored figures of a trained miniature, and back
ends against each other.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lmlab.config import validate
from lmlab.errors import LmlabError, UserError
from lmlab.models import (
    KVCache,
    ModelConfig,
    MoE,
    MoEConfig,
    Transformer,
    from_pretrained,
    load_balancing_loss,
    router_z_loss,
    save_pretrained,
)
from lmlab.models.moe.experts import run_experts
from lmlab.models.moe.router import choose_experts, choose_tokens, pairs_of_experts, pairs_of_tokens

TINY = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/olmoe/tiny")
needs_tiny = pytest.mark.skipif(not TINY.exists(), reason="needs the trained miniature (LMLAB_SHARED)")
BASE = {
    "vocab_size": 61,
    "num_layers": 2,
    "d_model": 32,
    "num_heads": 4,
    "ffn": "moe",
    "qk_norm": "full",
    "tie_embeddings": False,
}
EXPERTS = {"num_experts": 8, "top_k": 3, "expert_hidden_size": 24}


def make(seed: int = 0, std: float = 0.2, **moe) -> Transformer:
    settings = {key: moe.pop(key) for key in ("ffn", "num_layers", "d_ff") if key in moe}
    model = Transformer(ModelConfig(**{**BASE, **settings}, moe={**EXPERTS, **moe})).initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def ids_of(rows: int = 2, length: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, BASE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def with_backend(model: Transformer, backend: str) -> Transformer:
    for mixture in model.mixtures:
        mixture.experts.backend = backend
    return model


@pytest.fixture(scope="module")
def forward_val():
    return np.load(TINY / "forward_val.npz", allow_pickle=False)


@needs_tiny
@pytest.mark.parametrize("backend", ["loop", "grouped_mm", "batched", "reference"])
@torch.no_grad()
def test_the_trained_miniature_gives_the_stored_logits_and_choices(backend, forward_val):
    model = with_backend(from_pretrained(TINY / "checkpoint"), backend)
    output = model(torch.from_numpy(forward_val["input_ids"]).long())
    names = {key: forward_val[key] for key in forward_val.files}
    torch.testing.assert_close(output.logits_BTV.numpy(), names["logits"], atol=1e-4, rtol=0)
    theirs = torch.from_numpy(names["router_logits"])
    for mine, expected in zip(output.routers, theirs, strict=True):
        torch.testing.assert_close(mine.logits_BTE, expected, atol=1e-4, rtol=0)
        probabilities = expected.softmax(-1)
        chosen = probabilities.topk(4, -1).indices
        differs = mine.indices != chosen
        gap = probabilities.gather(-1, mine.indices) - probabilities.gather(-1, chosen)
        assert float(gap[differs].abs().max() if differs.any() else 0) < 1e-6


@needs_tiny
def test_losses_and_gradients_of_the_miniature_are_the_stored_ones(forward_val):
    expected = json.loads((TINY / "aux_losses_val.json").read_text())
    ids = torch.from_numpy(forward_val["input_ids"]).long()
    model = from_pretrained(TINY / "checkpoint").train()
    labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
    output = model(ids, labels_BT=labels)
    losses, logits, indices = (
        output.router_losses,
        [each.logits_BTE for each in output.routers],
        [each.indices for each in output.routers],
    )
    assert losses.load_balancing.item() == pytest.approx(expected["lbl_mean_over_layers"], abs=1e-6)
    each_layer = [load_balancing_loss([x], [i]).item() for x, i in zip(logits, indices, strict=True)]
    assert each_layer == pytest.approx(expected["lbl_per_layer"], abs=1e-6)
    pooled = load_balancing_loss(logits, indices, convention="transformers")
    assert pooled.item() == pytest.approx(expected["lbl_transformers_pooled_not_divided_by_k"], abs=1e-5)
    mask = torch.ones_like(ids)
    mask[1, 200:] = 0
    masked = load_balancing_loss(logits, indices, convention="transformers", mask_BT=mask)
    assert masked.item() == pytest.approx(expected["lbl_transformers_with_attention_mask"], abs=1e-5)
    assert losses.router_z.item() == pytest.approx(expected["router_z_mean"], abs=1e-5)
    total = output.loss.mean + losses.total
    assert output.loss.mean.item() == pytest.approx(expected["ce_labels_shifted"], abs=1e-5)
    assert total.item() == pytest.approx(expected["total_loss_ce_plus_0.01lbl_plus_0.001z"], abs=1e-5)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = {
        "model.embed_tokens.weight": "embedding.weight",
        "model.layers.0.mlp.gate.weight": "blocks.0.ffn.router.weight",
        "model.layers.0.mlp.experts.gate_up_proj": "blocks.0.ffn.experts.gate_up",
        "model.layers.1.self_attn.q_norm.weight": "blocks.1.attention.query_norm.weight",
        "model.layers.3.mlp.gate.weight": "blocks.3.ffn.router.weight",
        "model.layers.3.mlp.experts.down_proj": "blocks.3.ffn.experts.down",
        "lm_head.weight": "head.weight",
    }
    assert ours.keys() == expected["grad_l2_norm"].keys()
    for theirs, mine in ours.items():
        assert float(gradients[mine].norm()) == pytest.approx(expected["grad_l2_norm"][theirs], rel=1e-4), theirs
    whole = math.sqrt(sum(float(each.square().sum()) for each in gradients.values()))
    assert whole == pytest.approx(expected["grad_l2_norm_total"], rel=1e-4)


@pytest.mark.parametrize("mask", [None, "some"])
def test_the_convention_of_transformers_is_that_of_its_function(mask):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, 10, 6, generator=generator) for _ in range(4)]
    indices = [each.topk(2, -1).indices for each in logits]
    attention = None if mask is None else (torch.rand(3, 10, generator=generator) > 0.3).long()
    expected = load_balancing_loss_func(tuple(each.flatten(0, 1) for each in logits), 6, 2, attention)
    torch.testing.assert_close(
        load_balancing_loss(logits, indices, convention="transformers", mask_BT=attention), expected
    )


def test_load_balancing_is_one_for_equal_loads_and_at_most_experts_over_k():
    even = torch.zeros(1, 8, 4)
    rotating = torch.stack([torch.arange(8) % 4, (torch.arange(8) + 1) % 4], -1)[None]
    assert float(load_balancing_loss([even], [rotating])) == pytest.approx(1)
    peaked = torch.tensor([50.0, 50, 0, 0]).expand(1, 8, 4)
    assert float(load_balancing_loss([peaked], [torch.tensor([0, 1]).expand(1, 8, 2)])) == pytest.approx(2)


def test_imbalances_of_different_layers_cancel_in_the_convention_of_transformers_only():
    one, other = torch.tensor([9.0, 0.0]).expand(1, 6, 2), torch.tensor([0.0, 9.0]).expand(1, 6, 2)
    layers = ([one, other], [torch.zeros(1, 6, 1).long(), torch.ones(1, 6, 1).long()])
    assert float(load_balancing_loss(*layers, convention="transformers")) == pytest.approx(1)
    assert float(load_balancing_loss(*layers)) == pytest.approx(2, rel=1e-3)


def test_the_z_loss_of_large_logits_is_finite():
    """The logarithm of a plain sum of exponentials is infinite from 89 on in fp32."""
    logits = torch.tensor([[[500.0, 500.0, -500.0]]], requires_grad=True)
    loss = router_z_loss([logits])
    loss.backward()
    assert loss.item() == pytest.approx((500 + math.log(2)) ** 2) and logits.grad.isfinite().all()


def test_sequences_are_balanced_one_by_one_and_padding_is_left_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, 5, generator=generator)
    indices = logits.topk(2, -1).indices
    mask = torch.arange(12) < torch.tensor([12, 7, 0])[:, None]
    rows = [
        float(load_balancing_loss([logits[i : i + 1, :n]], [indices[i : i + 1, :n]])) for i, n in enumerate((12, 7))
    ]
    assert float(load_balancing_loss([logits], [indices], by_sequence=True, mask_BT=mask)) == pytest.approx(
        sum(rows) / 2
    )
    flat = torch.cat((logits[0], logits[1, :7]))[None]
    assert float(router_z_loss([logits], mask_BT=mask)) == pytest.approx(float(flat.logsumexp(-1).square().mean()))


def test_documents_of_a_packed_row_are_balanced_as_if_each_had_a_row(make_model):
    """A model's own loss on packed rows is that on the same documents apart; 3 is alone in its row, -1 is padding."""
    moe = {
        "num_experts": 8,
        "top_k": 3,
        "expert_hidden_size": 24,
        "load_balancing_loss": {"coef": 1.0, "granularity": "sequence"},
        "router_z_loss": None,
    }
    model = make_model("olmoe", moe=moe).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 61, (2, 12), generator=generator)
    documents = torch.tensor([[0] * 5 + [1] * 7, [3] * 9 + [-1] * 3])
    packed = model(ids, labels_BT=ids, document_ids_BT=documents).router_losses.load_balancing
    apart = [
        model(part[None], labels_BT=part[None]).router_losses.load_balancing
        for part in (ids[0, :5], ids[0, 5:], ids[1, :9])
    ]
    torch.testing.assert_close(packed, torch.stack(apart).mean())
    rows = model(ids, labels_BT=ids).router_losses.load_balancing
    assert not torch.allclose(packed, rows, rtol=1e-3)
    packed.backward()
    assert float(model.mixtures[0].router.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("settings", "dtype", "tolerance"),
    [
        ({}, torch.float32, 1e-5),
        ({"activation": "gelu_tanh"}, torch.float32, 1e-5),
        ({}, torch.bfloat16, 2e-2),
        ({"top_k": 1}, torch.float32, 1e-5),
    ],
)
def test_back_ends_agree_forward_and_backward(settings, dtype, tolerance):
    settings = dict(settings)
    activation = settings.pop("activation", "silu")
    results = {}
    for backend in ("reference", "loop", "grouped_mm", "batched"):
        config = ModelConfig(
            **{**BASE, "d_model": 32, "activation": activation}, moe={**EXPERTS, **settings, "experts_backend": backend}
        )
        layer = MoE(config)
        generator = torch.Generator().manual_seed(3)
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        layer = layer.to(dtype)
        x = torch.randn(2, 37, 32, generator=generator).to(dtype).requires_grad_()
        out, _ = layer(x)
        out.backward(torch.randn(out.shape, generator=generator).to(dtype))
        results[backend] = [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]
    for backend in ("loop", "grouped_mm", "batched"):
        for mine, expected in zip(results[backend], results["reference"], strict=True):
            error = (mine.float() - expected.float()).norm() / expected.float().norm()
            assert float(error) < tolerance, backend


def _matrices(experts: int = 4, width: int = 6, inner: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (7, width), (experts, 2 * inner, width), (experts, width, inner)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gradients_of_the_loop_are_those_of_finite_differences(activation):
    x, gate_up, down = _matrices()
    config = MoEConfig(num_experts=4, top_k=2, expert_hidden_size=5)
    indices = torch.tensor([[0, 1], [1, 0], [3, 1], [0, 3], [1, 3], [3, 0], [0, 1]])  # expert 2 gets nothing
    weights = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def compute(x, weights, gate_up, down):
        return run_experts(x, pairs_of_tokens(weights, indices, config), gate_up, down, activation, "loop")

    assert torch.autograd.gradcheck(compute, (x, weights, gate_up, down))


@pytest.mark.parametrize("backend", ["loop", "grouped_mm", "batched", "reference"])
def test_unused_experts_single_tokens_and_empty_batches(backend):
    model = with_backend(make(), backend)
    layer = model.mixtures[0]
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:3] = 5
    out, routed = layer(torch.ones(1, 1, 32))
    assert sorted(routed.indices.flatten().tolist()) == [0, 1, 2]
    assert routed.tokens_per_expert_E.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    out.sum().backward()
    for parameter in (layer.experts.gate_up, layer.experts.down):
        assert parameter.grad[:3].abs().sum() > 0
        assert not parameter.grad[3:].any()
    empty, routed = layer(torch.zeros(0, 5, 32, requires_grad=True))
    assert empty.shape == (0, 5, 32) and not routed.tokens_per_expert_E.any()
    empty.sum().backward()


def test_everything_may_go_to_one_expert():
    model = make(top_k=1)
    layer = model.mixtures[0]
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[5] = 1
        x = torch.rand(2, 9, 32)
        out, routed = layer(x)
        gate, up = F.linear(x, layer.experts.gate_up[5]).chunk(2, -1)
        weight = routed.logits_BTE.softmax(-1)[..., 5:6]
        torch.testing.assert_close(out, weight * F.linear(F.silu(gate) * up, layer.experts.down[5]))
    assert routed.tokens_per_expert_E.tolist() == [0, 0, 0, 0, 0, 18, 0, 0]


def test_equal_probabilities_are_chosen_by_number_in_every_back_end():
    config = MoEConfig(num_experts=6, top_k=3, expert_hidden_size=8)
    ties = torch.tensor([[0.2, 0.1, 0.2, 0.2, 0.2, 0.1], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]])
    _, indices = choose_experts(ties, config)
    assert indices.tolist() == [[0, 2, 3], [0, 1, 2]]


def test_half_precision_is_summed_in_fp32():
    """The sum of k = 8 products in bf16 is as near to the exact one as rounding it once allows."""
    config = MoEConfig(num_experts=8, top_k=8, expert_hidden_size=16)
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 16), (8, 32, 16), (8, 16, 16))
    )
    weights, indices = choose_experts(torch.rand(64, 8, generator=generator).softmax(-1), config)
    pairs = pairs_of_tokens(weights, indices, config)
    exact = run_experts(x.double(), pairs, gate_up.double(), down.double(), backend="loop")
    for backend in ("loop", "grouped_mm", "batched"):
        out = run_experts(x, pairs, gate_up, down, backend=backend)
        assert float((out.double() - exact).norm() / exact.norm()) < 6e-3


@pytest.mark.parametrize(("counts", "stacked"), [((60, 57, 62, 61), True), ((240, 0, 0, 0), False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stacked_products_serve_loads_that_are_nearly_even(counts, stacked, dtype, monkeypatch):
    config = MoEConfig(num_experts=4, top_k=1, expert_hidden_size=16)
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down, weights = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((240, 16), (4, 32, 16), (4, 16, 16), (240, 1))
    )
    indices = torch.repeat_interleave(torch.tensor(counts))[torch.randperm(240, generator=generator)][:, None]
    products = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given: products.append(1) or bmm(*given))
    found = {}
    for backend in ("loop", "batched"):
        out = run_experts(x, pairs_of_tokens(weights, indices, config), gate_up, down, backend=backend)
        found[backend] = [out, *torch.autograd.grad(out.float().square().sum(), (x, gate_up, down, weights))]
    assert len(products) == (6 if stacked else 0)
    for mine, expected in zip(found["batched"], found["loop"], strict=True):
        error = (mine - expected).double().norm() / expected.double().norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]


def test_sizes_that_grouped_mm_cannot_take_fall_back_to_the_loop_and_say_so_once(caplog):
    layer = with_backend(make(expert_hidden_size=6, top_k=2), "grouped_mm").mixtures[0]
    for _ in range(2):
        layer(torch.randn(1, 3, 32))
    assert [record.message for record in caplog.records if "the loop does" in record.message] == [
        "grouped_mm cannot compute experts of widths 32 and 6 in float32; the loop does."
    ]


def test_the_router_computes_in_fp32_under_autocast():
    layer = make().mixtures[0]
    x = torch.randn(1, 5, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out, routed = layer(x)
    assert routed.logits_BTE.dtype == torch.float32 and out.dtype == torch.bfloat16
    torch.testing.assert_close(routed.logits_BTE, F.linear(x.float(), layer.router.weight))


def test_a_changed_token_leaves_earlier_logits_bit_equal_where_tokens_choose_and_not_where_experts_do():
    ids = ids_of(1, 24)
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % BASE["vocab_size"]
    with torch.no_grad():
        model = with_backend(
            make().eval(), "reference"
        )  # in the others the number of an expert's rows changes how their products are rounded
        assert torch.equal(model(ids).logits_BTV[:, :12], model(changed).logits_BTV[:, :12])
        for backend in ("loop", "grouped_mm", "batched"):
            with_backend(model, backend)
            torch.testing.assert_close(
                model(ids).logits_BTV[:, :12], model(changed).logits_BTV[:, :12], atol=1e-5, rtol=1e-5
            )
        model = make(router="expert_choice").eval()
        assert not torch.equal(model(ids).logits_BTV[:, :12], model(changed).logits_BTV[:, :12])


def test_experts_choose_their_most_probable_tokens_and_the_others_pass_by():
    layer = MoE(ModelConfig(**BASE, moe={**EXPERTS, "num_experts": 4, "top_k": 1, "router": "expert_choice"}))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 32)
    out, routed = layer(x)
    scores = F.linear(x, layer.router.weight).softmax(-1)
    expected = torch.zeros_like(x)
    for row in range(2):
        for expert in range(4):
            for place in scores[row, :, expert].topk(2).indices.tolist():
                gate, up = F.linear(x[row, place], layer.experts.gate_up[expert]).chunk(2)
                expected[row, place] += scores[row, place, expert] * F.linear(
                    F.silu(gate) * up, layer.experts.down[expert]
                )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert routed.tokens_per_expert_E.tolist() == [4, 4, 4, 4]
    untouched = [place for place in range(8) if place not in routed.indices[0].flatten().tolist()]
    assert not out[0, untouched].any()


def test_experts_may_choose_from_the_whole_batch():
    config = MoEConfig(num_experts=2, top_k=1, expert_hidden_size=4, router="expert_choice", expert_choice_over="batch")
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.1, 0.9], [0.2, 0.8]]])
    weights, indices = choose_tokens(scores.flatten(0, 1)[None], config)
    assert indices.tolist() == [[[0, 1], [2, 3]]] and weights[0, 0].tolist() == pytest.approx([0.9, 0.8])
    assert pairs_of_experts(weights, indices, 4).tokens_P.tolist() == [0, 1, 2, 3]


def test_a_capacity_drops_the_least_probable_pairs():
    config = MoEConfig(num_experts=2, top_k=1, expert_hidden_size=4, capacity_factor=1.0)
    indices, weights = torch.tensor([[0], [0], [0], [1]]), torch.tensor([[0.6], [0.9], [0.7], [0.8]])
    pairs = pairs_of_tokens(weights, indices, config)
    assert pairs.tokens_P.tolist() == [1, 2, 3] and pairs.counts_E.tolist() == [2, 1]
    x, gate_up, down = torch.randn(4, 8), torch.randn(2, 8, 8), torch.randn(2, 8, 4)
    for backend in ("loop", "grouped_mm", "batched", "reference"):
        out = run_experts(x, pairs, gate_up, down, backend=backend)
        assert not out[0].any() and out[1:].abs().sum(1).all()


@pytest.mark.parametrize("combine", ["add", "weighted_mean"])
def test_shared_experts_serve_every_token(combine):
    layer = MoE(ModelConfig(**BASE, moe={**EXPERTS, "num_shared_experts": 2, "shared_expert_combine": combine}))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 6, 32)
    out, _ = layer(x)
    shared = layer.shared(x)
    single = [
        F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d)
        for g, u, d in zip(
            layer.shared.gate.weight.chunk(2),
            layer.shared.up.weight.chunk(2),
            layer.shared.down.weight.chunk(2, 1),
            strict=True,
        )
    ]
    torch.testing.assert_close(shared, sum(single))
    layer.shared = None
    routed, _ = layer(x)
    torch.testing.assert_close(out, routed + shared if combine == "add" else (3 * routed + shared) / 4)


def test_layers_may_share_their_experts(tmp_path):
    model = make(share_across_layers=True, num_layers=3).eval()
    assert len({id(mixture.experts) for mixture in model.mixtures}) == 1
    assert len({id(mixture.router) for mixture in model.mixtures}) == 3
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters()
    assert save_pretrained(model, tmp_path) == "lmlab"
    ids = ids_of()
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path)(ids).logits_BTV, model(ids).logits_BTV)


@pytest.mark.parametrize("moe", [{}, {"num_shared_experts": 2}, {"share_across_layers": True}])
def test_parameters_and_arithmetic_count_active_experts(moe):
    model = make(ffn=("dense", "moe", "moe"), num_layers=3, d_ff=40, **moe)
    config = model.config
    assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    active = EXPERTS["top_k"] + moe.get("num_shared_experts", 0)
    idle = EXPERTS["num_experts"] - EXPERTS["top_k"]
    one = 3 * 32 * 24
    if not moe.get("share_across_layers"):
        assert config.num_parameters(active=True) == config.num_parameters() - 2 * idle * one
    dense = ModelConfig(**{**BASE, "ffn": "dense", "num_layers": 3, "d_ff": 40})
    routers = 2 * 8 * 32
    assert config.flops_per_token(10) - dense.flops_per_token(10) == 6 * (2 * (active * one - 3 * 32 * 40) + routers)


def test_dense_and_sparse_layers_alternate(tmp_path):
    model = make(ffn=("dense", "moe"), d_ff=40).eval()
    assert [type(block.ffn).__name__ for block in model.blocks] == ["FeedForward", "MoE"]
    assert save_pretrained(model, tmp_path) == "lmlab"
    ids = ids_of()
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path)(ids).logits_BTV, model(ids).logits_BTV)


def test_losses_are_computed_while_training_only():
    model = make()
    ids = ids_of()
    assert model.train()(ids).router_losses is not None
    assert model.eval()(ids).router_losses is None
    with torch.no_grad():
        assert model.train()(ids).router_losses is None
    assert make(load_balancing_loss=None, router_z_loss=None).train()(ids).router_losses.total == 0


def test_loads_of_a_global_batch_grow_over_micro_batches_until_the_step_ends():
    model = make(load_balancing_loss={"granularity": "global_batch"}).train()
    first, second = ids_of(seed=1), ids_of(seed=2)
    alone = model(second).router_losses
    model.end_step(alone.counts_LE)
    one = model(first).router_losses
    two = model(second)
    shares = (one.counts_LE + two.router_losses.counts_LE) / (3 * 64)
    expected = load_balancing_loss(
        [each.logits_BTE for each in two.routers], [each.indices for each in two.routers], shares_LE=shares
    )
    torch.testing.assert_close(two.router_losses.load_balancing, expected)
    model.end_step(one.counts_LE)
    torch.testing.assert_close(model(second).router_losses.load_balancing, alone.load_balancing)


def test_recomputed_blocks_count_once_and_learn_the_same():
    ids = ids_of()
    results = []
    for recompute in (0, 1):
        model = make().train()
        model.recompute_blocks = recompute
        output = model(ids, labels_BT=ids)
        (output.loss.mean + output.router_losses.total).backward()
        results.append(
            (
                model.router_accounts.counts_of_step,
                {name: parameter.grad for name, parameter in model.named_parameters()},
            )
        )
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][0][:-1].sum() == 2 * 3 * ids.numel()  # layers, experts of a token
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient)


def test_the_id_of_padding_within_a_document_is_a_token_like_any_other():
    """OLMoE pads with id 1, which may occur in text: masks say what is padding, and no id does."""
    model = make().train()
    ids = torch.ones(2, 12, dtype=torch.long)
    output = model(ids, labels_BT=ids)
    assert (
        output.router_losses.num_tokens == 24
        and int(output.router_losses.counts_LE[0].sum()) == 24 * model.config.moe.top_k
    )
    output.loss.mean.backward()
    assert model.embedding.weight.grad[1].any()


def test_padding_is_left_out_of_counts_and_losses():
    model = make().train()
    ids = ids_of(2, 12)
    documents = torch.zeros_like(ids)
    documents[1, 5:] = -1
    padded = model(ids, document_ids_BT=documents).router_losses
    assert padded.num_tokens == 17 and padded.counts_LE.sum(1).tolist() == [51, 51]
    mask = documents >= 0
    masked = model(ids, attention_mask_BT=mask)
    expected = load_balancing_loss(
        [each.logits_BTE for each in masked.routers], [each.indices for each in masked.routers], mask_BT=mask
    )
    model.end_step(padded.counts_LE)
    torch.testing.assert_close(model(ids, attention_mask_BT=mask).router_losses.load_balancing, expected)


def test_biases_balance_loads_without_a_loss(tmp_path):
    model = make(bias_update_rate=0.01, load_balancing_loss=None, router_z_loss=None).train()
    ids = ids_of(8, 32)
    spread = []
    for _ in range(60):
        with torch.enable_grad():
            counts = model(ids).router_losses.counts_LE
        spread.append(float(counts.max() / counts.mean()))
        model.end_step(counts)
    assert spread[-1] < 0.75 * spread[0] and spread[-1] < 1.5
    biased = model.mixtures[0]
    x = torch.randn(1, 6, 32)
    _, routed = biased(x)
    probabilities = routed.logits_BTE.softmax(-1)
    torch.testing.assert_close(
        routed.weights, probabilities.gather(-1, routed.indices)
    )  # the bias counts in the choice alone
    assert torch.equal(routed.indices, (probabilities + biased.bias_E).topk(3, -1).indices)
    assert save_pretrained(model, tmp_path) == "lmlab"
    assert torch.equal(from_pretrained(tmp_path).mixtures[0].bias_E, biased.bias_E)


def test_generation_with_experts_that_choose_is_refused():
    model = make(router="expert_choice").eval()
    with pytest.raises(UserError, match="router expert_choice cannot generate"):
        model(ids_of(), cache=KVCache(model.config, 2, 16))


def test_logits_that_are_not_finite_name_the_layer():
    model = make()
    with torch.no_grad():
        model.mixtures[1].router.weight[0, 0] = float("nan")
    with pytest.raises(LmlabError, match="router of layer 1 are not finite"):
        model(ids_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 9}, "top_k 9 exceeds num_experts 8; lower top_k"),
        ({"top_k": 0}, "top_k: input should be greater than 0, got 0"),
        ({"top_k": 1, "norm_topk_prob": True}, "set norm_topk_prob: false"),
        (
            {"router": "expert_choice", "capacity_factor": 1.5},
            "capacity_factor 1.5 does not go with router expert_choice",
        ),
        (
            {"router": "expert_choice", "load_balancing_loss": {"coef": 0.1}},
            "load_balancing_loss .* set load_balancing_loss: null",
        ),
        ({"router": "expert_choice", "bias_update_rate": 0.1}, "bias_update_rate 0.1 does not go with"),
        ({"load_balancing_loss": {"convention": "transformers"}}, "set granularity: micro_batch"),
        ({"experts_backend": "fast"}, "experts_backend"),
        ({"num_expert": 4}, "unknown key 'num_expert'. Did you mean 'num_experts'"),
    ],
)
def test_impossible_settings_name_the_key_the_value_and_the_remedy(changes, message):
    with pytest.raises(UserError, match=message):
        validate(MoEConfig, {**EXPERTS, **changes}, "moe")


def test_one_expert_with_a_balancing_loss_is_allowed_with_a_warning():
    with pytest.warns(UserWarning, match="nothing to balance"):
        MoEConfig(num_experts=1, top_k=1, expert_hidden_size=8)


@needs_tiny
def test_a_saved_miniature_is_byte_equal_and_stacked_names_are_read(tmp_path):
    from safetensors.torch import save_file

    source = TINY / "checkpoint"
    model = from_pretrained(source, dtype=None)
    save_pretrained(model, tmp_path / "ours", None)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    stacked = {name: tensor for name, tensor in before.items() if ".experts." not in name}
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = [[before[f"{prefix}{e}.{part}_proj.weight"] for e in range(16)] for part in ("gate", "up", "down")]
        stacked[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(*parts[:2], strict=True)])
        stacked[f"{prefix}down_proj"] = torch.stack(parts[2])
    (tmp_path / "stacked").mkdir()
    save_file(stacked, tmp_path / "stacked" / "model.safetensors")
    (tmp_path / "stacked" / "config.json").write_bytes((source / "config.json").read_bytes())
    again = from_pretrained(tmp_path / "stacked", dtype=None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    mixed = stacked | {
        "model.layers.0.mlp.experts.0.gate_proj.weight": before["model.layers.0.mlp.experts.0.gate_proj.weight"]
    }
    save_file(mixed, tmp_path / "stacked" / "model.safetensors")
    with pytest.raises(LmlabError, match="both stacked and one by one"):
        from_pretrained(tmp_path / "stacked")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_experts": 3, "top_k": 3, "num_kv_heads": 2},
        {"top_k": 1, "vocab_size": 53},
        {"norm_topk_prob": True, "tie_embeddings": True},
    ],
)
@torch.no_grad()
def test_both_ways_to_transformers_with_equal_logits(settings, tmp_path):
    shape = {
        key: settings.pop(key) for key in list(settings) if key in ("num_kv_heads", "vocab_size", "tie_embeddings")
    }
    model = Transformer(ModelConfig(**{**BASE, **shape}, moe={**EXPERTS, **settings})).initialize(0).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    ids = ids_of() % model.config.vocab_size
    assert save_pretrained(model, tmp_path / "ours") == "olmoe"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits_BTV, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    back = from_pretrained(tmp_path / "theirs")
    mine = dict(back.named_parameters())
    assert all(torch.equal(parameter, mine[name]) for name, parameter in model.named_parameters())


def test_an_expert_that_is_missing_or_of_another_width_is_named(tmp_path):
    from safetensors.torch import save_file

    save_pretrained(make(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.5.up_proj.weight"]
    tensors["model.layers.0.mlp.experts.2.down_proj.weight"] = torch.zeros(32, 72)
    tensors["model.layers.0.mlp.experts.8.up_proj.weight"] = torch.zeros(24, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LmlabError) as caught:
        from_pretrained(tmp_path)
    for part in (
        "missing model.layers.1.mlp.experts.5.up_proj.weight",
        "model.layers.0.mlp.experts.2.down_proj.weight has shape [32, 72], not [32, 24]",
        "unexpected model.layers.0.mlp.experts.8.up_proj.weight",
    ):
        assert part in str(caught.value)


def test_a_padded_vocabulary_is_told_from_other_mistakes(tmp_path):
    """OLMoE's tokenizer has 50,280 ids and its embedding 50,304 rows."""
    save_pretrained(Transformer(ModelConfig(**{**BASE, "vocab_size": 64}, moe=EXPERTS)).initialize(0), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vocab_size": 61}))
    with pytest.raises(LmlabError, match=r"embed_tokens.weight has shape \[64, 32\], not \[61, 32\]") as caught:
        from_pretrained(tmp_path)
    assert caught.value.remedy == "The vocabulary is padded: set vocab_size to 64."


def test_second_names_of_keys_and_a_missing_epsilon_are_understood(tmp_path):
    model = make()
    save_pretrained(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["num_local_experts"] = settings.pop("num_experts")
    del settings["rms_norm_eps"], settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    read = from_pretrained(tmp_path).config
    assert (read.moe.num_experts, read.norm_eps, read.rope_theta) == (8, 1e-5, 10_000.0)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"clip_qkv": 8.0}))
    assert from_pretrained(tmp_path).config.clip_qkv == 8.0
