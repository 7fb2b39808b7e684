"""Circuits for other programs: GraphML and DOT to draw, edge lists of the reference implementation, the JSON of EAP-IG
and of the benchmark MIB.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import torch
from torch import Tensor

from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, read_json, read_mapping, write_json, write_text
from lmlab.methods.edge_pruning.config import RANKED
from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.graph import OUTPUT, CircuitGraph

_PART = re.compile(r"\.([qkv])$")
_COLORS = {"q": "#b8527a", "k": "#3f7f93", "v": "#4f8a4f"}
_THEIR_NAMES = {OUTPUT: "logits"}
_ALIASES = {"token_embeds": "tok_embeds"}
_OF_WRITERS = ("nap", "nap-ig", "node-pruning")
"""Methods that give every edge the score of its writer: their circuits are at the node level of MIB."""


def node_of(reader: str, graph: CircuitGraph) -> tuple[str, str]:
    """The part of the network that a reader belongs to, and which of its inputs (`q`, `k`, `v`, or nothing).

    Keys and values that several heads share belong to a part of their own, `a0.kv0`.
    """
    reader, at, span = reader.partition("@")
    match = _PART.search(reader)
    if match is None:
        return f"{reader}{at}{span}", ""
    node, part = reader[: match.start()], match[1]
    if graph.one_writer:
        return f"{node.partition('.')[0]}{at}{span}", part
    shared = part != "q" and graph.config.num_kv_heads < graph.config.num_heads
    return f"{node.replace('.h', '.kv') if shared else node}{at}{span}", part


def ends_of(edge: tuple[str, str], graph: CircuitGraph) -> tuple[str, str, str]:
    """The two parts of the network that an edge joins, and which input it is of the second; where positions are told
    apart, parts stand once for each span.
    """
    writer, reader = edge
    node, part = node_of(reader, graph)
    return writer + "".join(reader.partition("@")[1:]), node, part


def parts_of(graph: CircuitGraph, name: str) -> list[str]:
    """What a part of the network is called at each span."""
    return [name] if graph.spans is None else [f"{name}@{span}" for span in graph.spans.names]


def shared_inputs(graph: CircuitGraph) -> list[tuple[str, str]]:
    """Which heads use which shared keys and values: (`a0.kv0`, `a0.h0`) and so on; none where each head has its own."""
    config, share = graph.config, graph.config.num_heads // graph.config.num_kv_heads
    if share == 1 or graph.one_writer:
        return []
    return [
        pair
        for layer in range(config.num_layers)
        for head in range(config.num_heads)
        for pair in zip(
            parts_of(graph, f"a{layer}.kv{head // share}"), parts_of(graph, f"a{layer}.h{head}"), strict=True
        )
    ]


def to_graphml(circuit: Circuit, path: Path) -> None:
    """Write GraphML: a node for each part of the network; edges have `input` (q, k, v) and `score`."""
    nodes = sorted({name for edge in circuit.edges for name in ends_of(edge, circuit.graph)[:2]})
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        '<key id="input" for="edge" attr.name="input" attr.type="string"/>',
        '<key id="score" for="edge" attr.name="score" attr.type="double"/>',
        '<graph edgedefault="directed">',
        *(f"<node id={quoteattr(name)}/>" for name in nodes),
    ]
    for number, (edge, score) in enumerate(zip(circuit.edges, _scores(circuit), strict=True)):
        writer, node, part = ends_of(edge, circuit.graph)
        data = f'<data key="input">{part}</data>' + ("" if score is None else f'<data key="score">{score:.6g}</data>')
        lines.append(f'<edge id="e{number}" source={quoteattr(writer)} target={quoteattr(node)}>{data}</edge>')
    links = [(a, b) for a, b in shared_inputs(circuit.graph) if a in nodes and b in nodes]
    lines += [
        f'<edge source={quoteattr(a)} target={quoteattr(b)}><data key="input">shared</data></edge>' for a, b in links
    ]
    write_text(path, "\n".join([*lines, "</graph>", "</graphml>", ""]))


def to_dot(circuit: Circuit, path: Path) -> None:
    """Write DOT for Graphviz: edges to queries, keys and values in different colors."""
    lines = ["digraph circuit {", "  rankdir=BT; node [shape=box, fontname=Helvetica];"]
    for edge, score in zip(circuit.edges, _scores(circuit), strict=True):
        writer, node, part = ends_of(edge, circuit.graph)
        settings = [f'color="{_COLORS[part]}"', f'label="{part}"'] if part else []
        settings += [] if score is None else [f'tooltip="{score:.4g}"']
        lines.append(f'  "{writer}" -> "{node}" [{", ".join(settings)}];')
    nodes = {name for edge in circuit.edges for name in ends_of(edge, circuit.graph)[:2]}
    lines += [f'  "{a}" -> "{b}" [style=dashed];' for a, b in shared_inputs(circuit.graph) if a in nodes and b in nodes]
    write_text(path, "\n".join([*lines, "}", ""]))


def _scores(circuit: Circuit) -> list[float | None]:
    return [None] * circuit.num_edges if circuit.scores_E is None else circuit.scores_E[circuit.kept_E].tolist()


def _without_spans(graph: CircuitGraph) -> None:
    if graph.spans is not None:
        raise UserError(
            "The circuit tells positions apart, which this format does not know.",
            "Find one with graph.positions=shared.",
        )


def write_edge_list(circuit: Circuit, path: Path) -> None:
    """Write the list of [from, to] that the reference implementation reads."""
    _without_spans(circuit.graph)
    write_json(path, [list(edge) for edge in circuit.edges])


@reads("a list of edges")
def read_edge_list(path: Path, graph: CircuitGraph) -> Tensor:
    """Read such a list, [E].

    Raises:
        UserError: it is none, or has edges that the graph does not.
    """
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(edge, list) and len(edge) == 2 for edge in found):
        raise UserError(f"'{path}' is not a list of pairs [from, to].")
    return graph.mask(([_ALIASES.get(a, a), b] for a, b in found), f"'{path}'")


def write_eap_ig(circuit: Circuit, path: Path) -> None:
    """Write the graph of EAP-IG and MIB: JSON, or where the name ends in .pt plain tensors. Edges to a shared key or
    value head are written for every query head of its group, embeddings are joined. Where the method scores writers,
    nodes have their scores too, for the node level of MIB. Scores that rank, such as those of gates, are written from 0
    up, so that their order is that of their sizes too.

    Raises:
        UserError: experts or whole attention layers are writers, or parts have two names, which the format does not
            know.
    """
    graph, scores_E, method = circuit.graph, circuit.scores_E, circuit.about.get("method")
    if scores_E is not None and method in RANKED:  # the format takes sizes for effects: no rank may be below 0
        scores_E = scores_E - scores_E.min().clamp(max=0)
    nodes: dict[str, dict[str, Any]] = {}
    if scores_E is not None and method in _OF_WRITERS:
        for number, writer in enumerate(graph.writers):
            score = float(scores_E[graph.edge_writers == number][0])
            own = nodes.setdefault(_their_writer(writer, graph), {"score": score})
            own["score"] = max(score, own["score"], key=abs)
    scores = torch.where(circuit.kept_E, 1.0, 0.0) if scores_E is None else scores_E
    _write_graph(path, graph, circuit.kept_E, scores, nodes)


def require_known(graph: CircuitGraph) -> None:
    """See that the graph can be written as one of EAP-IG and MIB.

    Raises:
        UserError: experts or whole attention layers are writers, or parts have two names.
    """
    _without_spans(graph)
    if graph.one_writer or graph.options.moe == "expert":
        raise UserError(
            "The format of EAP-IG knows heads and feed-forward networks as writers, not experts or whole attentions."
        )


def write_neurons(graph: CircuitGraph, scores_WD: Tensor, path: Path) -> None:
    """Write scores of neurons as the graph of MIB at its neuron level: all edges and neurons are in it, and the harness
    takes the best by score. Scores of the two embeddings add up, as their vectors do.

    Raises:
        UserError: experts or whole attention layers are writers, or parts have two names, which the format does not
            know.
    """
    rows: dict[str, Tensor] = {}
    for writer, row_D in zip(graph.writers, scores_WD, strict=True):
        name = _their_writer(writer, graph)
        rows[name] = rows[name] + row_D if name in rows else row_D
    whole_E = torch.ones(graph.num_edges, dtype=torch.bool)
    nodes = {name: {"neurons": [True] * len(row), "neurons_scores": row.tolist()} for name, row in rows.items()}
    _write_graph(path, graph, whole_E, torch.zeros(graph.num_edges), nodes)


def _their_writer(writer: str, graph: CircuitGraph) -> str:
    return "input" if writer in graph.embedding_names else writer


def _write_graph(
    path: Path, graph: CircuitGraph, kept_E: Tensor, scores: Tensor, nodes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write edges, with what else is known of each node."""
    require_known(graph)
    config = graph.config
    edges: dict[str, dict[str, Any]] = {}
    for number, keys in enumerate(their_edges(graph)):
        for key in keys:
            score, kept = float(scores[number]), bool(kept_E[number])
            if key in edges:
                # of edges that are one there, the one with the larger effect counts, with its sign
                score = max(score, edges[key]["score"], key=abs)
                kept = kept or edges[key]["in_graph"]
            edges[key] = {"score": score, "in_graph": kept}
    used = {
        name
        for key, each in edges.items()
        if each["in_graph"]
        for name in (key.split("->")[0], re.sub("<.>", "", key.split("->")[1]))
    }
    names = ["input", *(writer for writer in graph.writers if writer not in graph.embedding_names), "logits"]
    shape = {
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "parallel_attn_mlp": config.parallel_residual,
        "d_model": config.d_model,
    }
    if path.suffix == ".pt":
        _write_tensors(path, shape, names[:-1], edges, used, nodes)
    else:
        described = {name: {"in_graph": name in used, **nodes.get(name, {})} for name in names}
        write_json(path, {"cfg": shape, "nodes": described, "edges": edges})


