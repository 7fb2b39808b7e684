"""The page of a circuit: its graph to explore, figures, curves of several methods, the parts that have most edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmlab.config import flatten
from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.formats import node_of, shared_inputs
from lmlab.methods.edge_pruning.measures import areas, overlap
from lmlab.methods.edge_pruning.search.find import ranking
from lmlab.reports import Facts, Figure, Graph, Note, Page, Paragraph, Section, Series, Table, line_chart

_KINDS = (("query", "#b8527a", "q"), ("key", "#3f7f93", "k"), ("value", "#4f8a4f", "v"), ("other", "#8a8f98", ""))
_MOST_EDGES, _MOST_DRAWN = 4000, 20_000
_NAMES = {
    "distance": "distance to the model",
    "exact_match": "exact match",
    "logit_difference": "logit difference",
    "prefers_answer": "prefers the answer",
    "accuracy": "accuracy",
    "probability_difference": "probability difference",
    "cutoff_sharpness": "cutoff sharpness",
    "rank_correlation": "rank correlation",
    "faithfulness": "faithfulness",
}


def graph_block(circuit: Circuit) -> Graph:
    """The circuit's edges first, the highest score first, then others by score for the slider."""
    graph, scores_E = circuit.graph, circuit.scores_E
    rank_E = torch.zeros(graph.num_edges) if scores_E is None else ranking(circuit.about.get("method", ""), scores_E)
    order = (rank_E + circuit.kept_E * (float(rank_E.max() - rank_E.min()) + 1)).argsort(descending=True, stable=True)
    # a few more than the circuit has, for the slider; of a very large circuit not all
    wanted = circuit.num_edges if scores_E is None else max(20, 3 * circuit.num_edges)
    order = order[: min(wanted, max(_MOST_EDGES, min(circuit.num_edges, _MOST_DRAWN)))]
    places = {
        name: (group.layer + 1, 1 if group.kind == "attention" else 2)
        for group in graph.groups
        for name in group.writes
    }
    nodes = {name: (number, *places.get(name, (0, 0))) for number, name in enumerate(graph.writers)}
    group_of = {reader: group for group in graph.groups for reader in group.readers}
    edges = []
    for number in order.tolist():
        writer, reader = graph.edge(number)
        group, (node, part) = group_of[reader], node_of(reader, graph)
        place = nodes.setdefault(node, (len(nodes), group.layer + 1, 2 if group.kind == "ffn" else 0))[0]
        score = None if scores_E is None else float(f"{float(scores_E[number]):.5g}")
        edges.append((nodes[writer][0], place, "qkv".index(part) if part else 3, score))
    links = [(nodes[a][0], nodes[b][0]) for a, b in shared_inputs(graph) if a in nodes and b in nodes]
    caption = (
        "Rows are layers, the embeddings at the bottom. The slider shows the edges with the highest scores, those of"
        " the circuit first."
    )
    if circuit.num_edges > len(edges):
        caption += f" Of {circuit.num_edges:,} edges of the circuit the first {len(edges):,} are here."
    placed = [(name, layer, within) for name, (_, layer, within) in nodes.items()]
    return Graph(
        placed, edges, _KINDS, graph.num_edges, min(max(1, circuit.num_edges), len(edges)), "score", caption, links
    )


def circuit_page(
    circuit: Circuit,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    others: Mapping[str, Circuit] | None = None,
    title: str = "",
) -> Page:
    """The page of a circuit.

    Arguments:
        curves: rows of `curve` by method.
        others: circuits of the same graph to compare it with, by name.
    """
    sections = [
        _summary(circuit),
        Section(
            "Graph", [graph_block(circuit)] if circuit.num_edges else [Note("The circuit has no edges.", "warning")]
        ),
    ]
    if curves:
        sections.append(_curves(circuit, curves))
    if others:
        rows: list[list[Any]] = [
            [name, *list(overlap(circuit.kept_E, each.kept_E).values())[1:]] for name, each in others.items()
        ]
        columns = ["circuit", "its edges", "shared", "Jaccard index", "share of the smaller", "shared by chance", "p"]
        sections.append(
            Section(
                "Other circuits",
                [Table(columns, rows, "p is the probability that random circuits of these sizes share as many.")],
            )
        )
    sections += [_parts(circuit), _origin(circuit)]
    about = circuit.about
    return Page(
        title or f"Circuit found by {about.get('method', 'hand')}",
        f"{circuit.num_edges:,} of {circuit.graph.num_edges:,} edges",
        sections,
    )


