"""Optimal ablation: constants in the place of pruned edges, learned and kept."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import LmlabError, UserError
from lmlab.methods.edge_pruning import (
    Circuit,
    Counterfactuals,
    FindConfig,
    find_circuit,
    learn_constants,
    measure,
)
from lmlab.methods.edge_pruning.commands.shared import with_constants_of
from lmlab.methods.edge_pruning.config import OptimalConfig
from lmlab.methods.edge_pruning.masking.optimal import PARTS, Constants, activations_of, from_lists, to_lists


def _some(task, share=0.4):
    edges = task.masked.graph.num_edges
    return torch.rand(edges, generator=torch.Generator().manual_seed(0)) < share


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("llama", {"embedding_nodes": False}),
        ("olmo2", {}),
        ("olmo2", {"post_norm": "block"}),
        ("shared_expert", {"moe": "expert"}),
    ],
)
def test_gradients_of_constants_are_slopes_and_all_edges_are_the_model(network, task_of, kind, options):
    task = task_of(network(kind), "optimal", **options)
    index, kept_E = torch.arange(4), _some(task)
    full = task.masked(task.inputs(index), task.masked.ones())
    assert torch.allclose(task.outputs(full), task.full(index), atol=1e-9)
    parts = {name: [each.detach().clone().requires_grad_() for each in getattr(task.constants, name)] for name in PARTS}

    def distance():
        now = task.with_constants(activations_of(task.masked, parts))
        return now.gap(now.masked(now.inputs(index), kept_E[None].double()), index).mean()

    distance().backward()
    for name in PARTS:
        for each in parts[name]:
            assert each.grad is not None
            place = int(each.grad.abs().argmax())
            slope, flat = float(each.grad.flatten()[place]), each.detach().view(-1)
            ends = []
            for step in (1e-5, -2e-5):
                flat[place] += step
                with torch.no_grad():
                    ends.append(float(distance()))
            flat[place] += 1e-5
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_learned_constants_leave_a_circuit_closer_to_the_model_than_means(network, task_of):
    task = task_of(network("llama"), "optimal", count=8)
    kept_E = _some(task)
    fitted = learn_constants(task, OptimalConfig(steps=60, batch_size=8, learning_rate=0.03), kept_E)
    assert fitted.mean_distance(kept_E) < 0.7 * task.mean_distance(kept_E)
    everything = learn_constants(task, OptimalConfig(steps=60, batch_size=8, learning_rate=0.03))
    draws = [_some(task, share / 10) for share in range(10)]
    means, learned = (sum(each.mean_distance(draw) for draw in draws) for each in (task, everything))
    assert learned < 0.9 * means


def test_constants_that_round_the_model_away_are_refused(network, task_of):
    task = task_of(network("llama").float(), "optimal", count=4)
    with pytest.raises(LmlabError, match="no longer the model.*") as error:
        learn_constants(task, OptimalConfig(steps=5, batch_size=4, learning_rate=1e7))
    assert "Lower optimal.learning_rate" in str(error.value)


@pytest.mark.parametrize("ablation", ["optimal", "mean"])
def test_constants_are_kept_with_the_circuit_and_measured_with_it(network, task_of, tmp_path, ablation):
    task = task_of(network("llama").float(), ablation, count=6)
    other = Counterfactuals(task.masked, task.examples.take(slice(3)), ablation, 4)
    settings = {"optimal": {"steps": 10, "batch_size": 6}} if ablation == "optimal" else {}
    config = FindConfig(method="eap", ablation=ablation, num_edges=40, **settings)
    circuit = find_circuit(task, config, force=True, held_out=other)
    circuit.save(tmp_path / "circuit.json")
    read = Circuit.load(tmp_path / "circuit.json")
    again = measure(with_constants_of(read, other), read.kept_E)
    assert again["distance"] == pytest.approx(circuit.metrics["held_out"]["circuit"]["distance"], rel=1e-3)
    assert measure(other, read.kept_E)["distance"] != pytest.approx(again["distance"], rel=1e-3)
    with pytest.raises(UserError, match="which constants"):
        with_constants_of(Circuit(read.graph, read.kept_E, "optimal"), other)
    lists = to_lists(task.constants)
    with pytest.raises(UserError, match="not those of this model"):
        from_lists(task.masked, {**lists, "heads": lists["heads"][:1]})
    with pytest.raises(UserError, match="cannot be read"):
        from_lists(task.masked, {"heads": lists["heads"]})


def test_the_seed_of_the_constants_reaches_methods_that_draw_nothing(network, task_of):
    """Several seeds were refused, as if every one found the same circuit."""
    settings = FindConfig(method="eap", num_edges=30, ablation="optimal", optimal={"steps": 5, "learning_rate": 0.3})
    task = task_of(network("llama"), "optimal", count=4)
    assert settings.draws and not FindConfig(method="eap", num_edges=30).draws
    found = [find_circuit(task, settings, seed, force=True).scores_E for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_settings_of_optimal_ablation_are_refused_under_another():
    with pytest.raises(ValueError, match="no influence without the ablation optimal"):
        FindConfig(num_edges=3, optimal={"steps": 3})


def test_constants_begin_at_the_means_of_the_clean_run(network, task_of):
    task = task_of(network("gpt2"), "optimal")
    own = Constants(task.constants).parts()
    expected = task.masked.model.embedding.weight[task.examples.clean].mean((0, 1))
    assert torch.allclose(own["embeddings"][0][0, 0].double(), expected, atol=1e-6)
