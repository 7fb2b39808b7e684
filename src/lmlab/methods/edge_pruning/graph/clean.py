"""Edges of a circuit that carry nothing, or whose reader nobody reads, taken out; the circuit's output stays
the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.config import Ablation
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph, Group
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
    kept_E = kept_E.clone()
    while True:
        before = int(kept_E.sum())
        informative, read = _informative(graph, kept_E, ablation, constant), set(graph.edge_writers[kept_E].tolist())
        for group in graph.groups:
            block = _block(graph, kept_E, group.first_edge, len(group.readers), group.reads)
            silent = [writer for writer in range(group.reads) if writer not in informative]
            block[:, silent] = False
            for number in range(len(group.readers)):
                if group.kind != "output" and not any(writer in read for writer in served(graph, group, number)):
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


def served(graph: CircuitGraph, group: Group, number: int) -> list[int]:
    """The writers that depend on a reader."""
    kind, reads, writes = group.kind, group.reads, group.writes
    if kind == "attention" and len(writes) > 1:
        heads, kv_heads = graph.config.num_heads, graph.config.num_kv_heads
        if (
            graph.config.qk_norm == "full" and number < heads + kv_heads
        ):  # one norm over the queries (keys) of all heads
            return list(range(reads, reads + heads))
        if number < heads:
            return [reads + number]
        share = heads // kv_heads
        first = (number - heads) % kv_heads * share
        return list(range(reads + first, reads + first + share))
    return list(range(reads, reads + len(writes)))


def _informative(graph: CircuitGraph, kept_E: Tensor, ablation: Ablation, constant: bool) -> set[int]:
    """The numbers of writers that may differ from what takes their place."""
    everyone = set(range(len(graph.writers)))
    if ablation in ("mean", "optimal") or (ablation == "zero" and constant) or not graph.options.embedding_nodes:
        return everyone
    found = set(range(graph.first_writer))
    frozen = graph.config.norm_position == "reordered" and not graph.one_writer
    for group in graph.groups:
        if frozen and group.kind == "attention":  # the scale of the clean run alone makes a head differ
            found |= set(range(group.reads, group.reads + len(group.writes)))
        fed = _block(graph, kept_E, group.first_edge, len(group.readers), group.reads).any(1)
        first_value = (
            graph.config.num_heads + graph.config.num_kv_heads
            if group.kind == "attention" and ablation == "zero"
            else 0
        )
        for number in torch.nonzero(fed).flatten().tolist():
            if number >= first_value:
                found |= set(served(graph, group, number))
    return found
