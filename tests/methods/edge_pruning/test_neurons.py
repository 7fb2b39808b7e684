"""Single numbers of what writers write."""

from __future__ import annotations

import json

import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    Ends,
    attribute,
    attribute_neurons,
    measure,
    measure_each,
    neuron_curve,
    top_neurons,
)
from lmlab.models import save_pretrained


def _difference(task, neurons_WD):
    everything = torch.ones(task.masked.graph.num_edges, dtype=torch.float64)
    each = measure_each(task, everything, neurons_WD)
    return float(each["logit_difference"].double().mean())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmoe"])
def test_neurons_pruned_together_are_the_writer_and_all_of_them_the_corrupted_run(network, task_of, kind):
    task = task_of(network(kind))
    graph = task.masked.graph
    ones = torch.ones(len(graph.writers), graph.config.d_model, dtype=torch.float64)
    inputs = task.inputs(torch.arange(4))
    with torch.no_grad():
        empty = task.masked(inputs, task.masked.ones(), neurons_WD=0 * ones)
        assert torch.allclose(empty, task.masked(inputs, 0 * task.masked.ones()), atol=1e-9)
        without = ones.clone()
        without[2] = 0
        z = (graph.edge_writers != 2).double()[None]
        assert torch.allclose(
            task.masked(inputs, task.masked.ones(), neurons_WD=without), task.masked(inputs, z), atol=1e-9
        )
        assert torch.equal(
            task.masked(inputs, task.masked.ones(), neurons_WD=ones), task.masked(inputs, task.masked.ones())
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_scores_are_slopes_and_add_up_to_those_of_writers(network, task_of, kind):
    task = task_of(network(kind))
    graph = task.masked.graph
    scores_WD, step = attribute_neurons(task, 1), 1e-6
    for writer, dimension in ((0, 3), (2, 0), (len(graph.writers) - 1, 7)):
        less = torch.ones(scores_WD.shape, dtype=torch.float64)
        less[writer, dimension] -= step
        slope = (_difference(task, torch.ones_like(less)) - _difference(task, less)) / step
        assert float(scores_WD[writer, dimension]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    for method, steps in (("nap", 1), ("nap-ig", 3)):
        of_edges = attribute(task, method, steps)
        of_writers = torch.stack([of_edges[graph.edge_writers == writer][0] for writer in range(len(graph.writers))])
        assert torch.allclose(attribute_neurons(task, steps).sum(1), of_writers, atol=1e-8)
    with pytest.raises(UserError, match="no gradient"):
        attribute_neurons(task, 1, "distance")


def test_a_curve_ends_with_the_whole_model(network, task_of):
    task = task_of(network("llama"))
    ends = Ends.of(task)
    rows = neuron_curve(task, attribute_neurons(task).abs(), ends, (0.01, 0.3, 1.0))
    assert [row["neurons"] for row in rows] == [int(0.01 * 11 * 32), int(0.3 * 11 * 32), 11 * 32]
    assert rows[-1]["faithfulness"] == pytest.approx(1) and rows[-1]["distance"] == pytest.approx(0, abs=1e-9)
    assert measure(task, torch.ones(task.masked.graph.num_edges))["distance"] == pytest.approx(0, abs=1e-9)
    assert top_neurons(torch.tensor([[3.0, 1.0], [2.0, 9.0]]), 2).tolist() == [[1, 0], [0, 1]]


def _read(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)


def test_the_command_writes_the_best_neurons(lmlab, network, tmp_path):
    save_pretrained(network("llama").float(), tmp_path / "model")
    rows = [{"clean": [1, n, 3], "corrupted": [n, 2, 3], "answer": 5, "distractor": 7} for n in range(10, 22)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "n.json"
    command = ["circuits", "neurons", "--model", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--force"]
    done = lmlab(*command, "--most", 5, "--out", out)
    assert done.code == 0, done.err
    assert "which may be by chance" in done.out  # of two examples one is right anyway
    found = json.loads(out.read_text())
    assert len(found["neurons"]) == 5 and found["held_out"] and found["n"] == 2 and len(found["curve"]) == 10
    sizes = [abs(score) for _, _, score in found["neurons"]]
    assert sizes == sorted(sizes, reverse=True)
    for name in ("graph.json", "graph.pt"):
        assert lmlab(*command, "--out", out, "--out-mib", tmp_path / name).code == 0
    (theirs, tensors), best = (_read(tmp_path / f"graph.{end}") for end in ("json", "pt")), found["neurons"][0]
    assert theirs["nodes"][best[0].replace("embeds", "input")]["neurons_scores"][best[1]] == pytest.approx(best[2])
    assert all(
        len(each["neurons"]) == 32 and each["in_graph"] for each in theirs["nodes"].values() if "neurons" in each
    )
    assert set(theirs["nodes"]) == {*tensors["src_nodes"], "logits"} and "neurons" not in theirs["nodes"]["logits"]
    assert tensors["neurons_scores"].shape == (11, 32) == tensors["neurons_in_graph"].shape
    assert tensors["neurons_in_graph"].dtype == torch.bool
    done = lmlab(*command, "--out-mib", tmp_path / "new.json", "--out", tmp_path / "new.json")
    assert done.code == 2 and "is also what --out writes" in done.err and not (tmp_path / "new.json").exists()
    done = lmlab(*command, "--out-mib", tmp_path / "data.jsonl", "--out", out)
    assert done.code == 2 and "is what --data reads, and would be written over" in done.err
    save_pretrained(network("olmoe").float(), tmp_path / "experts")
    command[3] = tmp_path / "experts"
    done = lmlab(*command, "--set", "graph.moe=expert", "--out", tmp_path / "new.json", "--out-mib", tmp_path / "e.pt")
    assert done.code == 2 and "not experts or whole attentions" in done.err and not (tmp_path / "new.json").exists()
    command[3] = tmp_path / "model"
    for setting in ("method=eap", "target=0.9", "num_edges=5"):
        done = lmlab(*command, "--set", setting, "--out", out)
        assert done.code == 2 and "no influence on neurons" in done.err
    done = lmlab(*command, "--metric", "accuracy", "--out", out)
    assert done.code == 2 and "no gradient" in done.err
