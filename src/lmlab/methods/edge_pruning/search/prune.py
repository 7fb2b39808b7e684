"""Find a circuit by training gates on its edges (Bhaskar et al. 2024, section 3), through the one training loop.

Shapes: B examples, E edges, W writers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmlab.data import Batch
from lmlab.distributed import world
from lmlab.errors import LmlabError
from lmlab.methods.edge_pruning.config import EdgePruningConfig
from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.gates import Gates
from lmlab.methods.edge_pruning.masking.numbers import loader_of
from lmlab.methods.edge_pruning.search.trials import Refined, Trials, refine, total_cost, trim, widen
from lmlab.models.internals.gates import probability_open
from lmlab.progress import progress
from lmlab.train import (
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    StepOutput,
    Trainer,
    TrainerConfig,
)

_RUNAWAY = 1e3  # beside such multipliers the distance no longer counts
_OFF_TARGET = 0.01  # of all edges: a circuit of another size than was asked for
_RESTARTS = 3  # trainings, where what is stuck can be told; each costs as much as the first
# Of the empty circuit's distance: from 0.9 on a circuit is as good as none; with less than 0.001, and three quarters of
# the edges at most, it is all that the model does, and an edge of it costs next to nothing.
_COLLAPSED, _EXACT, _EXACT_SHARE, _EXACT_PRICE = 0.9, 1e-3, 0.75, 1e-5
# Each edge is tried on graphs of up to so many, on as many examples as 8 TFLOP allow; fewer than 32 decide by chance.
_MOST_EDGES, _MOST_ARITHMETIC, _LEAST_TRIED = 4000, 8e12, 32
# Of a warm start: the size where none is asked for, how log alpha falls with the logarithm of the rank, and where it
# ends: such a gate is still open in 8 % of draws, so that it can learn.
_WARM_SHARE, _WARM_SLOPE, _WARM_LOW = 0.05, 1.5, -4.0


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        kept_E: the circuit's edges, cleaned.
        scores_E: by what edges are ranked, higher is more.
        num_raw: edges before cleaning.
        warnings: for the user.
        converged: the circuit is better than the empty one, and no single edge that was added or removed improves the
            price; False also where there are doubts without trials. None where single edges were not tried and nothing
            speaks against the circuit: it is not known. `figures` say how many were tried.
        figures: of the search.
    """

    kept_E: Tensor
    scores_E: Tensor
    num_raw: int
    warnings: tuple[str, ...] = ()
    converged: bool | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[bool, float]:
        """What circuits of several trainings are chosen by, least first."""
        collapsed = self.figures["distance"] >= _COLLAPSED * self.figures["empty_distance"]
        return collapsed, self.figures["loss"]


class PruningStep:
    """The step function: the distance of the masked model, and the penalty of its edges."""

    def __init__(self, task: Counterfactuals, config: EdgePruningConfig, costs_E: Tensor | None = None) -> None:
        self.task, self.config = task, config
        self.costs_E = None if costs_E is None else costs_E.to(task.device)
        self.scale = task.empty_distance if config.normalize else 1.0
        self._drawn: tuple[Tensor, ...] | None = None

    def __call__(self, gates: Gates, batch: Batch) -> StepOutput:
        """The loss of some examples."""
        index_B, config = batch["example"].cpu(), self.config
        if config.mask_samples == "per_example":
            z_BE = gates(len(index_B))
        else:  # the same for all parts of the batch
            self._drawn = self._drawn or gates.draw(1)
            z_BE = gates(1, self._drawn)
        distance_B = self.task.gap(self.task.masked(self.task.inputs(index_B), z_BE), index_B) / self.scale
        open_BE = gates.open() if config.estimator == "expected" else z_BE
        open_ = (open_BE if self.costs_E is None else open_BE * self.costs_E).mean()
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
                # the price is whole after 30 % of the steps
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
        self._drawn = None
        return {}


def find_by_pruning(
    task: Counterfactuals,
    config: EdgePruningConfig,
    seed: int = 0,
    directory: str | Path | None = None,
    warm_E: Tensor | None = None,
    costs_E: Tensor | None = None,
) -> Found:
    """Train gates, decide them, clean and polish the circuit.

    Where each edge can be tried, edges are then dropped and added one at a time until no single one improves the
    price, from the circuit that the gates gave and from the whole graph; the better is taken. Further trainings follow
    while the result is stuck, up to `restarts`.

    Arguments:
        warm_E: scores of another method; gates begin half open at the rank of the size asked for, and more so above it.
        costs_E: how many prices each edge costs, in price mode; by default one.
        directory: keeps metrics and checkpoints, from which a training that was stopped goes on; a temporary one by
            default.

    Raises:
        LmlabError: the loss is not finite.
        Interrupted: stopped by a signal; a checkpoint was written.
    """
    directory = None if directory is None else Path(directory)
    small = each_can_be_tried(task, config)
    best: Found | None = None
    for number in range(config.restarts or (_RESTARTS if small else 1)):
        if best is not None and best.converged and config.restarts is None:
            break
        place = None if directory is None else directory / f"training-{number}"
        with tempfile.TemporaryDirectory() as temporary:
            gates = train_gates(task, config, seed + number, place or Path(temporary), warm_E, costs_E)
        found = decide(task, config, gates, small, costs_E)
        if best is None or found.rank < best.rank:
            best = found
    assert best is not None
    return best


