"""Experts as writers, in models that were upcycled from dense ones, whose circuits are known from those."""

from __future__ import annotations

import pytest
import torch

from lmlab.methods.edge_pruning import (
    CircuitGraph,
    Counterfactuals,
    FindConfig,
    GraphOptions,
    MaskedModel,
    attribute,
    exact_effects,
    find_circuit,
)
from lmlab.methods.olmoe.config import UpcycleConfig
from lmlab.methods.olmoe.upcycling import upcycle


def _both(network, task_of, **how):
    """The same task on a dense model and on its mixture of experts."""
    dense = task_of(network("llama"))
    sparse = upcycle(dense.masked.model, UpcycleConfig(num_experts=4, top_k=2, **how)).double().eval()
    graph = CircuitGraph(sparse.config, GraphOptions(moe="expert"))
    return dense, Counterfactuals(MaskedModel(sparse, graph), dense.examples, batch_size=4)


def _dense_edge(edge):
    return edge[0].partition(".e")[0], edge[1]


@pytest.mark.parametrize("split", [1, 2])
def test_edges_of_all_experts_of_a_layer_are_the_edge_of_its_dense_network(network, task_of, split):
    dense, sparse = _both(network, task_of, split=split)
    assert {"m0.e0", "m0.e3", "m1.e2"} <= set(sparse.masked.graph.writers)
    kept_E = torch.rand(dense.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    names = set(dense.masked.graph.edges(kept_E))
    spread_E = torch.tensor([_dense_edge(edge) in names for edge in sparse.masked.graph.edges()])
    ours, theirs = (
        torch.cat([logits for _, logits in task.run(each.float())])
        for task, each in ((dense, kept_E), (sparse, spread_E))
    )
    assert torch.allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "mask-ig"])
def test_scores_of_experts_add_up_to_that_of_the_dense_network(network, task_of, method):
    dense, sparse = _both(network, task_of)
    added = dict.fromkeys(dense.masked.graph.edges(), 0.0)
    for edge, score in zip(sparse.masked.graph.edges(), attribute(sparse, method).tolist(), strict=True):
        added[_dense_edge(edge)] += score
    assert list(added.values()) == pytest.approx(attribute(dense, method).tolist(), abs=1e-8)


def test_experts_that_differ_are_told_apart(network, task_of):
    """An expert whose output matrix is 0 writes nothing, so that its edges are worth nothing."""
    _, sparse = _both(network, task_of, noise=0.3)
    with torch.no_grad():
        sparse.masked.model.block(0).ffn.experts.down[1].zero_()
    task = Counterfactuals(sparse.masked, sparse.examples, batch_size=4)
    effects_E = exact_effects(task)
    silent_E = torch.tensor([writer == "m0.e1" for writer, _ in task.masked.graph.edges()])
    assert float(effects_E[silent_E].abs().max()) < 1e-12 < float(effects_E.abs().max())
    circuit = find_circuit(task, FindConfig(method="eap-ig", num_edges=40, graph={"moe": "expert"}), force=True)
    assert circuit.num_edges > 0 and not any(writer == "m0.e1" for writer, _ in circuit.edges)
