"""Edges of a circuit that carry nothing, or whose reader nobody reads, taken out; the circuit's output stays
the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.config import Ablation
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.models import Transformer


def clean(graph: CircuitGraph, kept_E: Tensor, ablation: Ablation = "interchange", constant: bool = True) -> Tensor:
    """Take out dead edges until nothing changes.

    An edge is dead if nobody reads what its reader's part writes, or if its writer gives on the circuit what takes its
    place on pruned edges. Under interchange that is a writer without any input edge. Under zero ablation it is a head
    without a value edge or a feed-forward network without an edge, unless biases let them write a constant. Under mean
    and optimal ablation no writer is sure to give its mean or its constant.

    Arguments:
        kept_E: True for the edges of the circuit.
        constant: whether parts that read zeros may write something else (`writes_constants`).

    Returns:
        [E].
    """
    kept_E, cells = kept_E.clone(), len(graph.writers) * graph.num_spans
    while True:
        before = int(kept_E.sum())
        informative, read = _informative(graph, kept_E, ablation, constant), torch.zeros(cells, dtype=torch.bool)
        read[graph.edge_cells[kept_E]] = True
        kept_E &= informative[graph.edge_cells]
        for group in graph.groups:
            block = _block(graph, kept_E, group.first_edge, len(group.readers), group.reads)
            for number in range(len(group.readers)):
                if group.kind != "output" and not bool(read[graph.cells(group, number)].any()):
                    block[number] = False
        if int(kept_E.sum()) == before:
            return kept_E


def writes_constants(model: Transformer) -> bool:
    """Whether a sub-layer of the model that reads zeros can write something else: any of its biases, or those of norms,
    is not zero.
    """
    return any(bool(parameter.any()) for name, parameter in model.named_parameters() if name.endswith("bias"))


def _block(graph: CircuitGraph, kept_E: Tensor, first: int, readers: int, reads: int) -> Tensor:
    return kept_E[first : first + readers * reads].view(readers, reads)


def _informative(graph: CircuitGraph, kept_E: Tensor, ablation: Ablation, constant: bool) -> Tensor:
    """True for the cells that may differ from what takes their place."""
    found = torch.ones(len(graph.writers), graph.num_spans, dtype=torch.bool)
    if ablation in ("mean", "optimal") or (ablation == "zero" and constant) or not graph.options.embedding_nodes:
        return found.flatten()
    found[graph.first_writer :] = False
    for group in graph.groups:
        if graph.frozen and group.kind == "attention":  # the scale of the clean run alone makes a head differ
            found[group.first_write : group.first_write + len(group.writes)] = True
        fed = _block(graph, kept_E, group.first_edge, len(group.readers), group.reads).any(1)
        first_value = (
            graph.config.num_heads + graph.config.num_kv_heads
            if group.kind == "attention" and ablation == "zero"
            else 0
        )
        for number in torch.nonzero(fed).flatten().tolist():
            if group.kind != "output" and number % group.parts >= first_value:
                found.view(-1)[graph.cells(group, number)] = True
    return found.flatten()
