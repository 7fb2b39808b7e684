"""Scores of edges beside what happens when each edge is taken out, and the metrics that searches go by."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    CircuitGraph,
    Counterfactuals,
    FindConfig,
    MaskedModel,
    acdc,
    attribute,
    exact_effects,
    information_flow,
    make_examples,
    measure,
    search,
)
from lmlab.methods.edge_pruning.search.flow import shares

METRICS = ["logit_difference", "log_odds", "probability", "probability_difference", "distance"]


@pytest.fixture
def choice(network):
    """A task with several right answers."""
    model = network("llama")
    answer_set, signs = list(range(10, 20)), [[-1] * 4 + [1] * 6, [-1] * 8 + [1] * 2]
    examples = make_examples([[1, 2], [3, 4]], [[5, 2], [6, 4]], [[1], [1]], [14, 18], [12, 16], answer_set, signs)
    return Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)


def _near(model):
    """Two tokens that hardly differ, so that to first order is all there is."""
    with torch.no_grad():
        model.embedding.weight[9] = model.embedding.weight[8] + 1e-4 * model.embedding.weight[7]
    examples = make_examples([[1, 8, 3, 4]], [[1, 9, 3, 4]], [[3]], [5], [6])
    return Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "phi", "gemma2", "granite"])
def test_where_the_corruption_is_small_all_scores_are_the_effects_of_activation_patching(network, kind):
    task = _near(network(kind, tie_embeddings=False))
    effects_E = exact_effects(task.by("logit_difference"))
    assert float(effects_E.abs().max()) > 1e-7
    for method in ("eap", "eap-ig", "eap-gp"):
        assert torch.allclose(attribute(task, method), effects_E, rtol=0.02, atol=2e-3 * float(effects_E.abs().max()))


def test_atp_star_is_exact_where_the_pattern_is_all_that_bends(network):
    """One layer whose attention has a sharp softmax, and nothing after it but sums."""
    model = network("no_norm", num_layers=1, causal=True, tie_embeddings=False)
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
        model.blocks[0].ffn.down.bias.zero_()
        model.blocks[0].attention.query.weight.mul_(6)
    examples = make_examples([[1, 8, 3, 4]], [[1, 9, 3, 7]], [[3]], [5], [6])
    graph = CircuitGraph(model.config)
    task = Counterfactuals(MaskedModel(model, graph), examples)
    effects_E = exact_effects(task.by("logit_difference")).abs()
    starred_E, plain_E = attribute(task, "atp-star"), attribute(task, "eap").abs()
    assert torch.allclose(starred_E, effects_E, atol=1e-9)
    looking = torch.tensor([reader[-2:] in (".q", ".k") for _, reader in graph.edges()])
    assert float((plain_E - effects_E)[looking].abs().max()) > 0.3 * float(effects_E[looking].max())


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_and_effects_are_those_of_the_metric(choice, metric):
    graph = choice.masked.graph
    ones, step = torch.ones(graph.num_edges), 1e-5

    def mean(kept_E):
        if metric == "distance":
            return -choice.mean_distance(kept_E)
        return measure(choice, kept_E)[metric]

    effects_E = exact_effects(choice.by(metric))
    slopes_E = attribute(choice, "eap" if metric != "distance" else "mask-ig", 1 if metric == "distance" else 5, metric)
    for edge in range(0, graph.num_edges, 9):
        without_E, less_E = ones.clone(), ones.double()
        without_E[edge], less_E[edge] = 0, 1 - step
        assert float(effects_E[edge]) == pytest.approx(mean(ones) - mean(without_E), abs=1e-7)
        if metric != "distance":
            outputs = [choice.outputs(logits) for z_E in (ones, less_E) for _, logits in _run(choice, z_E)]
            before, after = (_value(choice, each, metric) for each in outputs)
            assert float(slopes_E[edge]) == pytest.approx((before - after) / step, rel=1e-3, abs=1e-4)


def _run(task, z_E):
    with torch.no_grad():
        index = torch.arange(len(task.examples))
        yield index, task.masked(task.inputs(index), z_E.double()[None])


def _value(task, outputs, metric):
    from lmlab.methods.edge_pruning.masking.metrics import values

    return float(values(task, outputs, torch.arange(len(task.examples)), metric).mean())


def test_searches_go_by_the_metric_that_is_asked_for(choice):
    full = measure(choice, torch.ones(choice.masked.graph.num_edges))
    for metric in ("probability_difference", "accuracy"):
        kept_E, _ = acdc(choice.by(metric), 0.02)
        assert abs(measure(choice, kept_E)[metric] - full[metric]) < abs(
            measure(choice, 0 * kept_E)[metric] - full[metric]
        ) or (metric == "accuracy" and measure(choice, kept_E)[metric] == full[metric])
    pruning = {"steps": 30, "batch_size": 2}
    found = search(choice, FindConfig(metric="probability_difference", price=0.002, pruning=pruning))
    gap = abs(measure(choice, found.kept_E)["probability_difference"] - full["probability_difference"])
    assert found.figures["distance"] >= gap - 1e-9  # the mean of gaps is at least the gap of means
    assert found.figures["distance"] < 0.5 * found.figures["empty_distance"]


@pytest.mark.parametrize(
    ("method", "metric", "message"),
    [
        ("eap", "distance", "whose distance from itself has none"),
        ("relp", "distance", "whose distance from itself has none"),
        ("eap-ig", "accuracy", "no gradient"),
        ("edge-pruning", "accuracy", "no gradient"),
    ],
)
def test_a_metric_that_a_method_cannot_follow_is_refused(choice, method, metric, message):
    with pytest.raises(UserError, match=message):
        search(choice, FindConfig(method=method, metric=metric, num_edges=5))


def test_metrics_need_answers_and_methods_without_one_refuse_it(network, tracr_task):
    _, task = tracr_task("xproportion")
    with pytest.raises(UserError, match="needs examples with answers"):
        search(task, FindConfig(method="eap", metric="probability", num_edges=5, ablation="zero"))
    with pytest.raises(ValueError, match="metric has no influence on the method ifr"):
        FindConfig(method="ifr", metric="probability", num_edges=5)


def test_relp_refuses_mixtures_by_name(network, task_of):
    with pytest.raises(UserError, match="mixtures of experts"):
        attribute(task_of(network("olmoe")), "relp")


def test_shares_are_proximities():
    parts = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])[None, :, None]
    found = shares(parts, parts.sum(1))[0, :, 0]
    # y = (1, 1): |y| - |y - z| = 2 - 3 -> 0, 2 - 1 = 1, 2 - 4 -> 0
    assert torch.equal(found, torch.tensor([0.0, 1.0, 0.0]))
    parts = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])[None, :, None]  # they cancel: neither is near
    assert torch.equal(shares(parts, parts.sum(1))[0, :, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "olmoe", "phi", "gemma2", "granite"])
def test_the_flow_begins_with_one_at_the_output_and_is_handed_on_whole(network, task_of, kind):
    task = task_of(network(kind), count=3)
    graph, flow_E = task.masked.graph, information_flow(task)
    assert bool((flow_E >= 0).all())
    into = {name: 0.0 for name in graph.readers}
    out_of = {name: 0.0 for name in graph.writers}
    for (writer, reader), flow in zip(graph.edges(), flow_E.tolist(), strict=True):
        into[reader] += flow
        out_of[writer] += flow
    assert into["resid_post"] == pytest.approx(1)
    share = graph.config.num_heads // graph.config.num_kv_heads
    for layer in range(graph.config.num_layers):
        assert into[f"m{layer}"] == pytest.approx(out_of[f"m{layer}"])
        for head in range(graph.config.num_heads):
            assert into[f"a{layer}.h{head}.q"] == pytest.approx(out_of[f"a{layer}.h{head}"] / 3)
        for head in range(graph.config.num_kv_heads):
            heads = sum(out_of[f"a{layer}.h{n}"] for n in range(head * share, (head + 1) * share))
            assert into[f"a{layer}.h{head}.v"] == pytest.approx(heads / 3)
            assert into[f"a{layer}.h{head}.k"] == pytest.approx(heads / 3)


def test_a_head_hands_its_flow_to_the_token_that_it_looks_at(network):
    """The last token looks at the first alone, whose embedding thereby gets the flow of values."""
    model = network("no_norm", num_layers=1, causal=True, tie_embeddings=False, num_heads=1, num_kv_heads=1)
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
        model.blocks[0].ffn.down.bias.zero_()
        model.position_embedding.weight.zero_()
        model.blocks[0].attention.key.bias.zero_()
        model.blocks[0].attention.key.weight.zero_()
        model.blocks[0].attention.key.weight[0] = 1e3 * model.embedding.weight[1]
        model.blocks[0].attention.query.weight.zero_()
        model.blocks[0].attention.query.bias.zero_()
        model.blocks[0].attention.query.bias[0] = 1
    found = {}
    for name, tokens in (("far", [1, 2, 3, 4]), ("here", [2, 3, 4, 1])):
        examples = make_examples([tokens], [[5, 6, 7, 8]], [[3]], [9], [10])
        task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)
        edges = dict(zip(task.masked.graph.edges(), information_flow(task).tolist(), strict=True))
        found[name] = edges
        assert edges["tok_embeds", "a0.h0.v"] == pytest.approx(edges["a0.h0", "resid_post"] / 3)
        assert edges["tok_embeds", "resid_post"] + edges["a0.h0", "resid_post"] == pytest.approx(1)
    assert found["far"]["a0.h0", "resid_post"] > 0
