"""The masked pass, beside the model itself and beside an independent pass that patches path by path."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.methods.edge_pruning.conftest import FAMILIES
from tests.methods.edge_pruning.path_patching import CLOSE, WRITTEN_ANEW, difference, patched

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.methods.edge_pruning import (
    CircuitGraph,
    Counterfactuals,
    GraphOptions,
    MaskedModel,
    TaskOptions,
    attribute,
    generate,
    plan,
)
from lmlab.methods.edge_pruning.examples.load import load
from lmlab.models import PRESETS, ModelConfig


def _first(task, count=4):
    return torch.arange(count), task.inputs(torch.arange(count))


@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_with_all_edges_it_is_the_model_and_with_none_the_corrupted_run(network, task_of, kind, ablation):
    task = task_of(network(kind), ablation)
    index, inputs = _first(task)
    expected = task.masked.model(task.examples.clean[index]).logits_BTV.gather(
        1, inputs.positions_BP[..., None].expand(-1, -1, 61)
    )
    assert torch.allclose(task.masked(inputs, task.masked.ones()), expected, atol=1e-10)
    if ablation == "interchange":
        corrupted = task.masked.model(task.examples.corrupted[index]).logits_BTV.gather(
            1, inputs.positions_BP[..., None].expand(-1, -1, 61)
        )
        assert torch.allclose(task.masked(inputs, 0 * task.masked.ones()), corrupted, atol=1e-10)


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "olmoe", "shared_expert", "granite_moe"])
def test_options_of_finer_and_coarser_graphs_keep_the_model(network, task_of, kind):
    options = {"post_norm": "block"} if kind in ("olmo2", "gemma2") else {"moe": "expert"}
    task = task_of(network(kind), **options)
    index, inputs = _first(task)
    expected = task.full(index)
    assert torch.allclose(task.outputs(task.masked(inputs, task.masked.ones())), expected, atol=1e-10)
    own = task.masked.graph.writers
    assert ("a0" in own and "a0.h0" not in own) if "post_norm" in options else "m0.e3" in own


def test_without_embedding_nodes_embeddings_are_always_clean(network, task_of):
    task = task_of(network("llama"), embedding_nodes=False)
    index, inputs = _first(task)
    assert torch.allclose(task.outputs(task.masked(inputs, task.masked.ones())), task.full(index), atol=1e-10)
    assert "embeds" not in task.masked.graph.writers


@pytest.mark.parametrize("kind", WRITTEN_ANEW)
def test_a_circuit_equals_an_independent_path_patching_run(network, task_of, kind):
    task = task_of(network(kind))
    index, inputs = _first(task)
    for share in (0.1, 0.5, 0.9):
        kept_E = (
            torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(int(10 * share))) < share
        )
        expected, _, _ = patched(task, index, kept_E.double())
        assert torch.allclose(task.masked(inputs, kept_E[None].double()), expected, atol=CLOSE[kind])


@pytest.mark.parametrize("kind", WRITTEN_ANEW)
def test_masks_between_0_and_1_mix_both_runs_and_have_the_gradients_of_plain_autograd(network, task_of, kind):
    task = task_of(network(kind))
    index, inputs = _first(task)
    z_E = torch.rand(
        task.masked.graph.num_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    ).requires_grad_()
    weights = torch.randn(4, 2, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, (theirs, _, _) = task.masked(inputs, z_E[None]), patched(task, index, z_E)
    assert torch.allclose(ours, theirs, atol=CLOSE[kind])
    gradients = [torch.autograd.grad((each * weights).sum(), z_E)[0] for each in (ours, theirs)]
    assert torch.allclose(*gradients, atol=CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", WRITTEN_ANEW)
def test_scores_of_integrated_gradients_equal_those_from_gradients_of_every_reader(network, task_of, kind):
    task = task_of(network(kind))
    index, graph, steps = torch.arange(len(task.examples)), task.masked.graph, 3
    ones = torch.ones(graph.num_edges, dtype=torch.float64)
    _, clean, corrupt = patched(task, index, ones)
    total = torch.zeros_like(ones)
    for k in range(steps):
        between = {name: corrupt[name] + k / steps * (clean[name] - corrupt[name]) for name in graph.embedding_names}
        nudges = {reader: torch.zeros_like(clean["m0"]).requires_grad_() for reader in graph.readers}
        logits, _, _ = patched(task, index, ones, nudges=nudges, embeddings=between)
        last = logits[:, -1]
        difference = last.gather(1, task.examples.answers[:, None]) - last.gather(1, task.examples.distractors[:, None])
        slopes = dict(zip(graph.readers, torch.autograd.grad(difference.sum(), list(nudges.values())), strict=True))
        total += torch.stack(
            [(slopes[reader] * (clean[writer] - corrupt[writer])).sum() for writer, reader in graph.edges()]
        )
    assert torch.allclose(attribute(task, "eap-ig", steps), total / steps / len(index), atol=CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", WRITTEN_ANEW)
def test_scores_of_relp_equal_gradients_by_its_rules_written_anew(network, task_of, kind):
    task = task_of(network(kind))
    index = torch.arange(len(task.examples))
    z_E = torch.ones(task.masked.graph.num_edges, dtype=torch.float64).requires_grad_()
    logits, _, _ = patched(task, index, z_E, straight=True)
    (slope_E,) = torch.autograd.grad(difference(task, logits).mean(), z_E)
    scores_E = attribute(task, "relp")
    assert torch.allclose(scores_E, slope_E, atol=CLOSE[kind], rtol=1e-5)
    # with their pattern held fast, queries and keys have no say
    readers = [reader for _, reader in task.masked.graph.edges()]
    assert all(float(score) == 0 for score, name in zip(scores_E, readers, strict=True) if name[-2:] in (".q", ".k"))
    assert not torch.allclose(scores_E, attribute(task, "eap"), rtol=0.1)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "olmo2", "no_norm", "neox", "phi", "gemma2"])
def test_straight_gradients_leave_the_numbers_as_they_are(network, task_of, kind):
    for options in ({}, {"post_norm": "block"}) if kind in ("olmo2", "gemma2") else ({},):
        task = task_of(network(kind), **options)
        _, inputs = _first(task)
        z = torch.rand(1, task.masked.graph.num_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        straight = task.masked(inputs, z.clone().requires_grad_(), straight=True)
        assert torch.allclose(straight, task.masked(inputs, z), atol=1e-9)


@pytest.mark.parametrize("kind", WRITTEN_ANEW)
@pytest.mark.parametrize("whole", [False, True])
def test_scores_of_atp_star_are_mean_sizes_over_gradients_that_drop_a_layer(network, task_of, kind, whole):
    task = task_of(network(kind, num_layers=3), count=2)
    index, edges = torch.arange(2), task.masked.graph.edges()
    sizes_BE = torch.zeros(2, len(edges), dtype=torch.float64)
    drops = [None, 0, 1, 2] if whole else [0, 1, 2]
    for layer in drops:
        for row in range(2):
            z_E = torch.ones(len(edges), dtype=torch.float64).requires_grad_()
            logits, _, _ = patched(task, index, z_E, dropped=layer)
            sizes_BE[row] += torch.autograd.grad(difference(task, logits)[row], z_E)[0].abs()
    passes = torch.tensor([len(drops) - (reader != "resid_post") for _, reader in edges])
    expected_E, found_E = sizes_BE.mean(0) / passes, attribute(task, "atp-star", whole_gradient=whole)
    outside = torch.tensor([reader[-2:] not in (".q", ".k") for _, reader in edges])
    assert torch.allclose(found_E[outside], expected_E[outside], atol=CLOSE[kind], rtol=1e-5)
    assert not torch.allclose(found_E[~outside], expected_E[~outside], rtol=0.01)


def test_what_acts_through_all_other_layers_has_a_score_in_the_whole_gradient_alone(network, task_of):
    model = network("no_norm", tie_embeddings=False)
    with torch.no_grad():  # the first feed-forward network writes numbers that the output does not read
        model.head.weight[:, :16] = 0
        model.blocks[0].ffn.down.weight[16:] = 0
        model.blocks[0].ffn.down.bias[16:] = 0
    task = task_of(model, count=2)
    edge = task.masked.graph.edges().index(("tok_embeds", "m0"))
    assert float(attribute(task, "eap")[edge].abs()) > 1e-6
    assert float(attribute(task, "atp-star")[edge]) == 0
    assert float(attribute(task, "atp-star", whole_gradient=True)[edge]) > 1e-6


@pytest.mark.slow
def test_a_circuit_of_smollm2_equals_an_independent_path_patching_run(smollm2, tmp_path):
    words, path = Tokenizer.load(smollm2), tmp_path / "ioi.jsonl"
    write_jsonl(path, generate("ioi", words, 2))
    options = TaskOptions(data=path, device="cpu", batch_size=2)
    task, _ = load(smollm2, options).task("interchange", options=options)
    index, inputs = _first(task, 2)
    task.masked.model.double()
    task = Counterfactuals(task.masked, task.examples, batch_size=2)
    whole = task.masked.model(task.examples.clean).logits_BTV.gather(
        1, inputs.positions_BP[..., None].expand(-1, -1, words.vocab_size)
    )
    inputs = task.inputs(index)
    assert torch.allclose(task.masked(inputs, task.masked.ones()), whole, atol=1e-5)
    kept_E = torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        expected, _, _ = patched(task, index, kept_E.double())
    assert torch.allclose(task.masked(inputs, kept_E[None].double()), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "shared_expert", "phi", "gemma2"])
def test_gradients_of_masks_of_single_examples_are_slopes_and_those_of_recomputing_are_the_same(network, task_of, kind):
    task = task_of(network(kind))
    _, inputs = _first(task, 2)
    z = torch.rand(
        2, task.masked.graph.num_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    weights = torch.randn(2, 2, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(z_BE):
        return (task.masked(inputs, z_BE) * weights).sum()

    (gradient,) = torch.autograd.grad(value(z), z)
    for edge in range(0, z.shape[1], 7):  # central differences
        step = torch.zeros_like(z)
        step[1, edge] = 1e-6
        with torch.no_grad():
            assert float(gradient[1, edge]) == pytest.approx(
                float((value(z + step) - value(z - step)) / 2e-6), rel=1e-4, abs=1e-6
            )
    task.masked.recompute = True
    (again,) = torch.autograd.grad(value(z), z)
    assert torch.equal(gradient, again)


@pytest.mark.parametrize("backward", [True, False])
def test_a_pass_is_freed_when_nobody_holds_it(network, task_of, backward):
    """A search makes thousands of passes: one that were kept would fill the memory."""
    task = task_of(network("llama"))
    _, inputs = _first(task, 2)
    z = torch.rand(2, task.masked.graph.num_edges, dtype=torch.float64).requires_grad_()
    store = task.masked.new_store(inputs)
    written = weakref.ref(store.written_BWM)
    value = task.masked(inputs, z, store=store).sum()
    if backward:
        value.backward()
    del store, value
    gc.collect()
    assert written() is None


def test_masks_of_single_examples_give_what_a_loop_over_them_gives(network, task_of):
    task = task_of(network("llama"))
    z = torch.rand(3, task.masked.graph.num_edges, dtype=torch.float64)
    together = task.masked(task.inputs(torch.arange(3)), z)
    for number in range(3):
        alone = task.masked(task.inputs(torch.tensor([number])), z[number : number + 1])
        assert torch.allclose(together[number], alone[0], atol=1e-12)


def test_activations_that_are_not_cached_are_computed_again(network, task_of):
    task = task_of(network("llama"))
    z = torch.rand(1, task.masked.graph.num_edges, dtype=torch.float64)
    index = torch.tensor([4, 1])
    cached = task.masked(task.inputs(index), z)
    task._cached = None
    assert torch.allclose(task.masked(task.inputs(index), z), cached, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "edges"),
    [("SmolLM2-135M", 70_651), ("OLMo-2-1B", 101_273), ("OLMoE-1B-7B", 101_273)],
)
def test_edge_counts_of_published_shapes(name, edges):
    assert CircuitGraph(ModelConfig(preset=name)).num_edges == edges
    assert name in PRESETS


def test_where_sub_layers_stand_side_by_side_the_second_does_not_read_the_first():
    # 6 layers of 8 heads (Pythia-70M): 24 readers of attention and one more of as many writers, 9 more each layer
    pythia = ModelConfig(vocab_size=50_304, num_layers=6, d_model=512, num_heads=8, parallel_residual=True)
    graph = CircuitGraph(pythia)
    assert graph.num_edges == sum(25 * (1 + 9 * layer) for layer in range(6)) + 55
    edges = graph.edges()
    assert ("a1.h0", "m1") not in edges and ("a0.h0", "m1") in edges and ("m0", "m1") in edges


def test_edge_counts_of_gpt2_and_of_large_llamas():
    gpt2 = ModelConfig(
        vocab_size=50257, num_layers=12, d_model=768, num_heads=12, norm="layernorm", positions="learned", gated=False
    )
    assert CircuitGraph(gpt2).num_edges == 32_936
    assert CircuitGraph(gpt2, GraphOptions(embedding_nodes=False)).num_edges == 32_046
    llama = ModelConfig(vocab_size=128_256, num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, d_ff=14336)
    assert CircuitGraph(llama).num_edges == 805_681
    code_llama = ModelConfig(vocab_size=32_016, num_layers=40, d_model=5120, num_heads=40, d_ff=13824)
    assert CircuitGraph(code_llama, GraphOptions(embedding_nodes=False)).num_edges == 3_872_820
    assert CircuitGraph(code_llama).num_edges == 3_877_661


def test_the_plan_counts_the_store_and_names_a_way_out():
    graph = CircuitGraph(ModelConfig(preset="SmolLM2-135M"))
    found = plan(graph, batch=4, length=16, examples=100)
    assert found.store == 2 * 301 * 4 * 16 * 576 * 4
    assert plan(graph, 4, 16, 100, recompute=True).sublayers < found.sublayers / 10
    lines = found.lines(free=10**8)
    assert "--recompute" in lines[1] and "--batch-size" in lines[1]


def test_models_whose_stream_is_no_sum_are_refused_and_approximations_are_named(network):
    with pytest.raises(UserError, match="norm_position post is no sum"):
        CircuitGraph(network("gpt2", norm_position="post").config)
    with pytest.raises(UserError, match="expert_choice"):
        CircuitGraph(
            network(
                "olmoe", moe={"num_experts": 4, "expert_hidden_size": 8, "top_k": 2, "router": "expert_choice"}
            ).config
        )
    with pytest.raises(UserError, match="needs a mixture of experts"):
        CircuitGraph(network("llama").config, GraphOptions(moe="expert"))
    with pytest.raises(UserError, match="Set the graph option post_norm to block"):
        CircuitGraph(network("gpt2", norm_position="reordered").config)
    notes = CircuitGraph(network("olmo2").config).warnings()
    assert any("frozen" in note for note in notes) and any("joint QK-norm" in note for note in notes)
    assert not CircuitGraph(network("llama").config).warnings()


def test_heads_that_do_not_add_up_are_refused(network):
    model = network("olmo2")
    masked = MaskedModel(model, CircuitGraph(model.config))
    ids = torch.arange(5)[None]
    masked.check(ids)
    model.block(0).attention_norm.register_forward_hook(lambda module, inputs, output: output * 1.1)
    with pytest.raises(UserError, match="heads of layer 0 do not add up"):
        masked.check(ids)
