"""The page of a circuit: its graph to explore, figures, curves of several methods, the parts that have most edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from lmlab.config import flatten
from lmlab.methods.edge_pruning.config import CONVERGED
from lmlab.methods.edge_pruning.graph.circuit import Circuit, same_graph
from lmlab.methods.edge_pruning.graph.formats import ends_of, node_of, parts_of, shared_inputs
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.methods.edge_pruning.graph.kinds import count_kinds, mean_depths
from lmlab.methods.edge_pruning.measures import areas, overlap
from lmlab.methods.edge_pruning.search.find import ranking
from lmlab.reports import Bounds, Facts, Figure, Graph, Note, Page, Paragraph, Section, Series, Table, line_chart
from lmlab.words import counted

_KINDS = (("query", "#b8527a", "q"), ("key", "#3f7f93", "k"), ("value", "#4f8a4f", "v"), ("other", "#8a8f98", ""))
_MOST_EDGES, _MOST_DRAWN = 4000, 20_000  # more make a page slow; of a larger circuit up to the second number
_NAMES = {
    "distance": "distance to the model",
    "exact_match": "exact match",
    "logit_difference": "logit difference",
    "prefers_answer": "prefers the answer",
    "accuracy": "accuracy",
    "probability": "probability of the answer",
    "probability_difference": "probability difference",
    "log_odds": "log odds of right answers",
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
    nodes = _places(graph)
    edges = []
    for number in order.tolist():
        writer, node, part = ends_of(graph.edge(number), graph)
        score = None if scores_E is None else float(f"{float(scores_E[number]):.5g}")
        edges.append((nodes[writer][0], nodes[node][0], "qkv".index(part) if part else 3, score))
    caption = (
        "Rows are layers, the embeddings at the bottom. The slider shows the edges with the highest scores, those of"
        " the circuit first."
    )
    if circuit.num_edges > len(edges):
        caption += f" Of {counted(circuit.num_edges, 'edges')} of the circuit the first {len(edges):,} are here."
    placed = [(name, layer, within) for name, (_, layer, within) in nodes.items()]
    return Graph(
        placed,
        edges,
        _KINDS,
        graph.num_edges,
        min(max(1, circuit.num_edges), len(edges)),
        "score",
        caption,
        _links(graph, nodes),
    )


def _links(graph: CircuitGraph, nodes: Mapping[str, tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Which heads use which shared keys and values, by the numbers of their places."""
    return [(nodes[a][0], nodes[b][0]) for a, b in shared_inputs(graph) if a in nodes and b in nodes]


def circuit_page(
    circuit: Circuit,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    others: Mapping[str, Circuit] | None = None,
    title: str = "",
    prompts: Section | None = None,
) -> Page:
    """The page of a circuit.

    Arguments:
        curves: rows of `curve` by method.
        others: circuits to compare it with, by name; those of another graph by kinds of edges only.
        prompts: what it does on single prompts (`prompts_section`).
    """
    sections = [
        _summary(circuit),
        Section(
            "Graph", [graph_block(circuit)] if circuit.num_edges else [Note("The circuit has no edges.", "warning")]
        ),
    ]
    if curves:
        sections.append(_curves(circuit, curves))
    alike = {name: each for name, each in (others or {}).items() if same_graph(circuit, each)}
    if alike:
        rows: list[list[Any]] = [
            [name, *list(overlap(circuit.kept_E, each.kept_E).values())[1:]] for name, each in alike.items()
        ]
        columns = ["circuit", "its edges", "shared", "Jaccard index", "share of the smaller", "shared by chance", "p"]
        sections.append(
            Section(
                "Other circuits",
                [Table(columns, rows, "p is the probability that random circuits of these sizes share as many.")],
            )
        )
        sections += [_difference(circuit, name, each) for name, each in alike.items()]
    sections += [_by_kind(circuit, name, each) for name, each in (others or {}).items() if name not in alike]
    sections += [] if prompts is None else [prompts]
    sections += [] if circuit.graph.spans is None else [_by_span(circuit)]
    sections += [_paths(circuit), _parts(circuit), _origin(circuit)]
    about = circuit.about
    return Page(
        title or f"Circuit found by {about.get('method', 'hand')}",
        f"{circuit.num_edges:,} of {counted(circuit.graph.num_edges, 'edges')}",
        sections,
    )


_SIDES = (("in both", "#8a8f98", "="), ("here alone", "#3f7f93", "+"), ("in the other alone", "#b8527a", "-"))