def their_edges(graph: CircuitGraph) -> list[list[str]]:
    """What each edge is called in the graph of EAP-IG: edges to a shared key or value head are several there, and those
    of the two embeddings are one.
    """
    share = graph.config.num_heads // graph.config.num_kv_heads
    return [
        [f"{_their_writer(writer, graph)}->{name}" for name in _their_readers(reader, share)]
        for writer, reader in graph.edges()
    ]


def _their_rows(shape: Mapping[str, int]) -> list[str]:
    """Their readers in the order of the columns of their tensors."""
    heads = range(shape["n_heads"])
    names = []
    for layer in range(shape["n_layers"]):
        names += [*(f"a{layer}.h{head}<{part}>" for part in "qkv" for head in heads), f"m{layer}"]
    return [*names, "logits"]


def _write_tensors(
    path: Path,
    shape: dict[str, Any],
    writers: list[str],
    edges: Mapping[str, Mapping[str, Any]],
    used: set[str],
    nodes: Mapping[str, Mapping[str, Any]],
) -> None:
    readers = _their_rows(shape)
    scores, inside = torch.zeros(len(writers), len(readers)), torch.zeros(len(writers), len(readers), dtype=torch.bool)
    row, column = ({name: n for n, name in enumerate(names)} for names in (writers, readers))
    for key, each in edges.items():
        writer, reader = key.split("->")
        scores[row[writer], column[reader]] = each["score"]
        inside[row[writer], column[reader]] = each["in_graph"]
    content = {
        "cfg": shape,
        "src_nodes": writers,
        "dst_nodes": readers,
        "edges_scores": scores,
        "edges_in_graph": inside,
        "nodes_in_graph": torch.tensor([name in used for name in writers]),
    }
    fields = {"score": "nodes_scores", "neurons_scores": "neurons_scores", "neurons": "neurons_in_graph"}
    for own, theirs in fields.items():
        known = {name: torch.tensor(each[own]) for name, each in nodes.items() if own in each}
        if known:  # an input without edges has no row
            nothing = torch.zeros_like(next(iter(known.values())))
            content[theirs] = torch.stack([known.get(name, nothing) for name in writers])
    with atomic_file(path) as file:
        torch.save(content, file)


