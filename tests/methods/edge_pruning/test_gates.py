from __future__ import annotations

import pytest
import torch

from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.gates import Gates
from lmlab.models.internals.gates import Lagrangian, probability_open, sample


def test_gates_are_open_as_often_as_the_closed_form_says():
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    z = sample(log_alpha, torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0)))
    assert z.min() == 0 and z.max() == 1
    assert torch.allclose((z > 0).float().mean(0), probability_open(log_alpha), atol=5e-3)


def test_uniform_numbers_at_the_ends_give_finite_gates_and_gradients():
    log_alpha = torch.zeros(3, requires_grad=True)
    z = sample(log_alpha, torch.tensor([0.0, 0.5, 1.0]))
    z.sum().backward()
    assert z.isfinite().all() and log_alpha.grad.isfinite().all()


def test_multipliers_ascend_while_values_descend():
    constraint = Lagrangian()
    with torch.no_grad():
        constraint.multipliers.copy_(torch.tensor([2.0, 3.0]))
    value = torch.tensor(0.4, requires_grad=True)
    penalty = constraint(value, 0.9)
    assert penalty.item() == pytest.approx(2 * -0.5 + 3 * 0.25)
    penalty.backward()
    assert float(value.grad) == pytest.approx(2 + 2 * 3 * -0.5)
    assert constraint.multipliers.grad.tolist() == pytest.approx([0.5, -0.25])


def test_an_edge_is_open_where_it_and_its_writer_are():
    gates = Gates(torch.full((4,), 9.0), torch.tensor([0, 1, 0, 1]), torch.tensor([9.0, -9.0]))
    torch.manual_seed(0)
    z = gates(50)
    assert z[:, [1, 3]].max() == 0 and z[:, [0, 2]].min() == 1
    assert gates.scores().tolist() == [9.0, -9.0, 9.0, -9.0]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "olmoe", "no_norm"])
@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
def test_cleaning_leaves_the_output_as_it_is(network, task_of, kind, ablation):
    task = task_of(network(kind), ablation)
    graph, constant = task.masked.graph, writes_constants(task.masked.model)
    removed = 0
    for seed, share in enumerate((0.03, 0.08, 0.15, 0.3, 0.08, 0.05)):
        kept_E = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(seed)) < share
        cleaned_E = clean(graph, kept_E, ablation, constant)
        removed += int(kept_E.sum() - cleaned_E.sum())
        inputs = task.inputs(torch.arange(4))
        before, after = (task.masked(inputs, each[None].double()) for each in (kept_E, cleaned_E))
        assert torch.allclose(before, after, atol=1e-9)
        assert not (cleaned_E & ~kept_E).any() and torch.equal(clean(graph, cleaned_E, ablation, constant), cleaned_E)
    assert removed > 0


def test_cleaning_goes_on_when_only_edges_change(network, task_of):
    graph = task_of(network("llama")).masked.graph
    chain = [("embeds", "a0.h0.v"), ("a0.h0", "m0"), ("m0", "a1.h1.q"), ("embeds", "resid_post")]
    assert graph.edges(clean(graph, graph.mask(chain))) == [("embeds", "resid_post")]
    uninformed = [("a0.h2", "m1"), ("m1", "resid_post"), ("embeds", "resid_post")]
    assert graph.edges(clean(graph, graph.mask(uninformed))) == [("embeds", "resid_post")]
