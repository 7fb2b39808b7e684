"""Circuits as files, for people and for other programs; the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import networkx
import pytest
import torch

from browser import drawn, needs_browser
from lmlab.errors import UserError
from lmlab.methods.edge_pruning import Circuit, CircuitGraph, GraphOptions, ranking
from lmlab.methods.edge_pruning.graph.formats import (
    node_of,
    read_eap_ig,
    read_edge_list,
    to_dot,
    to_graphml,
    write_eap_ig,
    write_edge_list,
)
from lmlab.methods.edge_pruning.report import circuit_page, graph_block
from lmlab.models import ModelConfig


@pytest.fixture
def circuit(network):
    graph = CircuitGraph(network("llama").config)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(graph.num_edges, generator=generator)
    return Circuit(
        graph,
        scores > 0.7,
        "interchange",
        scores,
        {"method": "eap", "seed": 1, "model_hash": "abc", "warnings": ["<b>careful</b>"]},
    )


def test_a_circuit_comes_back_from_its_file(circuit, tmp_path):
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert torch.equal(again.kept_E, circuit.kept_E) and torch.allclose(again.scores_E, circuit.scores_E, rtol=1e-5)
    assert again.about == dict(circuit.about) and again.ablation == "interchange" and again.sparsity == circuit.sparsity
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["graph"]["edges"] == 82 and written["graph"]["options"] == GraphOptions().model_dump()


def test_circuits_combine_like_sets(circuit):
    other = Circuit(circuit.graph, ~circuit.kept_E, "interchange")
    assert (
        (circuit & other).num_edges == 0
        and (circuit | other).num_edges == 82
        and (circuit - other).num_edges == circuit.num_edges
    )


def test_what_does_not_fit_is_named(circuit, network, tmp_path):
    with pytest.raises(UserError, match=r"another model \(hash abc, now def\)"):
        circuit.require(model_hash="def")
    circuit.require(model_hash="abc", tokenizer_hash="unknown then")
    with pytest.raises(UserError, match="different graphs"):
        circuit & Circuit(CircuitGraph(network("gpt2").config), torch.zeros(137, dtype=torch.bool), "zero")
    circuit.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    content["edges"] = [[f"a{n}.h9", "m1"] for n in range(7)]
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has 7 edges that the graph .* a0\.h9 -> m1, .*a4\.h9 -> m1, \.\.\.") as error:
        Circuit.load(tmp_path / "wrong.json")
    assert "a5.h9" not in error.value.message
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a mapping of keys to values"):
        Circuit.load(tmp_path / "no.json")
    (tmp_path / "short.json").write_text(json.dumps({"format": "lmlab-circuit", "version": 1}))
    with pytest.raises(UserError, match="the key 'graph' is required"):
        Circuit.load(tmp_path / "short.json")


def test_graphml_is_read_by_networkx_and_dot_by_graphviz(circuit, tmp_path):
    to_graphml(circuit, tmp_path / "c.graphml")
    graph = networkx.read_graphml(tmp_path / "c.graphml", force_multigraph=True)
    own = [edge for edge in graph.edges(data=True) if edge[2]["input"] != "shared"]
    assert len(own) == circuit.num_edges
    assert {(a, b) for a, b, data in graph.edges(data=True) if data["input"] == "shared"} <= {
        (f"a{n}.kv{h // 2}", f"a{n}.h{h}") for n in (0, 1) for h in range(4)
    }
    to_dot(circuit, tmp_path / "c.dot")
    text = (tmp_path / "c.dot").read_text()
    assert len(re.findall(r"label=|-> .* \[\"?", text)) >= circuit.num_edges and text.startswith("digraph")
    if shutil.which("dot"):
        assert subprocess.run(["dot", "-Tsvg", tmp_path / "c.dot"], capture_output=True).returncode == 0


def test_edge_lists_and_graphs_of_eap_ig_go_both_ways(circuit, tmp_path):
    write_edge_list(circuit, tmp_path / "edges.json")
    assert torch.equal(read_edge_list(tmp_path / "edges.json", circuit.graph), circuit.kept_E)
    write_eap_ig(circuit, tmp_path / "graph.json")
    kept_E, scores_E = read_eap_ig(tmp_path / "graph.json", circuit.graph)
    assert torch.equal(kept_E, circuit.kept_E) and torch.allclose(scores_E, circuit.scores_E)
    written = json.loads((tmp_path / "graph.json").read_text())
    assert written["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert {"input->a0.h3<k>", "m1->logits", "a0.h0->a1.h2<v>"} <= set(written["edges"])
    assert written["edges"]["input->a0.h2<k>"] == written["edges"]["input->a0.h3<k>"]  # one key-value head serves both


@pytest.mark.parametrize("method", ["edge-pruning", "ranking", "acdc", "checkpoint"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_scores_that_rank_keep_their_order_in_files_that_take_sizes_for_effects(network, tmp_path, kind, method):
    """Log-alphas of closed gates are below 0; the size of the lowest put it first, also where embeddings are joined."""
    graph = CircuitGraph(network(kind).config)
    scores_E = 4 * torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0))
    circuit = Circuit(graph, scores_E > 0, "interchange", scores_E, {"method": method})
    assert torch.equal(ranking(method, scores_E), scores_E)
    write_eap_ig(circuit, tmp_path / "graph.json")
    kept_E, found_E = read_eap_ig(tmp_path / "graph.json", graph)
    highest: dict[str, float] = {}
    for (writer, reader), score in zip(graph.edges(), scores_E.tolist(), strict=True):
        key = f"{'input' if writer in graph.embedding_names else writer} {reader}"
        highest[key] = max(score, highest.get(key, score))
    expected_E = torch.tensor(
        [highest[f"{'input' if w in graph.embedding_names else w} {r}"] for w, r in graph.edges()]
    )
    assert bool((found_E >= 0).all()) and torch.equal(kept_E, expected_E > 0)
    assert torch.allclose(found_E, expected_E - scores_E.min(), atol=1e-5)


@pytest.mark.parametrize("end", ["json", "pt"])
def test_scores_of_writers_are_scores_of_nodes_in_files_of_mib(network, tmp_path, end):
    graph = CircuitGraph(network("gpt2").config)
    of_writers = torch.rand(len(graph.writers), generator=torch.Generator().manual_seed(0)) - 0.5
    scores_E = of_writers[graph.edge_writers]
    path = tmp_path / f"graph.{end}"
    write_eap_ig(Circuit(graph, scores_E > 0, "interchange", scores_E, {"method": "nap-ig"}), path)
    if end == "json":
        nodes = json.loads(path.read_text())["nodes"]
        own = {name: each.get("score") for name, each in nodes.items()}
        assert own.pop("logits") is None
    else:
        written = torch.load(path, weights_only=True)
        own = dict(zip(written["src_nodes"], written["nodes_scores"].tolist(), strict=True))
    joined = max(of_writers[:2].tolist(), key=abs)
    expected = {"input": joined} | dict(zip(graph.writers[2:], of_writers[2:].tolist(), strict=True))
    assert own == pytest.approx(expected)
    if end == "json":  # as files of the node level are: their edges have no scores
        content = json.loads(path.read_text())
        for each in content["edges"].values():
            each["score"] = 0.0
        path.write_text(json.dumps(content))
    else:
        torch.save({**written, "edges_scores": torch.zeros_like(written["edges_scores"])}, path)
    _, again_E = read_eap_ig(path, graph)
    assert torch.allclose(
        again_E,
        torch.tensor([expected[{"tok_embeds": "input", "pos_embeds": "input"}.get(w, w)] for w, _ in graph.edges()]),
    )


def test_files_of_models_whose_sub_layers_stand_side_by_side_say_so(network, circuit, tmp_path):
    graph = CircuitGraph(network("phi").config)
    kept_E = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) > 0.5
    write_eap_ig(Circuit(graph, kept_E, "interchange"), tmp_path / "side.json")
    written = json.loads((tmp_path / "side.json").read_text())
    assert written["cfg"]["parallel_attn_mlp"] and "a0.h0->m0" not in written["edges"]
    assert torch.equal(read_eap_ig(tmp_path / "side.json", graph)[0], kept_E)
    with pytest.raises(UserError, match="stand side by side, which this one's do not"):
        read_eap_ig(tmp_path / "side.json", circuit.graph)
    written["edges"]["m0->logits"]["score"] = "nan"
    (tmp_path / "side.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="edge m0->logits: score is 'nan', not a finite number"):
        read_eap_ig(tmp_path / "side.json", graph)


def _write_with(circuit, path, part, name, field, value):
    """The graph of EAP-IG of a circuit, with another value in one field."""
    write_eap_ig(circuit, path)
    written = json.loads(path.read_text())
    (written[part] if name is None else written[part][name])[field] = value
    path.write_text(json.dumps(written))


@pytest.mark.parametrize("value", ["false", "true", "", "0", None, 2, 0.5, [], [False]])
@pytest.mark.parametrize(
    ("part", "name", "field"),
    [
        ("edges", "a0.h0->a1.h2<v>", "in_graph"),
        ("edges", "input->a0.h3<k>", "in_graph"),  # the last of two that share a head
        ("nodes", "a0.h0", "in_graph"),
        ("cfg", None, "parallel_attn_mlp"),
    ],
)
def test_what_is_neither_true_nor_false_in_graphs_of_eap_ig_is_refused(circuit, tmp_path, part, name, field, value):
    """The text "false" was true, and null and empty texts false."""
    _write_with(circuit, tmp_path / "graph.json", part, name, field, value)
    where = "cfg" if name is None else f"{part[:-1]} {name}"
    with pytest.raises(UserError, match=re.escape(f"graph.json', {where}: {field} is {value!r}, not true or false")):
        read_eap_ig(tmp_path / "graph.json", circuit.graph)


@pytest.mark.parametrize("value", ["0.5", "nan", None, True, [0.5]])
@pytest.mark.parametrize(
    ("part", "name", "field"),
    [
        ("edges", "a0.h0->a1.h2<v>", "score"),
        ("edges", "input->a0.h3<k>", "score"),
        ("nodes", "a0.h0", "score"),
        ("cfg", None, "n_layers"),
    ],
)
def test_scores_that_are_no_numbers_are_refused(circuit, tmp_path, part, name, field, value):
    _write_with(circuit, tmp_path / "graph.json", part, name, field, value)
    with pytest.raises(UserError, match=re.escape(f"{field} is {value!r}, not a finite number")):
        read_eap_ig(tmp_path / "graph.json", circuit.graph)


def test_nodes_without_scores_are_nan_beside_scores_of_edges(circuit, tmp_path):
    """EAP-IG begins the scores of nodes as nan; where edges have none, nodes must."""
    path = tmp_path / "graph.pt"
    write_eap_ig(circuit, path)
    written = torch.load(path, weights_only=True)
    written["nodes_scores"] = torch.full((len(written["src_nodes"]),), torch.nan)
    torch.save(written, path)
    kept_E, scores_E = read_eap_ig(path, circuit.graph)
    assert torch.equal(kept_E, circuit.kept_E) and bool(scores_E.any())
    torch.save({**written, "edges_scores": torch.zeros_like(written["edges_scores"])}, path)
    with pytest.raises(UserError, match="score is nan, not a finite number"):
        read_eap_ig(path, circuit.graph)


@pytest.mark.parametrize("end", ["json", "pt"])
def test_flags_of_graphs_of_eap_ig_may_be_1_and_0(circuit, tmp_path, end):
    """Its own reader puts them into tensors of booleans, which take 1 and 0 and no text."""
    path = tmp_path / f"graph.{end}"
    write_eap_ig(circuit, path)
    if end == "json":
        written = json.loads(path.read_text())
        for each in (*written["edges"].values(), *written["nodes"].values()):
            each["in_graph"] = int(each["in_graph"])
        path.write_text(json.dumps(written))
    else:
        written = torch.load(path, weights_only=True)
        torch.save({**written, "edges_in_graph": written["edges_in_graph"].float()}, path)
    assert torch.equal(read_eap_ig(path, circuit.graph)[0], circuit.kept_E)


def test_a_score_that_is_no_number_in_a_tensor_does_not_hide_behind_another(circuit, tmp_path):
    """Edges to one shared key head are one here; the largest of 1 and nan by size is 1."""
    write_eap_ig(circuit, tmp_path / "graph.pt")
    written = torch.load(tmp_path / "graph.pt", weights_only=True)
    row, column = (written[of].index(name) for of, name in (("src_nodes", "input"), ("dst_nodes", "a0.h3<k>")))
    written["edges_scores"][row, column] = float("nan")
    torch.save(written, tmp_path / "graph.pt")
    with pytest.raises(UserError, match="edge input->a0.h3<k>: score is nan, not a finite number"):
        read_eap_ig(tmp_path / "graph.pt", circuit.graph)


def test_the_page_escapes_texts_and_lists_what_it_shows(circuit):
    html = circuit_page(circuit).to_html()
    assert "<b>careful</b>" not in html and "&lt;b&gt;careful&lt;/b&gt;" in html
    assert f"{circuit.num_edges} of 82 edges" in html


def test_the_slider_of_the_page_goes_through_gates_from_the_highest(circuit):
    gates = Circuit(
        circuit.graph,
        circuit.kept_E,
        "interchange",
        circuit.scores_E - 5 + 10 * circuit.kept_E,
        {"method": "edge-pruning"},
    )
    shown = [edge[3] for edge in graph_block(gates).edges]
    assert shown == sorted(shown, reverse=True) and shown[circuit.num_edges] < 0


@needs_browser
def test_a_browser_draws_the_graph(circuit, tmp_path):
    text = drawn(circuit_page(circuit).write(tmp_path / "page.html"))
    assert f'data-edges="{circuit.num_edges}"' in text
    assert text.count('class="graph-edge"') == circuit.num_edges
    used = {
        name
        for edge in circuit.edges
        for name in (edge[0], re.sub(r"\.h(\d)\.[kv]$", r".kv\1", re.sub(r"\.q$", "", edge[1])))
    }
    assert {match for match in re.findall(r'data-name="([^"]+)"', text)} == used
    assert "(the circuit)" in text and not re.search(r'class="graph-note"[^>]*>The graph could not', text)


@needs_browser
def test_many_edges_are_few_paths_and_those_of_a_part_stand_out(tmp_path):
    """A path for each of thousands of edges takes seconds."""
    shape = {"vocab_size": 11, "num_layers": 8, "d_model": 24, "num_heads": 12, "d_ff": 8, "max_seq_len": 8}
    graph = CircuitGraph(ModelConfig(**shape))
    kept_E = torch.arange(graph.num_edges) % 3 == 0
    circuit = Circuit(graph, kept_E, "interchange", torch.rand(graph.num_edges, generator=torch.manual_seed(0)))
    assert circuit.num_edges > 4000
    point = """
        const slider = document.querySelector(".graph-slider");
        slider.value = 1000; slider.dispatchEvent(new Event("input"));
        const box = Array.from(document.querySelectorAll(".graph-node")).find((each) => each.dataset.name === "m3");
        box.dispatchEvent(new Event("pointerenter"));
    """
    text = drawn(circuit_page(circuit).write(tmp_path / "page.html"), point)
    into = sum(reader == "m3" for _, reader in circuit.edges)
    out = sum(writer == "m3" for writer, _ in circuit.edges)
    assert f'data-edges="{circuit.num_edges}"' in text
    assert 0 < text.count('class="graph-edge"') < 20 and text.count('class="graph-edge marked"') == into + out > 20
    assert f"m3: {into} edges in, {out} out" in text


@needs_browser
def test_the_graph_of_a_difference_is_of_both_circuits_and_joins_shared_keys_to_their_heads(circuit, tmp_path):
    """It called the edges of both together the circuit, and left keys that heads share without these heads."""
    other = Circuit(circuit.graph, ~circuit.kept_E, "interchange")
    page = circuit_page(circuit, others={"other": other})
    text = drawn(page.write(tmp_path / "page.html"))
    assert "82 of 82 edges" in text and "(both circuits together)" in text and text.count("(the circuit)") == 1
    blocks = next(each.blocks for each in page.sections if each.title.startswith("Difference"))
    own = next(each.blocks for each in page.sections if each.title == "Graph")[0]
    assert blocks[1].links == own.links != []


@needs_browser
def test_the_graph_is_filtered_by_kind_and_by_name(circuit, tmp_path):
    page = circuit_page(circuit).write(tmp_path / "page.html")
    text = drawn(
        page,
        """
        const filter = document.querySelector(".graph-filter");
        filter.value = "nowhere A0.H1"; filter.dispatchEvent(new Event("input"));
        const buttons = Array.from(document.querySelectorAll(".graph-legend button"));
        buttons.find(each => each.textContent === "query").click();
        """,
    )
    wanted = [
        (writer, reader)
        for writer, reader in circuit.edges
        if "a0.h1" in f"{writer} {node_of(reader, circuit.graph)[0]}" and not reader.endswith(".q")
    ]
    assert 0 < len(wanted) < circuit.num_edges
    assert f'data-edges="{len(wanted)}"' in text and f"the filter leaves {len(wanted)}" in text
    empty = drawn(
        page, 'const f = document.querySelector(".graph-filter"); f.value = "?"; f.dispatchEvent(new Event("input"));'
    )
    assert 'data-edges="0"' in empty and "the filter leaves 0" in empty and "NaN" not in empty


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ablation", "foo", "ablation: input should be 'interchange', 'zero', 'mean' or 'optimal'"),
        ("ablation", ["zero"], "ablation: "),
        ("scores", [[1.0, 2.0]], "scores.0: "),
        ("scores", ["a"], "more."),
        ("metrics", [1], "metrics: "),
        ("metrics", {"circuit": {"distance": "x"}}, "metrics.circuit.distance: "),
        ("metrics", {"held_out": {"n": "many"}}, "metrics.held_out.n: "),
        ("warnings", 5, "warnings: "),
        ("edges", 5, "edges: "),
        ("graph", [], "graph: "),
        ("model_hash", 5, "model_hash: "),
    ],
)
def test_a_field_of_a_circuit_that_is_no_such_thing_is_named(circuit, tmp_path, key, value, message):
    """Pages, tables and comparisons met them later, with a traceback or a curve of nothing."""
    path = tmp_path / "c.json"
    circuit.save(path)
    content = json.loads(path.read_text())
    if key == "scores":
        value = value * circuit.graph.num_edges
    path.write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError) as error:
        Circuit.load(path)
    assert f"'{path}'" in str(error.value) and message in str(error.value)


def test_a_small_file_with_a_huge_shape_is_refused_before_it_fills_the_memory(circuit, tmp_path):
    path = tmp_path / "c.json"
    circuit.save(path)
    content = json.loads(path.read_text())
    heads = {"num_layers": 1000, "num_heads": 1000, "num_kv_heads": 1000}
    shape = content["graph"]["shape"] | heads
    path.write_text(json.dumps({**content, "graph": {**content["graph"], "shape": shape}, "scores": None}))
    with pytest.raises(UserError, match="does not fit into the"):
        Circuit.load(path)


def test_names_give_the_edges_back(circuit, network):
    for graph in (circuit.graph, CircuitGraph(network("phi").config), CircuitGraph(network("gpt2").config)):
        for number in range(graph.num_edges):
            assert graph.mask([graph.edge(number)]).nonzero().flatten().tolist() == [number]
        for edge in (("m1", "m0"), ("nothing", "m0"), ("m0", "nothing")):
            with pytest.raises(UserError, match="has 1 edge that the graph"):
                graph.mask([edge])
    with pytest.raises(UserError):  # side by side, a layer's heads are not read by its own feed-forward network
        CircuitGraph(network("phi").config).mask([("a0.h0", "m0")])


def test_figures_without_those_of_the_model_are_shown(circuit, tmp_path):
    path = tmp_path / "c.json"
    circuit.save(path)
    content = json.loads(path.read_text())
    metrics = {"circuit": {"distance": 0.5}, "worst": {"distance_p50": 0.25}}
    path.write_text(json.dumps({**content, "metrics": metrics}))
    page = tmp_path / "c.html"
    circuit_page(Circuit.load(path)).write(page)
    assert "distance_p50" in page.read_text()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"a": 5}, "methods.a"),
        ({"a": {"curve": 5}}, "methods.a.curve"),
        ({"a": {"curve": []}}, "methods.a.curve"),
        ({"a": {"curve": [{"x": 1}]}}, "fraction"),
        ({"a": {"curve": [{"fraction": 0, "distance": 1, "faithfulness": 1}]}}, "fraction"),
        ({}, "methods"),
    ],
)
def test_curves_that_are_none_are_refused_by_their_field(tmp_path, methods, message):
    from lmlab.methods.edge_pruning.commands.compare import read_curves

    path = tmp_path / "curves.json"
    path.write_text(json.dumps({"methods": methods}))
    with pytest.raises(UserError, match=message):
        read_curves(path)
