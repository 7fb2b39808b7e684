"""Circuits of nine sizes, as the Mechanistic Interpretability Benchmark (MIB) takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.clean import clean
from lmlab.methods.edge_pruning.graph.formats import their_edges, write_eap_ig

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of all edges."""


def write_submission(circuit: Circuit, directory: Path, rank: torch.Tensor) -> list[int]:
    """Write importances.json and a circuit for each size, named by its share of edges.

    Sizes are counted in their graph, where the edges to a shared key or value head are several: the highest edges are
    taken until the next would exceed the share, then dead ones are taken out.

    Arguments:
        rank: by what edges are ranked, higher is more, [E].

    Returns:
        edges of each circuit in their graph.

    Raises:
        UserError: the circuit has no scores, or writers that the format does not know.
    """
    if circuit.scores_E is None:
        raise UserError("The circuit has no scores, by which circuits of nine sizes could be made.")
    directory.mkdir(parents=True, exist_ok=True)
    write_eap_ig(circuit, directory / "importances.json")
    names = their_edges(circuit.graph)
    total = len({name for each in names for name in each})
    order = rank.argsort(descending=True, stable=True).tolist()
    counts = []
    for size in SIZES:
        kept_E, used = torch.zeros(len(names), dtype=torch.bool), set[str]()
        for number in order:
            more = set(names[number]) - used  # a union for each edge would take minutes on large graphs
            if len(used) + len(more) > int(size * total):
                break
            used |= more
            kept_E[number] = True
        kept_E = clean(circuit.graph, kept_E, circuit.ablation)
        write_eap_ig(replace(circuit, kept_E=kept_E), directory / f"{size}.json")
        counts.append(len({name for number in kept_E.nonzero().flatten().tolist() for name in names[number]}))
    return counts
