"""One ranking for circuits of all sizes, gates drawn uniformly, and the rules and files of the benchmark MIB."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    Circuit,
    CircuitGraph,
    Counterfactuals,
    Ends,
    FindConfig,
    GraphOptions,
    MaskedModel,
    areas,
    attribute,
    auroc,
    curve,
    make_examples,
    search,
)
from lmlab.methods.edge_pruning.graph.formats import read_eap_ig, write_eap_ig
from lmlab.methods.edge_pruning.graph.submission import SIZES, write_submission
from lmlab.methods.edge_pruning.measures import FRACTIONS
from lmlab.methods.edge_pruning.search.rank import SoftTop
from lmlab.models.internals.gates import sample_window


def test_soft_masks_have_the_size_asked_for_and_the_gradient_of_the_formula():
    scores = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sizes = torch.tensor([0.7, 3.0, 8.2])
    z = SoftTop.apply(scores, sizes, 0.5)
    assert torch.allclose(z.sum(1), sizes.double(), atol=1e-9)
    assert torch.autograd.gradcheck(lambda s: SoftTop.apply(s, sizes, 0.5), (scores,), atol=1e-5)
    order = scores.argsort()
    assert bool((z[:, order].diff(dim=1) >= 0).all())


def test_gates_of_a_uniform_window_have_a_gradient_of_one_within_it_and_none_beyond():
    theta = torch.tensor([0.3, 0.3, 0.3], requires_grad=True)
    p = float(torch.sigmoid(theta[0].detach()))
    w = p * (1 - p)
    z = sample_window(theta, torch.tensor([p + 0.1 * w, p - w, p + w]))
    assert torch.allclose(z, torch.tensor([0.4, 1.0, 0.0]), atol=1e-6)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    assert torch.allclose(slope, torch.tensor([w, 0.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("method", ["ranking", "ugs"])
def test_trained_scores_put_the_known_edges_first(tracr_task, method):
    read, task = tracr_task("xproportion", "zero")
    known_E = task.masked.graph.mask(read.ground_truth["zero"])
    training = {"ranking" if method == "ranking" else "pruning": {"steps": 150, "batch_size": 32}}
    config = FindConfig(method=method, ablation="zero", num_edges=5, **training)
    assert auroc(search(task, config).scores_E, known_E) >= 0.97


def test_a_ranking_for_a_metric_needs_answers(tracr_task):
    _, task = tracr_task("xproportion", "zero")
    with pytest.raises(UserError, match="needs examples with answers"):
        search(task, FindConfig(method="ranking", ablation="zero", num_edges=5, ranking={"objective": "metric"}))


def test_joined_embeddings_are_one_writer_and_the_same_network(network):
    model = network("gpt2")
    examples = make_examples([[1, 2, 3]], [[4, 5, 3]], [[2]])
    apart, joined = (
        Counterfactuals(MaskedModel(model, CircuitGraph(model.config, GraphOptions(join_embeddings=join))), examples)
        for join in (False, True)
    )
    # MIB counts (layers, heads) = (2, 4): 1 input, per layer 12 readers and one feed-forward network
    assert joined.masked.graph.num_edges == sum(13 * (1 + 5 * layer) + 4 for layer in range(2)) + 11
    index = torch.arange(1)
    full = model(examples.clean).logits_BTV[:, 2:]
    with torch.no_grad():
        out = joined.masked(joined.inputs(index), joined.masked.ones())
        assert torch.allclose(out, full, atol=1e-9)
        # an edge of the joined writer is both edges of its parts
        kept = torch.rand(joined.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
        both = {(a, r): keep for (a, r), keep in zip(joined.masked.graph.edges(), kept.tolist(), strict=True)}
        same = torch.tensor(
            [both["embeds" if a.endswith("embeds") else a, r] for a, r in apart.masked.graph.edges()]
        ).double()
        ours = joined.masked(joined.inputs(index), kept.double()[None])
        assert torch.allclose(ours, apart.masked(apart.inputs(index), same[None]), atol=1e-9)


def test_areas_are_those_of_the_benchmark():
    rows = [{"fraction": x, "faithfulness": y} for x, y in zip(FRACTIONS, np.linspace(-0.3, 1.4, 10), strict=True)]
    area, gap = 0.0, 0.0
    for a, b in itertools.pairwise(rows):  # trapezoids by hand
        step = b["fraction"] - a["fraction"]
        area += step * (a["faithfulness"] + b["faithfulness"]) / 2
        gap += step * (abs(1 - a["faithfulness"]) + abs(1 - b["faithfulness"])) / 2
    found = areas(rows)
    assert found["cpr"] == pytest.approx(area) and found["cmd"] == pytest.approx(gap)
    logs = [{**row, "fraction": np.log(row["fraction"])} for row in rows]
    gap = sum(
        (b["fraction"] - a["fraction"]) * (abs(1 - a["faithfulness"]) + abs(1 - b["faithfulness"])) / 2
        for a, b in itertools.pairwise(logs)
    )
    assert found["cmd_log"] == pytest.approx(gap / -logs[0]["fraction"])


def test_a_curve_cuts_the_number_of_edges_and_has_intervals(network, task_of):
    task = task_of(network("llama"), count=8)
    edges = task.masked.graph.num_edges
    rows = curve(task, torch.rand(edges), Ends.of(task), (0.1, 1.0))
    assert rows[0]["edges"] <= int(0.1 * edges) and rows[1]["edges"] == edges
    assert rows[1]["faithfulness"] == pytest.approx(1) and rows[1]["distance"] == pytest.approx(0, abs=1e-9)
    assert rows[0]["faithfulness_low"] <= rows[0]["faithfulness"] <= rows[0]["faithfulness_high"]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize(("kind", "join"), [("gpt2", True), ("llama", False)])
def test_graphs_of_eap_ig_go_out_and_in(network, tmp_path, suffix, kind, join):
    graph = CircuitGraph(network(kind).config, GraphOptions(join_embeddings=join))
    generator = torch.Generator().manual_seed(0)
    scores_E = torch.randn(graph.num_edges, generator=generator)
    kept_E = torch.rand(graph.num_edges, generator=generator) < 0.3
    path = tmp_path / f"graph{suffix}"
    write_eap_ig(Circuit(graph, kept_E, "interchange", scores_E), path)
    found_kept_E, found_E = read_eap_ig(path, graph)
    assert torch.equal(found_kept_E, kept_E) and torch.allclose(found_E, scores_E)


def test_a_pickle_is_not_opened(network, tmp_path):
    path = tmp_path / "graph.pt"
    torch.save({"cfg": print}, path)
    with pytest.raises(UserError, match="plain tensors"):
        read_eap_ig(path, CircuitGraph(network("llama").config))
    torch.save({"cfg": {}}, path)
    with pytest.raises(UserError, match="it must hold"):
        read_eap_ig(path, CircuitGraph(network("llama").config))


@pytest.mark.parametrize("method", ["eap-gp", "nap", "nap-ig"])
def test_other_attributions(network, task_of, method):
    task = task_of(network("gpt2"), count=4)
    found = attribute(task, method, 3)
    assert bool(found.isfinite().all()) and bool(found.any())
    if method != "eap-gp":
        writers = task.masked.graph.edge_writers
        edges = attribute(task, method.replace("nap", "eap"), 3)
        for writer in (0, 3):
            assert torch.allclose(found[writers == writer], edges[writers == writer].sum())


def test_signed_and_absolute_rankings_of_a_curve(lmlab, tmp_path, network, task_of):
    from lmlab.models import save_pretrained

    model = network("llama").float()
    save_pretrained(model, tmp_path / "model")
    row = {"clean": [1, 2, 3], "corrupted": [4, 5, 3], "answer": 6, "distractor": 7}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "clean": [n, 2, 3]}) + "\n" for n in range(8, 20)))
    base = ("--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--force")
    out = tmp_path / "c.json"
    assert lmlab("circuits", "find", *base, "--method", "eap", "--num-edges", "20", "--out", out).code == 0
    figures = []
    for rank in ("signed", "absolute"):
        path = tmp_path / f"{rank}.json"
        done = lmlab("circuits", "evaluate", out, *base, "--curve", "--rank", rank, "--out", path)
        assert done.code == 0, done.err
        figures.append(json.loads(path.read_text()))
    assert figures[0]["curve"] != figures[1]["curve"]
    assert lmlab("circuits", "evaluate", out, *base, "--rank", "sign").code == 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_submission_has_nine_circuits_by_rank_within_their_share_of_edges(network, tmp_path, kind):
    graph = CircuitGraph(network(kind, num_layers=4).config)
    scores_E = torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0))
    circuit = Circuit(graph, torch.ones(graph.num_edges, dtype=torch.bool), "interchange", scores_E)
    counts = write_submission(circuit, tmp_path / "ioi_llama", scores_E.abs())
    found = {path.stem: json.loads(path.read_text())["edges"] for path in (tmp_path / "ioi_llama").iterdir()}
    assert len(found) == 10 and len(found["importances"]) == sum(13 * (1 + 5 * layer) + 4 for layer in range(4)) + 21
    before = set()
    for size, count in zip(SIZES, counts, strict=True):
        inside = {name for name, each in found[str(size)].items() if each["in_graph"]}
        assert len(inside) == count <= int(size * len(found["importances"]))
        before |= inside
    assert counts == sorted(counts) and counts[-1] > 0.3 * len(found["importances"])
    whole = {name: abs(each["score"]) for name, each in found["importances"].items()}
    last = {name for name, each in found["0.5"].items() if each["in_graph"]}
    assert min(whole[name] for name in last) >= sorted(whole.values())[len(whole) // 3]
    with pytest.raises(UserError, match="no scores"):
        write_submission(Circuit(graph, circuit.kept_E, "interchange"), tmp_path / "other", scores_E)