def _summary(circuit: Circuit) -> Section:
    metrics, about = circuit.metrics, circuit.about
    facts = {
        "Edges": f"{circuit.num_edges:,}",
        "Edge sparsity": f"{100 * circuit.sparsity:.2f} %",
        "Pruned edges carry": _CARRY[circuit.ablation],
    }
    held: Mapping[str, Any] = metrics.get("held_out", {})
    shown = held or metrics
    if "faithfulness" in shown.get("circuit", {}):
        facts["Faithfulness"] = f"{shown['circuit']['faithfulness']:.3f}"
    if "converged" in about:
        facts["Converged"] = "yes" if about["converged"] else "no"
    blocks: list[Any] = [Facts(facts)]
    if held:
        blocks.append(_figures(held, f"On {held['n']:,} examples that the search did not see."))
    if metrics.get("circuit"):
        count = f"On {metrics['n']:,} examples" if "n" in metrics else "On the examples"
        blocks.append(_figures(metrics, f"{count} that the search saw." if "method" in about else f"{count}."))
    blocks += _stability(metrics.get("stability"))
    blocks += [Note(text, "warning") for text in about.get("warnings", [])]
    return Section("Figures", blocks)


def _figures(metrics: Mapping[str, Any], caption: str) -> Table:
    """Means with the interval and standard error of the circuit's."""
    found, intervals, errors = metrics["circuit"], metrics.get("intervals", {}), metrics.get("errors", {})
    rows: list[list[Any]] = [
        [
            _NAMES[name],
            metrics["full"].get(name),
            found[name],
            " to ".join(f"{each:.4g}" for each in intervals.get(name, ())),
            errors.get(name),
            metrics["empty"].get(name),
        ]
        for name in _NAMES
        if name in found
    ]
    for name, value in metrics.get("worst", {}).items():
        rows.append([_WORST[name], None, value, "", None, None])
    return Table(["measure", "model", "circuit", "95 % interval", "standard error", "no edges"], rows, caption)


def _stability(found: Mapping[str, Any] | None) -> list[Any]:
    if found is None:
        return []
    count = len(found["seeds"])
    facts = {
        f"Over {count} seeds, Jaccard index of edges": f"{found['jaccard']:.3f}",
        "Of writers": f"{found['node_jaccard']:.3f}",
        "Edges in all circuits": f"{len(found['core']):,}",
        "Edges in any": f"{found['in_any']:,}",
    }
    return [Facts(facts)]


def _origin(circuit: Circuit) -> Section:
    """What the circuit was found on, and how."""
    about = circuit.about
    names = {
        "model": "Model",
        "model_hash": "Hash of the weights",
        "data": "Examples",
        "data_hash": "Hash of the examples",
        "examples": "Examples of the search",
        "method": "Method",
        "seed": "Seed",
        "lmlab": "lmlab",
    }
    rows: list[list[Any]] = [[text, str(about[name])] for name, text in names.items() if name in about]
    rows += [[f"setting {key}", str(value)] for key, value in flatten(about.get("settings", {})).items()]
    return Section("Origin", [Table(["what", "value"], rows)] if rows else [Paragraph("Nothing is noted.")])


_WORST = {"distance_p99": "distance, 99th percentile", "distance_max": "distance, largest"}
_CARRY = {"interchange": "the corrupted run", "zero": "nothing", "mean": "means"}


def _curves(circuit: Circuit, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Section:
    blocks: list[Any] = []
    for key in ("faithfulness", "distance"):
        series = [
            Series(name, [100 * row["fraction"] for row in rows], [row[key] for row in rows])
            for name, rows in curves.items()
        ]
        chart = line_chart(series, "edges kept (%)", _NAMES[key], log_x=True)
        blocks.append(Figure(chart, f"{_NAMES[key].capitalize()} over the share of edges."))
    rows: list[list[Any]] = [[name, *areas(each).values()] for name, each in curves.items()]
    names = ["area under faithfulness (CPR)", "area of its distance from 1 (CMD)"]
    blocks.append(Table(["method", *names, "CPR over log shares", "CMD over log shares"], rows))
    return Section("Curves", blocks, "Edges are kept by rank and cleaned; CPR is better when high, CMD when low.")


def _parts(circuit: Circuit) -> Section:
    into, out = (
        Counter(node_of(reader, circuit.graph)[0] for _, reader in circuit.edges),
        Counter(writer for writer, _ in circuit.edges),
    )
    busiest = sorted({*into, *out}, key=lambda name: -(into[name] + out[name]))[:25]
    rows: list[list[Any]] = [[name, into[name], out[name]] for name in busiest]
    return Section(
        "Parts with most edges", [Table(["part", "edges in", "edges out"], rows) if rows else Paragraph("None.")]
    )
