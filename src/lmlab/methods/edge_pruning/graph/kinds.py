"""Kinds of edges, by which circuits of different graphs can be set side by side: rungs of a ladder, for instance.

Shapes: E edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph

_WRITERS = {"attention": "head", "ffn": "feed-forward"}
_READERS = {"q": "query", "k": "key", "v": "value", "ffn": "feed-forward", "output": "output"}


def edge_kinds(graph: CircuitGraph) -> tuple[list[str], Tensor]:
    """What kinds there are, such as `head to key`, and the number of that of each edge, [E]."""
    writers = ["embedding"] * graph.first_writer
    readers = []
    for group in graph.groups:
        writers += [_WRITERS[group.kind] for _ in group.writes]
        for name in group.readers:
            part = name.partition("@")[0].rpartition(".")[2] if group.kind == "attention" else group.kind
            readers.append(_READERS[part])
    kinds = [f"{a} to {b}" for a in ("embedding", "head", "feed-forward") for b in _READERS.values()]
    pairs = zip(graph.edge_writers.tolist(), graph.edge_readers.tolist(), strict=True)
    return kinds, torch.tensor([kinds.index(f"{writers[w]} to {readers[r]}") for w, r in pairs])


def count_kinds(circuit: Circuit) -> dict[str, tuple[int, int]]:
    """Of each kind the edges of the circuit, and those of its graph."""
    kinds, number_E = edge_kinds(circuit.graph)
    kept, all_ = (torch.bincount(each, minlength=len(kinds)) for each in (number_E[circuit.kept_E], number_E))
    return {kind: (int(kept[n]), int(all_[n])) for n, kind in enumerate(kinds) if all_[n]}


def mean_depths(circuit: Circuit) -> tuple[float, float]:
    """How deep writers and readers of the circuit stand in the mean: 0 for embeddings, 1 for the output."""
    graph = circuit.graph
    deepest = graph.config.num_layers + 1
    writers = [0] * graph.first_writer + [group.layer + 1 for group in graph.groups for _ in group.writes]
    readers = [group.layer + 1 for group in graph.groups for _ in group.readers]
    places = ((graph.edge_writers, writers), (graph.edge_readers, readers))
    found = [float(torch.tensor(levels)[ends_E[circuit.kept_E]].double().mean()) / deepest for ends_E, levels in places]
    return found[0], found[1]