def _difference(circuit: Circuit, name: str, other: Circuit) -> Section:
    """Two circuits in one graph: edges of both, of this one alone, of the other alone."""
    graph, either_E = circuit.graph, circuit.kept_E | other.kept_E
    if not bool(either_E.any()):
        return Section(f"Difference to {name}", [Note("Neither circuit has edges.", "warning")])
    nodes = _places(graph)
    edges = []
    # what differs comes first: of a very large pair not all is drawn
    numbers = either_E.nonzero().flatten()
    same = (circuit.kept_E & other.kept_E)[numbers]
    for number in numbers[same.int().argsort(stable=True)][:_MOST_DRAWN].tolist():
        writer, node, _ = ends_of(graph.edge(number), graph)
        here, there = bool(circuit.kept_E[number]), bool(other.kept_E[number])
        side = 0 if here and there else 1 if here else 2
        edges.append((nodes[writer][0], nodes[node][0], side, None))
    placed = [(each, layer, within) for each, (_, layer, within) in nodes.items()]
    caption = "What differs comes first; the colors say on which side an edge is."
    total, links = max(graph.num_edges, len(edges)), _links(graph, nodes)
    drawn = Graph(placed, edges, _SIDES, total, len(edges), "score", caption, links, "both circuits together")
    counts = [
        int((circuit.kept_E & other.kept_E).sum()),
        int((circuit.kept_E & ~other.kept_E).sum()),
        int((~circuit.kept_E & other.kept_E).sum()),
    ]
    facts = Facts({side[0].capitalize(): f"{count:,}" for side, count in zip(_SIDES, counts, strict=True)})
    return Section(f"Difference to {name}", [facts, drawn])


def _by_span(circuit: Circuit) -> Section:
    """How many edges are read at each span of tokens, by what reads them."""
    assert circuit.graph.spans is not None
    counts: Counter[tuple[str, str]] = Counter()
    for _, reader in circuit.edges:
        name, _, span = reader.partition("@")
        part = name.rpartition(".")[2]
        counts[span, part if part in ("q", "k", "v") else ""] += 1
    rows: list[list[Any]] = []
    for span in circuit.graph.spans.names:
        each = [counts[span, part] for part in ("q", "k", "v", "")]
        rows.append([span, *each, sum(each)])
    return Section(
        "Where edges are read",
        [Table(["span", "queries", "keys", "values", "feed-forward and output", "edges"], rows)],
    )


def _by_kind(circuit: Circuit, name: str, other: Circuit) -> Section:
    """Two circuits of different graphs, such as those of two rungs of a ladder: how much of each kind they keep."""
    here, there = count_kinds(circuit), count_kinds(other)
    rows: list[list[Any]] = [
        [kind, *_share(*here.get(kind, (0, 0))), *_share(*there.get(kind, (0, 0)))] for kind in {**here, **there}
    ]
    rows.append(["all", *_share(circuit.num_edges, circuit.graph.num_edges)])
    rows[-1] += _share(other.num_edges, other.graph.num_edges)
    columns = ["kind of edge", "edges here", "% kept here", "edges there", "% kept there"]
    depths = {
        f"Mean depth of {what} {where}": "-" if math.isnan(depth) else f"{depth:.2f}"
        for where, each in (("here", circuit), ("there", other))
        for what, depth in zip(("writers", "readers"), mean_depths(each), strict=True)
    }
    text = "The graphs differ, so that edges are compared by their kinds. A depth of 0 is the embeddings, 1 the output."
    return Section(f"Beside {name}", [Facts(depths), Table(columns, rows)], text)


def _share(kept: int, of: int) -> list[Any]:
    return [kept, 100 * kept / of if of else None]


def _places(graph: CircuitGraph) -> dict[str, tuple[int, int, int]]:
    """Number, layer and place within the layer of each part of the network."""
    nodes: dict[str, tuple[int, int, int]] = {}

    def put(name: str, layer: int, within: int) -> None:
        nodes.setdefault(name, (len(nodes), layer, within))

    for writer in graph.writers[: graph.first_writer]:
        for name in parts_of(graph, writer):
            put(name, 0, 0)
    for group in graph.groups:
        for writer in group.writes:
            for name in parts_of(graph, writer):
                put(name, group.layer + 1, 1 if group.kind == "attention" else 2)
    for group in graph.groups:  # keys and values that heads share, mixtures whose experts write, the output
        for reader in group.readers:
            put(node_of(reader, graph)[0], group.layer + 1, 2 if group.kind == "ffn" else 0)
    return nodes


_OUT = -1  # in place of a cell, where paths end


