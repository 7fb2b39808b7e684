"""Trials of single edges, each computing only what lies behind the edge, and the search for circuits by such trials.

Shapes: E edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.graph.graph import Group
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals

_ROUNDS = 8  # over all edges; what still changes then is not settled, and is said to be so


class Trials:
    """The distance of circuits that differ from the one before in readers of one group and those after it only.

    Passes go on from what the writers before that group have written, so groups are gone through from the output back.
    """

    def __init__(self, task: Counterfactuals) -> None:
        self.task, self.graph = task, task.masked.graph
        self.constant = writes_constants(task.masked.model)
        self._batches = [(index, task.inputs(index)) for index in task.batches()]
        self._stores = [task.masked.new_store(inputs) for _, inputs in self._batches]

    @torch.no_grad()
    def distance(self, kept_E: Tensor, first_group: int = 0) -> float:
        """The mean distance; what stands before `first_group` is that of the pass before."""
        masked = self.task.masked
        z = kept_E[None].to(masked.model.embedding.weight)
        parts = [
            self.task.gap(masked(inputs, z, store=store, first_group=first_group), index)
            for (index, inputs), store in zip(self._batches, self._stores, strict=True)
        ]
        return float(torch.cat(parts).mean())

    def backward(self) -> Iterator[tuple[int, Group]]:
        """The groups of readers from the output back, with their numbers."""
        yield from reversed(list(enumerate(self.graph.groups)))

    def is_read(self, kept_E: Tensor, group: Group, reader: int) -> bool:
        """Whether anyone reads what follows from a reader."""
        return group.kind == "output" or bool(
            torch.isin(self.graph.edge_cells[kept_E], torch.tensor(self.graph.cells(group, reader))).any()
        )

    def clean(self, kept_E: Tensor) -> Tensor:
        """Without dead edges."""
        return clean(self.graph, kept_E, self.task.ablation, self.constant)


@dataclass(frozen=True)
class Refined:
    """What a search by single edges gives.

    Attributes:
        kept_E: the circuit, cleaned.
        distance: its own.
        settled: no single edge that was tried improves the price any more.
        tried: how many edges the last round tried, in or out.
    """

    kept_E: Tensor
    distance: float
    settled: bool
    tried: int

    def loss(self, price: float, costs_E: Tensor | None = None) -> float:
        """Distance, and what the edges cost."""
        return self.distance + price * total_cost(self.kept_E, costs_E)


def total_cost(kept_E: Tensor, costs_E: Tensor | None) -> float:
    """What edges cost in prices: one each where nothing else is said."""
    return float(kept_E.sum() if costs_E is None else costs_E[kept_E].sum())


def refine(
    trials: Trials,
    kept_E: Tensor,
    scores_E: Tensor,
    price: float,
    candidates_E: Tensor | None = None,
    most: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    costs_E: Tensor | None = None,
) -> Refined:
    """Drop edges whose absence costs less than the price, and add those that are worth more, one at a time, until
    neither changes anything.

    Arguments:
        scores_E: edges of a group are tried in their order, the lowest to be dropped first, the highest to be added.
        price: the distance that one edge is worth.
        candidates_E: True for edges that may be added; by default all.
        most: so many edges at most.
        costs_E: how many prices each edge costs; by default one.
    """
    kept_E, tried, settled = kept_E.clone(), 0, False
    for _ in range(_ROUNDS):
        before, tried = kept_E.clone(), 0
        for add in (False, True):
            distance = trials.distance(kept_E)
            for number, group in trials.backward():
                for reader in range(len(group.readers)):
                    first = group.first_edge + reader * group.reads
                    edges = torch.arange(first, first + group.reads)
                    inside = kept_E[edges]
                    wanted = ~inside if add else inside
                    if add and candidates_E is not None:
                        wanted = wanted & candidates_E[edges]
                    if not bool(wanted.any()):
                        continue
                    if not trials.is_read(kept_E, group, reader):
                        # nothing reads what it would change: the edge is dead, and adding it alone changes nothing
                        kept_E[edges] = False
                        tried += int(wanted.sum())
                        continue
                    found = edges[wanted]
                    for edge in found[scores_E[found].argsort(descending=add, stable=True)].tolist():
                        if add and most is not None and int(kept_E.sum()) >= most:
                            break
                        kept_E[edge] = add
                        changed = trials.distance(kept_E, number)
                        own = price if costs_E is None else price * float(costs_E[edge])
                        if (distance - changed > own) if add else (changed - distance < own):
                            distance = changed
                        else:
                            kept_E[edge] = not add
                        tried += 1
                        advance(1)
        kept_E = trials.clean(kept_E)
        if torch.equal(kept_E, before):
            settled = True
            break
    return Refined(kept_E, trials.distance(kept_E), settled, tried)


@torch.enable_grad()
def slopes(task: Counterfactuals, kept_E: Tensor, level: float = 0.0) -> Tensor:
    """What the distance would lose to first order by each edge's opening, a mean over examples, [E].

    Arguments:
        level: pruned edges are this far open, so that edges of a path that is wholly pruned see each other.
    """
    total_E = torch.zeros(len(kept_E), dtype=torch.float64)
    for index_B in task.batches():
        z = (kept_E.float() + level * (~kept_E).float())[None].to(task.masked.ones()).requires_grad_()
        distance = task.gap(task.masked(task.inputs(index_B), z), index_B).sum()
        total_E -= torch.autograd.grad(distance, z)[0][0].double().cpu()
    return total_E / len(task.examples)


def widen(
    trials: Trials,
    best: Refined,
    scores_E: Tensor,
    price: float,
    share: float = 1.0,
    costs_E: Tensor | None = None,
) -> Refined:
    """Add the edges whose opening promises most, as many as the circuit has, and drop again what is not worth its
    price: so paths can be won of which no single edge helps alone.

    Arguments:
        share: so many edges are added, as a share of those that the circuit has.
    """
    for level in (0.0, 0.5):
        gains_E = slopes(trials.task, best.kept_E, level).masked_fill(best.kept_E, -torch.inf)
        # of a small circuit a share may be one edge, and a path has several
        count = min(max(8, round(share * int(best.kept_E.sum()))), int((~best.kept_E).sum()))
        wider_E = best.kept_E.clone()
        wider_E[gains_E.argsort(descending=True, stable=True)[:count]] = True
        found = refine(trials, wider_E, scores_E, price, costs_E=costs_E)
        best = found if found.loss(price, costs_E) < best.loss(price, costs_E) - 1e-9 else best
    return best


def trim(task: Counterfactuals, kept_E: Tensor, price: float, rounds: int = 3) -> tuple[Tensor, bool]:
    """For graphs too large for single trials: drop together the edges that to first order are not worth the price, and
    add those that are, in halves until the measured distance agrees.

    Returns:
        the edges, and whether the last round found nothing to change.
    """
    kept_E, distance = kept_E.clone(), task.mean_distance(kept_E)
    for _ in range(rounds):
        changed_at_all = False
        for add in (False, True):
            gains_E = slopes(task, kept_E)
            wanted = (~kept_E & (gains_E > price)) if add else (kept_E & (gains_E < price))
            order = gains_E.masked_fill(~wanted, -torch.inf if add else torch.inf).argsort(descending=add, stable=True)
            count = int(wanted.sum())
            while count:
                trial_E = kept_E.clone()
                trial_E[order[:count]] = add
                changed = task.mean_distance(trial_E)
                if (distance - changed > price * count) if add else (changed - distance < price * count):
                    kept_E, distance, changed_at_all = trial_E, changed, True
                    break
                count //= 2
        if not changed_at_all:
            return kept_E, True
    return kept_E, False