def each_can_be_tried(task: Counterfactuals, config: EdgePruningConfig) -> bool:
    """Whether the circuit is polished, and the graph small enough to try each of its edges."""
    if config.polish is False or config.num_edges is not None or config.node_gates == "only":
        return False
    return task.masked.graph.num_edges <= _MOST_EDGES and _trial_examples(task) >= min(_LEAST_TRIED, len(task.examples))


def _trial_examples(task: Counterfactuals) -> int:
    """On how many examples each edge of the graph can be tried in reasonable time."""
    graph, tokens = task.masked.graph, task.examples.clean.shape[1]
    example = 2 * graph.config.num_parameters(active=True, embedding=False) * tokens * graph.num_edges
    return min(len(task.examples), int(_MOST_ARITHMETIC / max(1, example)))


def _fewer(task: Counterfactuals) -> Counterfactuals:
    """The task on as many examples as each edge can be tried on, spread over all."""
    count, all_ = _trial_examples(task), len(task.examples)
    if count == all_:
        return task
    index = torch.arange(count) * all_ // count
    return task.on(task.examples.take(index))


def train_gates(
    task: Counterfactuals,
    config: EdgePruningConfig,
    seed: int,
    directory: Path,
    warm_E: Tensor | None = None,
    costs_E: Tensor | None = None,
) -> Gates:
    """Train gates on a task, from the newest checkpoint in the directory if there is one."""
    graph, generator, here = task.masked.graph, torch.Generator().manual_seed(seed), world()

    def begin(count: int) -> Tensor:
        return config.init_log_alpha + config.init_std * torch.randn(count, generator=generator)

    edges = None if config.node_gates == "only" else begin(graph.num_edges)
    if edges is not None and warm_E is not None:
        edges += _warm(warm_E, config) - config.init_log_alpha
    gates = Gates(
        edges,
        graph.edge_writers,
        None if config.node_gates == "none" else begin(len(graph.writers)),
        config.sampler == "uniform",
    )
    batch = min(config.batch_size, len(task.examples) // here.size * here.size)
    trainer = Trainer(
        gates,
        PruningStep(task, config, costs_E),
        loader_of(len(task.examples), config.steps, batch, seed, here.rank, here.size),
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
    whole = Gates(tensors.get("edges"), tensors["edge_writers"], tensors.get("nodes"), gates.uniform)
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


def decide(
    task: Counterfactuals,
    config: EdgePruningConfig,
    gates: Gates,
    small: bool | None = None,
    costs_E: Tensor | None = None,
) -> Found:
    """From gates to edges: keep the highest, as many as are open in the mean; clean; polish.

    Arguments:
        small: each edge can be tried; by default that is found out.
    """
    graph, empty = task.masked.graph, task.empty_distance
    constant = writes_constants(task.masked.model)
    with torch.no_grad():
        open_E, scores_E = gates.open().cpu(), gates.scores().cpu()
    warnings, healthy = _doubts(gates, open_E, config)
    if not bool(scores_E.isfinite().all()):
        raise LmlabError("The gates are not finite.", "Lower the learning rates.")
    count = config.num_edges or round(float(open_E.sum()))
    kept_E = torch.zeros(graph.num_edges, dtype=torch.bool)
    kept_E[scores_E.argsort(descending=True, stable=True)[: min(count, graph.num_edges)]] = True
    raw = int(kept_E.sum())
    kept_E = clean(graph, kept_E, task.ablation, constant)
    decided, price = task.mean_distance(kept_E), config.edge_price(graph.num_edges)
    tried, settled = 0, None
    if each_can_be_tried(task, config) if small is None else small:
        found = _polish(task, config, kept_E, scores_E, price * empty, costs_E)
        kept_E, tried, settled = found.kept_E, found.tried, found.settled
        # what was tried counts for more than what gates say
        scores_E = scores_E + kept_E * float(scores_E.max() - scores_E.min() + 1)
    elif config.polish or (config.polish is None and config.price is not None and config.num_edges is None):
        kept_E, settled = trim(task, kept_E, price * empty)
        kept_E = clean(graph, kept_E, task.ablation, constant)
    distance, soft = task.mean_distance(kept_E), task.mean_distance(open_E)
    collapsed = distance >= _COLLAPSED * empty
    if collapsed:
        warnings.append(
            f"The circuit is no better than the empty one (distance {distance:.3g} against {empty:.3g}); try a lower"
            " price or target, another seed, or more steps."
        )
    if settled is False:
        warnings.append(
            "The search ended while single edges still improved the price; try more steps, or another seed."
        )
    # a few times worse, and by more than a small distance varies
    if settled is None and decided > 3 * soft + 0.05 * max(1.0, empty):
        warnings.append(
            f"Decided, the circuit is much worse than its gates were (distance {decided:.3g} against {soft:.3g});"
            " train longer, or polish it."
        )
    loss = distance / empty + price * total_cost(kept_E, costs_E)
    figures = {"distance": distance, "empty_distance": empty, "soft_distance": soft, "loss": loss, "price": price}
    figures |= {"decided_distance": decided, "single_edges_tried": tried}
    if tried:
        figures["tried_on_examples"] = _trial_examples(task)
    # gates that are off their target do not matter where every edge was tried after them, but the circuit's size does
    fine = settled if settled is not None and tried else healthy and settled is not False
    share, target = float(kept_E.float().mean()), _target(config)
    if target is not None and share > 1 - target + _OFF_TARGET:
        fine = False
        if healthy:
            warnings.append(f"The circuit keeps {share:.4f} of the edges, where the target leaves {1 - target:.4f}.")
    converged = False if collapsed or not fine else True if tried else None
    return Found(kept_E, scores_E, raw, tuple(warnings), converged, figures)


def _polish(
    task: Counterfactuals,
    config: EdgePruningConfig,
    kept_E: Tensor,
    scores_E: Tensor,
    price: float,
    costs_E: Tensor | None = None,
) -> Refined:
    """The best circuit that single trials reach from what the gates gave, and from the whole graph."""
    task = _fewer(task)
    trials, empty, whole_E = Trials(task), task.empty_distance, torch.ones_like(kept_E)
    most = None if config.target is None or config.target >= 1 else round((1 - config.target) * len(kept_E))
    with progress("single edges", None, "trials") as advance:
        if config.price is None and most is not None:
            return refine(trials, kept_E, scores_E, price, most=max(most, int(kept_E.sum())), advance=advance)
        if not config.own_price and costs_E is None:
            # a circuit that leaves nothing and is much smaller than the graph is what the model does; nothing is
            # gained by giving up some of it for a price that nobody asked for
            exact = refine(trials, whole_E, scores_E, _EXACT_PRICE * empty, advance=advance)
            if exact.distance <= _EXACT * empty and int(exact.kept_E.sum()) <= _EXACT_SHARE * len(kept_E):
                other = refine(trials, kept_E, scores_E, _EXACT_PRICE * empty, advance=advance)
                return min(exact, other, key=lambda each: _worth(each, _EXACT_PRICE * empty, empty))
        starts = [kept_E, whole_E]
        if costs_E is not None:  # edges that cost more may be replaced all at once only
            starts.append(kept_E & (costs_E <= 1))
            starts.append(whole_E & (costs_E <= 1))
        found = [refine(trials, start_E, scores_E, price, advance=advance, costs_E=costs_E) for start_E in starts]
        best = min(found, key=lambda each: _worth(each, price, empty, costs_E))
        return widen(trials, best, scores_E, price, costs_E=costs_E)


def _worth(found: Refined, price: float, empty: float, costs_E: Tensor | None = None) -> tuple[bool, float]:
    """What circuits are chosen by, least first: one that is no better than none is never preferred."""
    return found.distance >= _COLLAPSED * empty, found.loss(price, costs_E)


def _doubts(gates: Gates, open_E: Tensor, config: EdgePruningConfig) -> tuple[list[str], bool]:
    warnings = []
    scores = gates.scores()
    if float(scores.max() - scores.min()) < 1e-3:  # of log alpha, which a single step moves by more
        warnings.append("All gates are equal: nothing was learned. Raise the learning rate or the number of steps.")
    if float(gates.edge_constraint.multipliers.detach().abs().max()) > _RUNAWAY:
        warnings.append(
            "The multipliers ran away (above 1,000). Lower lambda_learning_rate, or lengthen sparsity_warmup."
        )
    sparsity = 1 - float(open_E.mean())
    target = _target(config)
    if target is not None and abs(sparsity - target) > _OFF_TARGET:
        warnings.append(
            f"The sparsity reached is {sparsity:.4f}, the target {target:.4f}. Train longer, or raise"
            " lambda_learning_rate."
        )
    return warnings, not warnings


def _target(config: EdgePruningConfig) -> float | None:
    """The sparsity of edges that is asked for; None for none, one beyond reach, and targets of writers."""
    reachable = config.target is not None and config.target <= 1 and config.node_gates != "only"
    return config.target if reachable else None
