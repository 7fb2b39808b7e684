"""One ranking of edges for circuits of all sizes (Matryoshka attribution): scores are trained on soft masks of the best
k edges, with another k for each example.

Shapes: B examples, E edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.data import Batch
from lmlab.distributed import world
from lmlab.errors import LmlabError, UserError
from lmlab.methods.edge_pruning.config import Metric, RankingConfig
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.metrics import values
from lmlab.methods.edge_pruning.masking.numbers import fit_on_examples
from lmlab.methods.edge_pruning.measures import Ends
from lmlab.train import StepOutput

_HALVINGS = 50  # of an interval: as many as the digits of fp64 tell apart


class SoftTop(torch.autograd.Function):
    """z = sigmoid((s - t) / temperature) with the threshold t for which z sums to k, [B, E].

    Through t, dz_i / ds_j = c_i (1{i = j} - c_j / sum c) with c = z (1 - z) / temperature.
    """

    @staticmethod
    def forward(ctx: Any, scores_E: Tensor, k_B: Tensor, temperature: float) -> Tensor:
        wide_E, k_B = scores_E.double(), k_B.double()
        reach = 40 * temperature  # sigmoid(-40) adds up to nothing over any graph
        low_B = (wide_E.min() - reach).expand(len(k_B)).clone()
        high_B = (wide_E.max() + reach).expand(len(k_B)).clone()
        for _ in range(_HALVINGS):
            middle_B = (low_B + high_B) / 2
            many_B = torch.sigmoid((wide_E - middle_B[:, None]) / temperature).sum(1) > k_B
            low_B, high_B = torch.where(many_B, middle_B, low_B), torch.where(many_B, high_B, middle_B)
        z_BE = torch.sigmoid((wide_E - ((low_B + high_B) / 2)[:, None]) / temperature).to(scores_E)
        ctx.save_for_backward(z_BE)
        ctx.temperature = temperature
        return z_BE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (z_BE,) = ctx.saved_tensors
        c_BE = z_BE.double() * (1 - z_BE.double()) / ctx.temperature
        weighed_BE = c_BE * grad_outputs[0].double()
        shares_B1 = weighed_BE.sum(1, keepdim=True) / c_BE.sum(1, keepdim=True).clamp(min=1e-300)
        return (weighed_BE - c_BE * shares_B1).sum(0).to(z_BE), None, None


class Scores(nn.Module):
    """A score for each edge; all begin at 0."""

    def __init__(self, edges: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(edges))


class RankingStep:
    """The step function: what is asked of masked passes with as many edges as were drawn for each example."""

    def __init__(self, task: Counterfactuals, config: RankingConfig) -> None:
        self.task, self.config, self.scale = task, config, task.empty_distance
        self.metric: Metric = "logit_difference" if task.metric == "distance" else task.metric
        self.ends = None
        if config.objective != "distance":
            if not task.examples.has_answers:
                raise UserError(
                    f"The objective '{config.objective}' of a ranking needs examples with answers.",
                    "Set ranking.objective=distance.",
                )
            self.ends = Ends.of(task, self.metric)
            self.ends.require_ability()

    def __call__(self, model: Scores, batch: Batch) -> StepOutput:
        """The loss of some examples."""
        index_B, edges = batch["example"].cpu(), len(model.scores)
        draws_B = torch.rand(len(index_B), device=model.scores.device)
        k_B = (draws_B * math.log(edges)).exp() if self.config.sizes == "log" else 1 + draws_B * (edges - 1)
        z_BE = SoftTop.apply(model.scores, k_B, self.config.temperature)
        logits = self.task.masked(self.task.inputs(index_B), z_BE)
        count = torch.tensor(float(len(index_B)))
        if self.ends is None:
            loss_B = self.task.gap(logits, index_B) / self.scale
        else:
            low, high = (each[self.metric] for each in (self.ends.empty, self.ends.full))
            faithful_B = (values(self.task, self.task.outputs(logits), index_B, self.metric) - low) / (high - low)
            loss_B = -faithful_B if self.config.objective == "metric" else (1 - faithful_B).abs()
        return StepOutput(loss_B.sum(), count, {})

    def after_step(self, model: Scores) -> Mapping[str, float]:
        """Nothing is to be done."""
        return {}


def train_ranking(
    task: Counterfactuals, config: RankingConfig, seed: int = 0, directory: str | Path | None = None
) -> Tensor:
    """Train scores, the highest for the edges that come first, [E].

    Arguments:
        directory: keeps metrics and checkpoints, from which a training that was stopped goes on.

    Raises:
        UserError: the objective needs answers that the examples do not have.
        LmlabError: the scores are not finite, or several processes were started.
    """
    if world().size > 1:
        raise UserError("A ranking is trained by one process.", "Start it without torchrun.")
    scores = Scores(task.masked.graph.num_edges)
    fit_on_examples(
        scores,
        RankingStep(task, config),
        len(task.examples),
        config,
        task.device,
        seed,
        final_fraction=0.1,
        directory=None if directory is None else Path(directory) / "ranking",
        # gradients differ by orders of magnitude between sizes; Adam's steps do not depend on their scale
        clip_norm=1e9,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=1,
    )
    found = scores.scores.detach().cpu()
    if not bool(found.isfinite().all()):
        raise LmlabError("The scores are not finite.", "Lower ranking.learning_rate.")
    return found
