"""Other ways to find a circuit, by the same masked pass: attribution of edges, their exact effects, ACDC, random edges.

Shapes: B examples, E edges, P positions, V tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.store import Store
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.measures import logit_difference
from lmlab.methods.edge_pruning.search.trials import Trials
from lmlab.models import Transformer
from lmlab.progress import progress

Attribution = Literal["eap", "eap-ig", "eap-gp", "mask-ig", "nap", "nap-ig"]


def attribute(task: Counterfactuals, method: Attribution = "eap", steps: int = 5) -> Tensor:
    """First-order scores of all edges: what the metric loses when the edge is pruned, a mean over examples.

    The metric is the logit difference; without answers, how far the output has gone from the empty circuit's to the
    whole model's.

    Arguments:
        method: `eap`: the gradient at the whole model (Syed et al. 2023). `eap-ig`: that gradient taken on inputs
            between the corrupted and the clean embeddings, times what the clean run writes (Hanna et al. 2024, eq. 4).
            `mask-ig`: the mean gradient of masks at levels between 0 and 1.
            `eap-gp`: `eap-ig` on a path that follows the gradient of the distance to the corrupted run's logits (Zhang
            et al. 2025). `nap`, `nap-ig`: of whole writers, the sums over their edges of `eap` and `eap-ig`: all edges
            of a writer have its score.
        steps: of the integrated gradients.

    Returns:
        [E]; positive where an edge helps.
    """
    if method in ("nap", "nap-ig"):
        edge_E = attribute(task, "eap" if method == "nap" else "eap-ig", steps)
        writers = task.masked.graph.edge_writers
        return edge_E.new_zeros(len(task.masked.graph.writers)).index_add(0, writers, edge_E)[writers]
    total_E = torch.zeros(task.masked.graph.num_edges, dtype=torch.float64)
    with progress(method, len(task.examples), "examples") as advance:
        for index_B in task.batches():
            total_E += _attribute(task, index_B, method, steps).double().cpu()
            advance(len(index_B))
    if not bool(total_E.isfinite().all()):
        raise UserError("The scores are not finite.", "Run the model in fp32.")
    return total_E / len(task.examples)


def _attribute(task: Counterfactuals, index_B: Tensor, method: Attribution, steps: int) -> Tensor:
    masked, inputs = task.masked, task.inputs(index_B)
    direction = None if task.examples.has_answers else _direction(task, index_B)

    def gradient(level: float, embeddings: tuple[Tensor, ...] | None = None, measured: Store | None = None) -> Tensor:
        z = (masked.ones() * level).requires_grad_()
        logits = masked(inputs, z, embeddings=embeddings, measured=measured)
        value = (
            logit_difference(task, logits, index_B).sum()
            if direction is None
            else (task.outputs(logits) * direction).sum()
        )
        (found,) = torch.autograd.grad(value, z)
        return found[0]

    if method == "eap":
        return gradient(1.0)
    if method == "mask-ig":
        return sum((gradient((k + 1) / steps) for k in range(steps)), torch.zeros(())) / steps
    with torch.no_grad():
        store = masked.new_store(inputs)
        masked(inputs, masked.ones(), store=store)
        clean, _ = masked.model.embeddings(inputs.clean_BT)
    total = torch.zeros(())
    if method == "eap-gp":
        for point in _gradient_path(task, index_B, clean, inputs.replaced.embeddings, steps):
            total = total + gradient(1.0, point, store)
        return total / steps
    for k in range(steps):
        between = tuple(c + (k / steps) * (y - c) for y, c in zip(clean, inputs.replaced.embeddings, strict=True))
        total = total + gradient(1.0, between, store)
    return total / steps


def _gradient_path(
    task: Counterfactuals, index_B: Tensor, clean: tuple[Tensor, ...], corrupted: tuple[Tensor, ...], steps: int
) -> Iterator[tuple[Tensor, ...]]:
    """From the clean embeddings of tokens toward the corrupted run: each step has the length of a part of the straight
    way, and the direction that brings the logits nearest to those of the corrupted run.
    """
    model, positions_BP = task.masked.model, task.inputs(index_B).positions_BP
    target_BPV = _logits_of(model, corrupted[0].expand_as(clean[0]), positions_BP).detach()
    stride_B = (corrupted[0] - clean[0]).flatten(1).norm(dim=1) / steps
    point_BTD = clean[0].detach()
    for _ in range(steps):
        yield (point_BTD, *clean[1:])
        point_BTD = point_BTD.detach().requires_grad_()
        with torch.enable_grad():
            gap = (_logits_of(model, point_BTD, positions_BP) - target_BPV).square().sum()
            (slope_BTD,) = torch.autograd.grad(gap, point_BTD)
        length_B = slope_BTD.flatten(1).norm(dim=1).clamp(min=1e-12)
        point_BTD = point_BTD.detach() - slope_BTD * (stride_B / length_B)[:, None, None]


def _logits_of(model: Transformer, embedded_BTD: Tensor, positions_BP: Tensor) -> Tensor:
    logits_BTV = model(inputs_embeds_BTD=embedded_BTD).logits_BTV
    assert logits_BTV is not None
    return logits_BTV.gather(1, positions_BP[..., None].expand(-1, -1, logits_BTV.shape[-1]))


@torch.no_grad()
def _direction(task: Counterfactuals, index_B: Tensor) -> Tensor:
    """From the outputs of the empty circuit to those of the model, [B, P, V]; for distributions, by which
    log-probabilities are weighted.
    """
    masked = task.masked
    empty, full = task.outputs(masked(task.inputs(index_B), 0 * masked.ones())), task.full(index_B)
    away = full - empty if task.examples.distance == "mse" else full.exp() - empty.exp()
    return away * task.examples.weights[index_B].to(away)[..., None]


@torch.no_grad()
def exact_effects(task: Counterfactuals, rows: int = 64) -> Tensor:
    """The rise of the distance when each edge alone is taken from the whole model, [E].

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
                distance = task.distance(task.masked(task.inputs(repeated), z), repeated)
                effects_E[numbers] += distance.view(len(numbers), -1).sum(1).double().cpu()
                advance(len(repeated))
    return effects_E / len(task.examples)


@torch.no_grad()
def acdc(task: Counterfactuals, threshold: float) -> tuple[Tensor, Tensor]:
    """Automatic circuit discovery (Conmy et al. 2023): from the output back, take out each edge unless the distance
    rises by the threshold or more.

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
