"""Other ways to find a circuit, by the same masked pass: exact effects of edges, ACDC, random edges.

Shapes: B examples, E edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.metrics import values
from lmlab.methods.edge_pruning.search.trials import Trials
from lmlab.progress import progress


@torch.no_grad()
def exact_effects(task: Counterfactuals, rows: int = 64) -> Tensor:
    """What is lost when each edge alone is taken from the whole model (activation patching of edges), [E]: by how much
    the distance rises, or the metric that the task goes by falls.

    Arguments:
        rows: edges times examples of one pass.
    """
    edges = task.masked.graph.num_edges
    effects_E = torch.zeros(edges, dtype=torch.float64)
    with progress("exact effects", edges * len(task.examples), "passes") as advance:
        for index_B in task.batches(min(rows, task.batch_size)):
            count = max(1, rows // len(index_B))
            for numbers in torch.arange(edges).split(count):
                repeated = index_B.repeat(len(numbers))
                z = task.masked.ones().repeat(len(repeated), 1)
                z[torch.arange(len(repeated)), numbers.repeat_interleave(len(index_B))] = 0.0
                lost = _lost(task, task.masked(task.inputs(repeated), z), repeated)
                effects_E[numbers] += lost.view(len(numbers), -1).sum(1).double().cpu()
                advance(len(repeated))
    return effects_E / len(task.examples)


def _lost(task: Counterfactuals, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
    if task.metric == "distance":
        return task.distance(logits_BPV, index_B)
    before_B, after_B = (
        values(task, each, index_B, task.metric) for each in (task.full(index_B), task.outputs(logits_BPV))
    )
    return before_B - after_B


@torch.no_grad()
def acdc(task: Counterfactuals, threshold: float) -> tuple[Tensor, Tensor]:
    """Automatic circuit discovery (Conmy et al. 2023): from the output back, take out each edge unless the distance
    (or the gap in the metric that the task goes by) rises by the threshold or more.

    Each trial computes only what lies behind the edge.

    Returns:
        the edges kept, and by how much the distance rose at each trial, [E] each.
    """
    trials = Trials(task)
    graph = trials.graph
    kept_E, rise_E = torch.ones(graph.num_edges, dtype=torch.bool), torch.zeros(graph.num_edges)
    current = trials.distance(kept_E)
    with progress("acdc", graph.num_edges, "edges") as advance:
        for number, group in trials.backward():
            for reader in range(len(group.readers)):
                first = group.first_edge + reader * group.reads
                edges = range(first + group.reads - 1, first - 1, -1)
                if not trials.is_read(kept_E, group, reader):
                    kept_E[first : first + group.reads] = False
                    advance(group.reads)
                    continue
                for edge in edges:
                    kept_E[edge] = False
                    without = trials.distance(kept_E, number)
                    rise_E[edge] = without - current
                    if without - current < threshold:
                        current = without
                    else:
                        kept_E[edge] = True
                    advance(1)
    return kept_E, rise_E


def random_scores(task: Counterfactuals, seed: int = 0) -> Tensor:
    """Scores without any meaning, [E]."""
    return torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(seed))
