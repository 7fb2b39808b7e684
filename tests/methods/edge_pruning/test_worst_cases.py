"""Circuits on prompts that are paired anew."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import CircuitGraph, Counterfactuals, MaskedModel, make_examples, measure, worst_cases
from lmlab.methods.edge_pruning.worst import repaired


def test_each_prompt_meets_the_corrupted_input_of_another_of_its_length(network):
    clean = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10], [11, 12, 13, 14]]
    corrupted = [[21, 2, 3], [24, 5, 6], [27, 8], [29, 10], [31, 12, 13, 14]]
    model = network("llama")
    examples = make_examples(clean, corrupted, [[len(row) - 1] for row in clean])
    task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)
    other = repaired(task, 2).examples
    firsts = other.corrupted[:, 0].tolist()
    assert firsts == [24, 21, 29, 27, 31] * 2  # with two of a length there is one other; the last has none
    assert other.clean.tolist() == task.examples.clean.repeat(2, 1).tolist()
    kept_E = torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    worst = worst_cases(task, kept_E, 2)
    by_hand = Counterfactuals(
        task.masked, make_examples(clean, [corrupted[n] for n in (1, 0, 3, 2, 4)], [[len(row) - 1] for row in clean])
    )
    assert worst["n"] == 10 and worst["mean"] == pytest.approx(measure(by_hand, kept_E)["distance"])
    assert worst["own"] == pytest.approx(measure(task, kept_E)["distance"])
    assert worst["max"] >= worst["p99"] >= worst["mean"] and worst["clean"] in clean and worst["corrupted"] in corrupted


def test_what_cannot_be_paired_anew_is_refused(network, task_of):
    with pytest.raises(UserError, match="do not depend on the corrupted input"):
        worst_cases(task_of(network("llama"), "zero"), torch.ones(1, dtype=torch.bool))
    with pytest.raises(UserError, match="No two prompts"):
        worst_cases(task_of(network("llama"), count=1), torch.ones(1, dtype=torch.bool))
