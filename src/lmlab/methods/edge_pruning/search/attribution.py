"""First-order scores of edges, by gradients of a metric for their masks.

Shapes: B examples, E edges, P positions, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.config import Attribution, Metric
from lmlab.methods.edge_pruning.graph.store import Store
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import Inputs
from lmlab.methods.edge_pruning.masking.metrics import require_metric, values
from lmlab.methods.edge_pruning.search.dropped import sizes_of_dropped_gradients
from lmlab.models import Transformer
from lmlab.progress import progress

_AT_THE_MODEL = ("eap", "nap", "relp", "atp-star")
"""Methods that take their gradients at the whole model alone, where its distance from itself has none."""


def attribute(
    task: Counterfactuals,
    method: Attribution = "eap",
    steps: int = 5,
    metric: Metric | None = None,
    whole_gradient: bool = False,
) -> Tensor:
    """First-order scores of all edges: what the metric loses when the edge is pruned, a mean over examples.

    Arguments:
        method: `eap`: the gradient at the whole model (Syed et al. 2023). `eap-ig`: that gradient taken on inputs
            between the corrupted and the clean embeddings, times what the clean run writes (Hanna et al. 2024, eq. 4).
            `mask-ig`: the mean gradient of masks at levels between 0 and 1.
            `eap-gp`: `eap-ig` on a path that follows the gradient of the distance to the corrupted run's logits (Zhang
            et al. 2025). `nap`, `nap-ig`: of whole writers, the sums over their edges of `eap` and `eap-ig`: all edges
            of a writer have its score. `relp`: `eap` with gradients that pass through norms and attention patterns as
            through constants, and through activations by the rules of relevance propagation (Jafari et al. 2025), so
            that edges to queries and keys have none. `atp-star`: `eap` with attention patterns computed anew for edges
            to queries and keys, and the mean size over gradients that drop a layer (Kramár et al. 2024); no signs.
        steps: of the integrated gradients.
        metric: of what gradients are taken, one of `values`, or `distance`. By default the logit difference; without
            answers, how far the output has gone from the empty circuit's to the whole model's.
        whole_gradient: of `atp-star`: the gradient that drops no layer is part of the mean too.

    Returns:
        [E]; positive where an edge helps.

    Raises:
        UserError: the metric has no gradient there, the rules do not fit the model, or scores are not finite.
    """
    if method in ("nap", "nap-ig"):
        edge_E = attribute(task, "eap" if method == "nap" else "eap-ig", steps, metric)
        writers = task.masked.graph.edge_writers
        return edge_E.new_zeros(len(task.masked.graph.writers)).index_add(0, writers, edge_E)[writers]
    if metric is not None:
        require_metric(task, metric, gradients=True)
    if metric == "distance" and method in _AT_THE_MODEL:
        raise UserError(
            f"The method {method} takes gradients at the whole model, whose distance from itself has none.",
            "Take another --metric, or a method with integrated gradients, such as eap-ig.",
        )
    if method == "relp" and "moe" in task.masked.graph.config.ffn_kinds:
        raise UserError(
            "The rules of relp are known for dense feed-forward networks; this model has mixtures of experts.",
            "Take another method, such as eap-ig.",
        )
    total_E = torch.zeros(task.masked.graph.num_edges, dtype=torch.float64)
    passes = 1 if method in ("eap", "relp", "atp-star") else steps
    with progress(method, len(task.examples) * passes, "passes of an example") as advance:
        for index_B in task.batches():
            done = partial(advance, len(index_B))
            total_E += _attribute(task, index_B, method, steps, metric, whole_gradient, done).double().cpu()
    if not bool(total_E.isfinite().all()):
        raise UserError("The scores are not finite.", "Run the model in fp32.")
    return total_E / len(task.examples)


def total_of(task: Counterfactuals, index_B: Tensor, metric: Metric | None) -> Callable[[Tensor], Tensor]:
    """From logits of some examples to the sum of what scores are gradients of."""
    measured = metric or ("logit_difference" if task.examples.has_answers else None)
    direction = _direction(task, index_B) if measured is None else None

    def total(logits: Tensor) -> Tensor:
        if direction is not None:
            return (task.outputs(logits) * direction).sum()
        if measured == "distance":
            return -task.distance(logits, index_B).sum()
        assert measured is not None
        return values(task, task.outputs(logits), index_B, measured).sum()

    return total


def _attribute(
    task: Counterfactuals,
    index_B: Tensor,
    method: Attribution,
    steps: int,
    metric: Metric | None,
    whole_gradient: bool,
    done: Callable[[], object],
) -> Tensor:
    """Scores of some examples, summed; `done` is called after each pass over them."""
    masked, inputs, total = task.masked, task.inputs(index_B), total_of(task, index_B, metric)

    def gradient(
        level: float,
        embeddings: tuple[Tensor, ...] | None = None,
        measured_by: Store | None = None,
        straight: bool = False,
    ) -> Tensor:
        z = (masked.ones() * level).requires_grad_()
        logits = masked(inputs, z, embeddings=embeddings, measured=measured_by, straight=straight)
        (found,) = torch.autograd.grad(total(logits), z)
        done()
        return found[0]

    if method in ("eap", "relp"):
        return gradient(1.0, straight=method == "relp")
    if method == "atp-star":
        sizes = sizes_of_dropped_gradients(task, index_B, total, whole_gradient).sum(0)
        done()
        return sizes
    if method == "mask-ig":
        return sum((gradient((k + 1) / steps) for k in range(steps)), torch.zeros(())) / steps
    with torch.no_grad():
        store = masked.new_store(inputs)
        masked(inputs, masked.ones(), store=store)
        clean, _ = masked.model.embeddings(inputs.clean_BT)
    summed = torch.zeros(())
    if method == "eap-gp":
        for point in _gradient_path(task, index_B, clean, inputs.replaced.embeddings, steps):
            summed = summed + gradient(1.0, point, store)
        return summed / steps
    for k in range(steps):
        between = tuple(c + (k / steps) * (y - c) for y, c in zip(clean, inputs.replaced.embeddings, strict=True))
        summed = summed + gradient(1.0, between, store)
    return summed / steps


def _gradient_path(
    task: Counterfactuals, index_B: Tensor, clean: tuple[Tensor, ...], corrupted: tuple[Tensor, ...], steps: int
) -> Iterator[tuple[Tensor, ...]]:
    """From the clean embeddings of tokens toward the corrupted run: each step has the length of a part of the straight
    way, and the direction that brings the logits nearest to those of the corrupted run.
    """
    model, inputs = task.masked.model, task.inputs(index_B)
    target_BPV = _logits_of(model, corrupted[0].expand_as(clean[0]), inputs).detach()
    # neither places that only pad nor padding, whose embedding may not be what replaces it, are part of an example
    weights_BP1 = task.examples.weights[index_B].to(target_BPV)[..., None]
    real_BT1 = task.examples.real[index_B].to(target_BPV)[..., None]
    stride_B = ((corrupted[0] - clean[0]) * real_BT1).flatten(1).norm(dim=1) / steps
    point_BTD = clean[0].detach()
    for _ in range(steps):
        yield (point_BTD, *clean[1:])
        point_BTD = point_BTD.detach().requires_grad_()
        with torch.enable_grad():
            gap = ((_logits_of(model, point_BTD, inputs) - target_BPV).square() * weights_BP1).sum()
            (slope_BTD,) = torch.autograd.grad(gap, point_BTD)
        length_B = slope_BTD.flatten(1).norm(dim=1).clamp(min=1e-12)
        point_BTD = point_BTD.detach() - slope_BTD * (stride_B / length_B)[:, None, None]


def _logits_of(model: Transformer, embedded_BTD: Tensor, inputs: Inputs) -> Tensor:
    logits_BTV = model(inputs_embeds_BTD=embedded_BTD, attention_mask_BT=inputs.real_BT).logits_BTV
    assert logits_BTV is not None
    return logits_BTV.gather(1, inputs.positions_BP[..., None].expand(-1, -1, logits_BTV.shape[-1]))


@torch.no_grad()
def _direction(task: Counterfactuals, index_B: Tensor) -> Tensor:
    """From the outputs of the empty circuit to those of the model, [B, P, V]; for distributions, by which
    log-probabilities are weighted.
    """
    masked = task.masked
    empty, full = task.outputs(masked(task.inputs(index_B), 0 * masked.ones())), task.full(index_B)
    away = full - empty if task.examples.distance == "mse" else full.exp() - empty.exp()
    return away * task.examples.weights[index_B].to(away)[..., None]
