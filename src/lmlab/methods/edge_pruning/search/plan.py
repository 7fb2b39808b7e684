"""What a masked step needs in memory and arithmetic, before it is started."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.progress import with_unit


@dataclass(frozen=True)
class Plan:
    """Bytes of one step of a process, and its arithmetic.

    Attributes:
        weights: the frozen model, once.
        store: what all writers write, and its gradient: 2 W B T D.
        sublayers: what sub-layers keep for the backward pass; with recomputing, of one of them.
        cache: activations of all examples.
        flops: of the masked sums and the model, forward and backward.
    """

    weights: int
    store: int
    sublayers: int
    cache: int
    flops: float

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.store + self.sublayers + self.cache

    def lines(self, free: int | None = None) -> list[str]:
        """For the user; with what helps if it does not fit into so many bytes."""
        found = [
            f"Memory of a step: weights {with_unit(self.weights, 'B')}, store {with_unit(self.store, 'B')}, sub-layers"
            f" {with_unit(self.sublayers, 'B')}, cached activations {with_unit(self.cache, 'B')};"
            f" {with_unit(self.flops, 'FLOP')}."
        ]
        if free is not None and self.total > free:
            found.append(
                f"That is more than the {with_unit(free, 'B')} there are: take a smaller --batch-size or"
                " --micro-batch-size,"
                " --recompute, or fewer examples."
            )
        return found


def plan(
    graph: CircuitGraph,
    batch: int,
    length: int,
    examples: int,
    itemsize: int = 4,
    recompute: bool = False,
    cache_bytes: int = 4 * 2**30,
) -> Plan:
    """Plan a training step.

    Arguments:
        batch: examples at once.
        length: tokens of the longest example.
        examples: how many are cached, if they fit into `cache_bytes`.
        itemsize: bytes of a number.
        recompute: compute sub-layers again in the backward pass.
    """
    config, tokens = graph.config, batch * length
    width, heads = config.d_model, config.num_heads + 2 * config.num_kv_heads
    inner = config.head_dim * heads + config.num_heads * width
    attention, ffn = 2 * heads * width + inner, 2 * width + 3 * config.d_ff
    kept = max(attention, ffn) if recompute else config.num_layers * (attention + ffn)
    reads = sum(2 * len(group.readers) * group.reads * width for group in graph.groups)
    cache = (4 * config.num_layers + 2) * width * examples * length * itemsize
    return Plan(
        weights=config.num_parameters() * itemsize,
        store=2 * len(graph.writers) * tokens * width * itemsize,
        sublayers=kept * tokens * itemsize,
        cache=cache if cache <= cache_bytes else 0,
        flops=tokens
        * (
            # forward, backward for inputs and for gates; weights, below, have no gradient
            (4 if recompute else 3) * reads
            + (3 if recompute else 2) * 2 * config.num_parameters(active=True, embedding=False)
        ),
    )
