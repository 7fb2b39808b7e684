"""Optimal ablation (Li and Janson 2024): a pruned edge carries a constant of its writer, learned so that the circuit is
as close to the model as constants let it be. No corrupted input is needed.

Shapes: B examples, E edges, D model width, N heads, H width of a head, x experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.data import Batch
from lmlab.errors import LmlabError, UserError
from lmlab.methods.edge_pruning.config import OptimalConfig
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.methods.edge_pruning.masking.activations import Activations
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import MaskedModel, written_by_all
from lmlab.methods.edge_pruning.masking.numbers import fit_on_examples
from lmlab.train import StepOutput

PARTS = ("embeddings", "heads", "ffns")
_ROUNDING = 0.01  # of the empty circuit's distance, that all edges may be from the model


class Constants(nn.Module):
    """A constant for each writer, for all tokens alike: [1, 1, D], of heads [1, 1, N, H] before the output matrix, and
    of experts [1, 1, x, D].

    Arguments:
        start: where they begin.
    """

    def __init__(self, start: Activations) -> None:
        super().__init__()
        for name in PARTS:
            setattr(self, name, nn.ParameterList([each.detach().float().clone() for each in getattr(start, name)]))

    def parts(self) -> dict[str, list[Tensor]]:
        """The constants by what writes them."""
        return {name: list(getattr(self, name)) for name in PARTS}


def activations_of(masked: MaskedModel, parts: Mapping[str, list[Tensor]]) -> Activations:
    """Constants of writers with the residual streams that they add up to."""
    like = masked.model.embedding.weight
    embeddings, heads, ffns = (tuple(each.to(like) for each in parts[name]) for name in PARTS)
    stream = torch.stack(embeddings).sum(0)
    streams = [stream]
    for layer in range(masked.graph.config.num_layers):
        stream = stream + written_by_all(masked, layer, heads[layer])
        streams.append(stream)
        stream = stream + (ffns[layer] if ffns[layer].dim() == 3 else ffns[layer].sum(2))
        streams.append(stream)
    return Activations(embeddings, heads, ffns, tuple(streams))


class _Fit:
    """The step function: the gap of circuits whose pruned edges carry the constants."""

    def __init__(self, task: Counterfactuals, kept_E: Tensor | None) -> None:
        self.task, self.kept_E, self.scale = task, kept_E, task.empty_distance

    def __call__(self, model: Constants, batch: Batch) -> StepOutput:
        """The loss of some examples."""
        index_B = batch["example"].cpu()
        now = self.task.with_constants(activations_of(self.task.masked, model.parts()))
        like = self.task.masked.ones()
        if self.kept_E is None:  # circuits of random edges, of all sizes alike
            draws_B1 = torch.rand(len(index_B), 1, device=like.device)
            z_BE = (torch.rand(len(index_B), like.shape[1], device=like.device) < draws_B1).to(like)
        else:
            z_BE = self.kept_E[None].to(like)
        gap_B = now.gap(now.masked(now.inputs(index_B), z_BE), index_B) / self.scale
        count = torch.tensor(float(len(index_B)))
        return StepOutput(gap_B.sum(), count, {})

    def after_step(self, model: Constants) -> Mapping[str, float]:
        """Nothing is to be done."""
        return {}


def learn_constants(
    task: Counterfactuals, config: OptimalConfig | None = None, kept_E: Tensor | None = None, seed: int = 0
) -> Counterfactuals:
    """The task with constants that leave a circuit as close to the model as they can.

    Arguments:
        task: one of `optimal` ablation, whose constants they begin from.
        kept_E: the circuit; None for circuits of random edges of all sizes. One with all edges has nothing to learn
            from.

    Raises:
        LmlabError: the constants are not finite, or too large for the precision of the sums that they enter.
    """
    assert task.ablation == "optimal" and task.constants is not None
    config = config or OptimalConfig()
    if kept_E is not None and bool(kept_E.all()):
        return task
    model = Constants(task.constants)
    step, count = _Fit(task, kept_E), len(task.examples)
    fit_on_examples(model, step, count, config, task.device, seed, final_fraction=0.0)
    if not all(bool(each.isfinite().all()) for each in model.parameters()):
        raise LmlabError("The constants of optimal ablation are not finite.", "Lower optimal.learning_rate.")
    with torch.no_grad():
        found = task.with_constants(activations_of(task.masked, model.parts()))
        # with all edges any constants cancel, as long as what they are added to is not lost beside them
        whole_E = torch.ones(task.masked.graph.num_edges)
        if not found.mean_distance(whole_E) <= task.mean_distance(whole_E) + _ROUNDING * task.empty_distance:
            raise LmlabError(
                "The constants of optimal ablation are so large that all edges together are no longer the model.",
                "Lower optimal.learning_rate.",
            )
        # steps of a noisy loss can end where they began: what is worse than the beginning is not taken
        if kept_E is not None and task.mean_distance(kept_E) < found.mean_distance(kept_E):
            return task
    return found


def to_lists(constants: Activations) -> dict[str, Any]:
    """Constants for a file, six digits each."""

    def rounded(values: Any) -> Any:
        return [rounded(each) for each in values] if isinstance(values, list) else float(f"{values:.6g}")

    return {name: [rounded(each.tolist()) for each in getattr(constants, name)] for name in PARTS}


def from_lists(masked: MaskedModel, found: Mapping[str, Any]) -> Activations:
    """The constants of a file.

    Raises:
        UserError: they are not those of this model's writers.
    """
    try:
        parts = {name: [torch.tensor(each, dtype=torch.float32) for each in found[name]] for name in PARTS}
        shapes = {name: [tuple(each.shape) for each in parts[name]] for name in PARTS}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The constants of the circuit cannot be read: {error}.") from error
    if shapes != _shapes(masked.graph):
        raise UserError("The constants of the circuit are not those of this model's writers.")
    with torch.no_grad():
        return activations_of(masked, parts)


def _shapes(graph: CircuitGraph) -> dict[str, list[tuple[int, ...]]]:
    config = graph.config
    heads = (config.d_model,) if graph.one_writer else (config.num_heads, config.head_dim)
    ffns = [
        (config.d_model,) if group.writes == (f"m{group.layer}",) else (len(group.writes), config.d_model)
        for group in graph.groups
        if group.kind == "ffn"
    ]
    tables = 2 if config.positions == "learned" else 1
    return {
        "embeddings": [(1, 1, config.d_model)] * tables,
        "heads": [(1, 1, *heads)] * config.num_layers,
        "ffns": [(1, 1, *each) for each in ffns],
    }
