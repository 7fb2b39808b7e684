"""Find a circuit by training gates on its edges (Bhaskar et al. 2024, section 3), through the one training loop.

Shapes: B examples, E edges, W writers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmlab.data import Batch, Loader
from lmlab.distributed import world
from lmlab.errors import LmlabError
from lmlab.methods.edge_pruning.config import EdgePruningConfig
from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.gates import Gates, probability_open
from lmlab.train import (
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    StepOutput,
    Trainer,
    TrainerConfig,
)

_RUNAWAY = 1e3
_OFF_TARGET = 0.01
_WARM_SHARE, _WARM_SLOPE, _WARM_LOW = 0.05, 1.5, -4.0


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        kept_E: the circuit's edges, cleaned.
        scores_E: by what edges are ranked, higher is more.
        num_raw: edges before cleaning.
        warnings: for the user; `converged` is false where the training itself is in doubt.
        figures: of the search.
    """

    kept_E: Tensor
    scores_E: Tensor
    num_raw: int
    warnings: tuple[str, ...] = ()
    converged: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)


class _Numbers:
    """Rows that only say which example they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example": np.int64(index)}


class PruningStep:
    """The step function: the distance of the masked model, and the penalty of its edges."""

    def __init__(self, task: Counterfactuals, config: EdgePruningConfig) -> None:
        self.task, self.config = task, config
        self.scale = task.empty_distance if config.normalize else 1.0

    def __call__(self, gates: Gates, batch: Batch) -> StepOutput:
        """The loss of some examples."""
        index_B, config = batch["example"].cpu(), self.config
        rows = len(index_B) if config.mask_samples == "per_example" else 1
        z_BE = gates(rows)
        distance_B = self.task.distance(self.task.masked(self.task.inputs(index_B), z_BE), index_B) / self.scale
        open_ = gates.open().mean() if config.estimator == "expected" else z_BE.mean()
        penalty = self._penalty(gates, open_)
        count = torch.tensor(float(len(index_B)))
        total = distance_B.sum()
        return StepOutput(
            total + penalty * count,
            count,
            {"distance": (total.detach(), count), "sparsity": ((1 - open_.detach()) * count, count)},
        )

    def _penalty(self, gates: Gates, open_: Tensor) -> Tensor:
        config = self.config
        # on the device, in fp64 as a processor would have it: to read the numbers would hold up a GPU twice a step
        wide = torch.float32 if gates.num_steps.device.type == "mps" else torch.float64
        progress = (gates.num_steps.to(wide) / (config.sparsity_warmup * config.steps)).clamp(max=1.0)
        if config.price is not None:
            penalty = (
                ((progress * config.sparsity_warmup / 0.3).clamp(max=1.0) * config.price).to(open_.dtype)
                * open_
                * self.task.masked.graph.num_edges
            )
        else:
            assert config.target is not None
            begun = gates.begun.to(wide)
            linear = begun + (config.target - begun) * progress
            logarithmic = 1 - (1 - begun) ** (1 - progress) * max(0.0, 1 - config.target) ** progress
            target = linear if config.sparsity_schedule == "linear" else logarithmic
            penalty = gates.edge_constraint(1 - open_, target.to(open_.dtype))
        if config.node_target is not None and gates.nodes is not None:
            penalty = penalty + gates.node_constraint(
                1 - probability_open(gates.nodes).mean(), (config.node_target * progress).to(open_.dtype)
            )
        return penalty

    def after_step(self, gates: Gates) -> Mapping[str, float]:
        """Count the step."""
        gates.num_steps += 1
        return {}


def find_by_pruning(
    task: Counterfactuals,
    config: EdgePruningConfig,
    seed: int = 0,
    directory: str | Path | None = None,
    warm_E: Tensor | None = None,
) -> Found:
    """Train gates, decide them, clean and polish the circuit.

    Arguments:
        warm_E: scores of another method; gates begin half open at the rank of the size asked for, and more so above it.
        directory: keeps metrics and checkpoints, from which a training that was stopped goes on; a temporary one by
            default.

    Raises:
        LmlabError: the loss is not finite.
        Interrupted: stopped by a signal; a checkpoint was written.
    """
    directory = None if directory is None else Path(directory)
    best: Found | None = None
    for number in range(config.restarts):
        place = None if directory is None else directory / f"training-{number}"
        found = _once(task, config, seed + number, place, warm_E)
        if best is None or found.figures["loss"] < best.figures["loss"]:
            best = found
    assert best is not None
    return best


def _once(
    task: Counterfactuals, config: EdgePruningConfig, seed: int, directory: Path | None, warm_E: Tensor | None
) -> Found:
    with tempfile.TemporaryDirectory() as temporary:
        gates = train_gates(task, config, seed, directory or Path(temporary), warm_E)
    return decide(task, config, gates)


def train_gates(
    task: Counterfactuals, config: EdgePruningConfig, seed: int, directory: Path, warm_E: Tensor | None = None
) -> Gates:
    """Train gates on a task, from the newest checkpoint in the directory if there is one."""
    graph, generator, here = task.masked.graph, torch.Generator().manual_seed(seed), world()

    def begin(count: int) -> Tensor:
        return config.init_log_alpha + config.init_std * torch.randn(count, generator=generator)

    edges = None if config.node_gates == "only" else begin(graph.num_edges)
    if edges is not None and warm_E is not None:
        edges += _warm(warm_E, config) - config.init_log_alpha
    gates = Gates(edges, graph.edge_writers, None if config.node_gates == "none" else begin(len(graph.writers)))
    batch = min(config.batch_size, len(task.examples) // here.size * here.size)
    trainer = Trainer(
        gates,
        PruningStep(task, config),
        Loader(_Numbers(len(task.examples)), batch, seed, here.rank, here.size),
        _trainer_config(config, batch, str(task.device)),
        directory,
    )
    trainer.fit()
    return _whole(gates).eval()


def _warm(scores_E: Tensor, config: EdgePruningConfig) -> Tensor:
    """Where gates begin by their rank: half open at the size that the circuit shall have, and more so the higher the
    rank.
    """
    edges = len(scores_E)
    size = config.num_edges or (
        max(1.0, (1 - config.target) * edges) if config.target is not None else _WARM_SHARE * edges
    )
    rank_E = torch.empty(edges)
    rank_E[scores_E.argsort(descending=True)] = torch.arange(1, edges + 1, dtype=torch.float32)
    return (_WARM_SLOPE * (size / rank_E).log()).clamp(_WARM_LOW, config.init_log_alpha)


def _whole(gates: Gates) -> Gates:
    """The same in every process, where each trained a share."""
    if world().size == 1:
        return gates
    tensors = {
        name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in gates.state_dict().items()
    }
    whole = Gates(tensors.get("edges"), tensors["edge_writers"], tensors.get("nodes"))
    whole.load_state_dict(tensors)
    return whole


def _trainer_config(config: EdgePruningConfig, batch: int, device: str) -> TrainerConfig:
    share = batch // world().size
    rows = (
        None
        if config.micro_batch_size is None
        else max(each for each in range(1, min(config.micro_batch_size, share) + 1) if share % each == 0)
    )
    lambdas = ParameterGroup(
        match="constraint", learning_rate=config.lambda_learning_rate, weight_decay=config.weight_decay
    )
    gates = ParameterGroup(match="edges|nodes", weight_decay=config.weight_decay)
    return TrainerConfig(
        steps=config.steps,
        batch_size=batch,
        micro_batch_size=rows,
        optimizer=OptimizerConfig(
            learning_rate=config.learning_rate, weight_decay=0, betas=(0.9, 0.999), groups=(lambdas, gates)
        ),
        schedule=ScheduleConfig(
            kind="linear", warmup_fraction=config.warmup_fraction, final_fraction=config.final_fraction
        ),
        parallel=config.parallel,
        clip_norm=config.clip_norm,
        precision="fp32",
        device=device,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=1,
    )


def decide(task: Counterfactuals, config: EdgePruningConfig, gates: Gates) -> Found:
    """From gates to edges: keep the highest, as many as are open in the mean; clean; polish."""
    graph = task.masked.graph
    constant = writes_constants(task.masked.model)
    with torch.no_grad():
        open_E, scores_E = gates.open().cpu(), gates.scores().cpu()
    warnings, converged = _doubts(gates, open_E, config)
    if not bool(scores_E.isfinite().all()):
        raise LmlabError("The gates are not finite.", "Lower the learning rates.")
    count = config.num_edges or round(float(open_E.sum()))
    kept_E = torch.zeros(graph.num_edges, dtype=torch.bool)
    kept_E[scores_E.argsort(descending=True, stable=True)[: min(count, graph.num_edges)]] = True
    raw = int(kept_E.sum())
    kept_E = clean(graph, kept_E, task.ablation, constant)
    if config.polish or (config.polish is None and config.num_edges is None and int(kept_E.sum()) <= 200):
        price = (config.price or 0.005) * task.empty_distance
        kept_E = polish(task, kept_E, scores_E, price, config.readd)
        kept_E = clean(graph, kept_E, task.ablation, constant)
    distance, empty = task.mean_distance(kept_E), task.empty_distance
    soft = task.mean_distance(open_E)
    if distance >= 0.9 * empty:
        warnings.append(
            f"The circuit is no better than the empty one (distance {distance:.3g} against {empty:.3g}); try another"
            " seed, or more steps."
        )
    if distance > 3 * soft + 0.05 * max(1.0, empty):
        warnings.append(
            f"Decided, the circuit is much worse than its gates were (distance {distance:.3g} against {soft:.3g});"
            " train longer, or polish it."
        )
    loss = distance / empty + (config.price or 0.0) * int(kept_E.sum())
    figures = {"distance": distance, "empty_distance": empty, "soft_distance": soft, "loss": loss}
    return Found(kept_E, scores_E, raw, tuple(warnings), converged, figures)


def _doubts(gates: Gates, open_E: Tensor, config: EdgePruningConfig) -> tuple[list[str], bool]:
    warnings = []
    scores = gates.scores()
    if float(scores.max() - scores.min()) < 1e-3:
        warnings.append("All gates are equal: nothing was learned. Raise the learning rate or the number of steps.")
    if float(gates.edge_constraint.multipliers.detach().abs().max()) > _RUNAWAY:
        warnings.append(
            "The multipliers ran away (above 1,000). Lower lambda_learning_rate, or lengthen sparsity_warmup."
        )
    sparsity = 1 - float(open_E.mean())
    if (
        config.target is not None
        and config.target <= 1
        and config.node_gates != "only"
        and abs(sparsity - config.target) > _OFF_TARGET
    ):
        warnings.append(
            f"The sparsity reached is {sparsity:.4f}, the target {config.target:.4f}. Train longer, or raise"
            " lambda_learning_rate."
        )
    return warnings, not warnings


def polish(task: Counterfactuals, kept_E: Tensor, scores_E: Tensor, price: float, readd: int = 0) -> Tensor:
    """Drop edges, the lowest score first, while the distance rises by less than a price each; then win back dropped
    ones that are worth it.
    """
    kept_E = kept_E.clone()
    distance = task.mean_distance(kept_E)
    for edge in sorted(kept_E.nonzero().flatten().tolist(), key=lambda number: float(scores_E[number])):
        kept_E[edge] = False
        without = task.mean_distance(kept_E)
        if without - distance < price:
            distance = without
        else:
            kept_E[edge] = True
    if readd:
        outside = (~kept_E).nonzero().flatten()
        for edge in outside[scores_E[outside].argsort(descending=True)][:readd].tolist():
            kept_E[edge] = True
            with_it = task.mean_distance(kept_E)
            if distance - with_it > price:
                distance = with_it
            else:
                kept_E[edge] = False
    assert math.isfinite(distance)
    return kept_E
