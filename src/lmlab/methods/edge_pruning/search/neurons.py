"""Single numbers of what writers write: their scores, and circuits of the best of them.

A neuron is one dimension of the residual stream as one writer writes it, as in the neuron level of the Mechanistic
Interpretability Benchmark; a neuron that is pruned carries what the ablation puts there, for all tokens and readers.

Shapes: B examples, T tokens, D model width, W writers, M = T D, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.config import Metric
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.metrics import require_metric
from lmlab.methods.edge_pruning.measures import FRACTIONS, Ends, measure_each
from lmlab.methods.edge_pruning.search.attribution import total_of
from lmlab.progress import progress


def attribute_neurons(task: Counterfactuals, steps: int = 5, metric: Metric | None = None) -> Tensor:
    """What the metric loses to first order when each neuron is pruned, a mean over examples, [W, D].

    Arguments:
        steps: of integrated gradients, on inputs between the corrupted and the clean embeddings; 1 takes the gradient
            at the whole model.
        metric: as of `attribute`.

    Raises:
        UserError: the metric has no gradient there, or scores are not finite.
    """
    if metric is not None:
        require_metric(task, metric, gradients=True)
    if metric == "distance" and steps == 1:
        raise UserError("At the whole model its distance from itself has no gradient.", "Take more steps.")
    masked, width = task.masked, task.masked.graph.config.d_model
    total_WD = torch.zeros(len(masked.graph.writers), width, dtype=torch.float64)
    with progress("neurons", len(task.examples), "examples") as advance:
        for index_B in task.batches():
            inputs, total = task.inputs(index_B), total_of(task, index_B, metric)
            with torch.no_grad():
                whole = masked.new_store(inputs)
                masked(inputs, masked.ones(), store=whole)
                clean, _ = masked.model.embeddings(inputs.clean_BT)
            for k in range(steps):
                share = 1.0 if steps == 1 else k / steps
                between = tuple(c + share * (y - c) for y, c in zip(clean, inputs.replaced.embeddings, strict=True))
                store, z = masked.new_store(inputs), masked.ones().requires_grad_()
                torch.autograd.grad(total(masked(inputs, z, embeddings=between, store=store)), z)
                product_BWM = store.gradient(0, len(masked.graph.writers)) * whole.written_BWM
                found_WD = product_BWM.unflatten(2, (-1, width)).sum((0, 2)) / steps
                total_WD += found_WD.double().cpu()
            advance(len(index_B))
    if not bool(total_WD.isfinite().all()):
        raise UserError("The scores are not finite.", "Run the model in fp32.")
    return total_WD / len(task.examples)


def top_neurons(scores_WD: Tensor, count: int) -> Tensor:
    """1 for the neurons with the highest scores, [W, D]."""
    kept = torch.zeros(scores_WD.numel())
    kept[scores_WD.flatten().argsort(descending=True, stable=True)[:count]] = 1.0
    return kept.view_as(scores_WD)


def neuron_curve(
    task: Counterfactuals, scores_WD: Tensor, ends: Ends, fractions: Sequence[float] = FRACTIONS
) -> list[dict[str, float]]:
    """The figures of the best neurons at each share of all, with all edges; the number is cut, not rounded.
    With the standard error of the distance and the interval of faithfulness where there are two examples or more.
    """
    everything_E, rows = torch.ones(task.masked.graph.num_edges), []
    for fraction in fractions:
        count = int(fraction * scores_WD.numel())
        found = ends.summary(measure_each(task, everything_E, top_neurons(scores_WD, count)))
        low, high = found["intervals"].get("faithfulness", (None, None))
        known = {"distance_error": found["errors"].get("distance"), "faithfulness_low": low, "faithfulness_high": high}
        rows.append({"fraction": fraction, "neurons": count, **found["circuit"], **known})
    return rows