def _read_tensors(path: Path) -> dict[str, Any]:
    """Their tensors as the mapping that their JSON holds; nothing but tensors and plain containers is read."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if not path.exists():
            raise UserError(f"No such file: '{path}'.") from None
        raise UserError(
            f"'{path}' is not a graph of EAP-IG: plain tensors are read only ({error.args[0]!s:.80})."
        ) from None
    names = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph")
    if not isinstance(found, dict) or not set(names) <= set(found):
        raise UserError(f"'{path}' is not a graph of EAP-IG: it must hold {', '.join(names)}.")
    writers, readers, scores, inside = (found[name] for name in names[1:])
    if tuple(scores.shape) != (len(writers), len(readers)) or scores.shape != inside.shape:
        raise UserError(
            f"'{path}': edges_scores {tuple(scores.shape)} and edges_in_graph {tuple(inside.shape)} do not fit"
            f" {len(writers)} writers and {len(readers)} readers."
        )
    edges = {
        f"{writer}->{reader}": {"score": score, "in_graph": kept}
        for writer, some, flags in zip(writers, scores.tolist(), inside.tolist(), strict=True)
        for reader, score, kept in zip(readers, some, flags, strict=True)
    }
    own = found.get("nodes_scores")
    nodes = {} if own is None else {name: {"score": float(score)} for name, score in zip(writers, own, strict=True)}
    return {"cfg": found["cfg"], "nodes": nodes, "edges": edges}


def _their_readers(reader: str, share: int) -> Iterable[str]:
    match = _PART.search(reader)
    if match is None:
        return [_THEIR_NAMES.get(reader, reader)]
    node, part = reader[: match.start()], match[1]
    if part == "q":
        return [f"{node}<q>"]
    layer, _, head = node.partition(".h")
    return [f"{layer}.h{int(head) * share + n}<{part}>" for n in range(share)]


def _flag(values: Mapping[str, Any], field: str, where: str) -> bool:
    """What a field says that is true or false; as in the tensors of EAP-IG, 1 and 0 say so too."""
    value = values[field]
    if not isinstance(value, int | float) or value not in (0, 1):
        raise UserError(f"{where}: {field} is {value!r:.40}, not true or false.")
    return bool(value)


def _number(values: Mapping[str, Any], field: str, where: str) -> float:
    value = values[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: {field} is {value!r:.40}, not a finite number.")
    return float(value)


@reads("a graph of EAP-IG")
def read_eap_ig(path: Path, graph: CircuitGraph) -> tuple[Tensor, Tensor]:
    """Read such a file, JSON or .pt: which edges are kept, and scores, [E] each. Of edges that are one here, the one
    with the larger effect counts. Where only nodes have scores, an edge has that of its writer.

    Raises:
        UserError: it is none, or was made for another shape.
    """
    found = _read_tensors(path) if path.suffix == ".pt" else read_mapping(path)
    if not isinstance(found, Mapping) or not {"cfg", "edges"} <= set(found):
        raise UserError(f"'{path}' is not a graph of EAP-IG (cfg or edges are missing).")
    config, share = graph.config, graph.config.num_heads // graph.config.num_kv_heads
    layers, heads = (_number(found["cfg"], name, f"'{path}', cfg") for name in ("n_layers", "n_heads"))
    if (layers, heads) != (config.num_layers, config.num_heads):
        raise UserError(f"'{path}' is for {layers:g} layers of {heads:g} heads, not for this model.")
    parallel = "parallel_attn_mlp" in found["cfg"] and _flag(found["cfg"], "parallel_attn_mlp", f"'{path}', cfg")
    if parallel != config.parallel_residual:
        raise UserError(
            f"'{path}' is for a model whose attention and feed-forward network stand"
            f" {'one after the other' if config.parallel_residual else 'side by side'}, which this one's do not."
        )
    kept_E, scores_E = torch.zeros(graph.num_edges, dtype=torch.bool), torch.zeros(graph.num_edges)
    for number, (writer, reader) in enumerate(graph.edges()):
        source = _their_writer(writer, graph)
        each = {name: found["edges"].get(name) for name in (f"{source}->{n}" for n in _their_readers(reader, share))}
        if None in each.values():
            raise UserError(f"'{path}' lacks the edge {source} -> {reader}.")
        # all are read, also behind one that settles the answer
        kept_E[number] = any([_flag(one, "in_graph", f"'{path}', edge {name}") for name, one in each.items()])
        scores_E[number] = max([_number(one, "score", f"'{path}', edge {name}") for name, one in each.items()], key=abs)
    nodes: dict[str, Mapping[str, Any]] = {}
    for name, node in (found.get("nodes") or {}).items():
        # a node is in it here where an edge is; what EAP-IG would not take is refused all the same
        if "in_graph" in node:
            _flag(node, "in_graph", f"'{path}', node {name}")
        if "score" in node:
            nodes[name] = node
            # nan is what EAP-IG writes for nodes that nothing has scored, beside scores of edges
            if not (isinstance(node["score"], float) and math.isnan(node["score"])):
                _number(node, "score", f"'{path}', node {name}")
    writers = [_their_writer(writer, graph) for writer in graph.writers]
    if not bool(scores_E.any()) and set(writers) <= set(nodes):  # a file of nodes has zeros at its edges
        own = [_number(nodes[name], "score", f"'{path}', node {name}") for name in writers]
        scores_E = torch.tensor(own)[graph.edge_writers]
    if not bool(scores_E.isfinite().all()):
        raise UserError(f"'{path}' has scores that are no finite numbers.")
    return kept_E, scores_E