def strongest_paths(circuit: Circuit, most: int = 20) -> list[tuple[float | None, list[str]]]:
    """The ways from an embedding to the output whose weakest edge is strongest, and how strong that is.

    Of each part of the network the best ways up to it are kept, so that the work grows with the edges and not with
    the number of ways. Without scores the shortest come first.
    """
    graph, numbers = circuit.graph, circuit.kept_E.nonzero().flatten().tolist()
    strength: dict[int, float] = {}
    if circuit.scores_E is not None:
        rank_E = ranking(circuit.about.get("method", ""), circuit.scores_E)
        strength = {number: float(rank_E[number]) for number in numbers}
    into: dict[int, list[int]] = {}
    for number in numbers:
        into.setdefault(int(graph.edge_readers[number]), []).append(number)
    spans = graph.num_spans
    best: dict[int, list[tuple[float, int, list[str]]]] = {
        cell: [(math.inf, 0, [parts_of(graph, graph.writers[cell // spans])[cell % spans]])]
        for cell in range(graph.first_writer * spans)
    }
    reader = 0
    for group in graph.groups:
        arrived: dict[int, list[tuple[float, int, list[str]]]] = {}
        for place in range(len(group.readers)):
            name, ways = group.readers[place], []
            for number in into.get(reader, ()):
                for weakest, length, way in best.get(int(graph.edge_cells[number]), ()):
                    ways.append((min(weakest, strength.get(number, math.inf)), length + 1, [*way, name]))
            for cell in graph.cells(group, place) if group.kind != "output" else (_OUT,):
                arrived.setdefault(cell, []).extend(ways)
            reader += 1
        for cell, ways in arrived.items():
            ways.sort(key=lambda each: (-each[0], each[1], each[2]))
            ends = [] if cell == _OUT else [parts_of(graph, graph.writers[cell // spans])[cell % spans]]
            best[cell] = [(weakest, length, [*way, *ends]) for weakest, length, way in ways[:most]]
    return [(None if not strength else weakest, way) for weakest, _, way in best.get(_OUT, ())]


def _paths(circuit: Circuit) -> Section:
    found = strongest_paths(circuit)
    # a feed-forward part reads and writes under one name
    rows: list[list[Any]] = [
        [" → ".join(name for name, _ in groupby(way)), len(way) // 2, weakest] for weakest, way in found
    ]
    block = Table(["path", "edges", "weakest score"], rows) if rows else Note("No path leads to the output.", "warning")
    return Section("Paths from input to output", [block], "Those whose weakest edge has the highest score come first.")


def _summary(circuit: Circuit) -> Section:
    metrics, about = circuit.metrics, circuit.about
    facts = {
        "Edges": f"{circuit.num_edges:,}",
        "Edge sparsity": f"{100 * circuit.sparsity:.2f} %",
        "Pruned edges carry": _CARRY[circuit.ablation],
    }
    held: Mapping[str, Any] = metrics.get("held_out") or {}
    shown = held or metrics
    if "faithfulness" in shown.get("circuit", {}):
        facts["Faithfulness"] = f"{shown['circuit']['faithfulness']:.3f}"
    if "converged" in about:
        facts["Converged"] = CONVERGED.get(about["converged"], "not known")
    blocks: list[Any] = [Facts(facts)]
    if held:
        blocks.append(_figures(held, f"On {counted(held['n'], 'examples')} that the search did not see."))
    if metrics.get("circuit"):
        count = f"On {counted(metrics['n'], 'examples')}" if "n" in metrics else "On the examples"
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
            metrics.get("full", {}).get(name),
            found[name],
            Bounds.of(*intervals.get(name, (None, None))),
            errors.get(name),
            metrics.get("empty", {}).get(name),
        ]
        for name in _NAMES
        if name in found
    ]
    for name, value in metrics.get("worst", {}).items():
        rows.append([_WORST.get(name, name), None, value, None, None, None])
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
_CARRY = {"interchange": "the corrupted run", "zero": "nothing", "mean": "means", "optimal": "learned constants"}


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
    ends = [ends_of(edge, circuit.graph)[:2] for edge in circuit.edges]
    into, out = Counter(node for _, node in ends), Counter(writer for writer, _ in ends)
    busiest = sorted({*into, *out}, key=lambda name: -(into[name] + out[name]))[:25]  # more make the table long
    rows: list[list[Any]] = [[name, into[name], out[name]] for name in busiest]
    return Section(
        "Parts with most edges", [Table(["part", "edges in", "edges out"], rows) if rows else Paragraph("None.")]
    )
