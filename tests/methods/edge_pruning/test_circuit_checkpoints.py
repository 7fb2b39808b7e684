"""Gates of the reference implementation, decided by its rule."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import CircuitGraph, ranking
from lmlab.methods.edge_pruning.graph.checkpoints import _decided, _sharpened, read_checkpoint


def _save(path, graph, inside, prefix="transformer.h."):
    """Gates far open for the edges named, far closed for all others."""
    writers, config = len(graph.writers), graph.config
    names = {name: number for number, name in enumerate(graph.writers)}
    tensors = {}
    for layer in range(config.num_layers):
        for part, count in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
            tensors[f"{prefix}{layer}.{part}_read_log_alphas"] = torch.full((writers, count), -9.0)
        tensors[f"{prefix}{layer}.mlp_read_log_alphas"] = torch.full((writers,), -9.0)
        tensors[f"{prefix}{layer}.attn_write_log_alphas"] = torch.full((config.num_heads,), 9.0)
        tensors[f"{prefix}{layer}.mlp_write_log_alphas"] = torch.full((1,), 9.0)
    outer = prefix.split(".")[0]
    tensors[f"{outer}.final_read_log_alphas"] = torch.full((writers,), -9.0)
    for writer, reader in inside:
        if reader == "resid_post":
            tensors[f"{outer}.final_read_log_alphas"][names[writer]] = 9.0
        elif reader.startswith("m"):
            tensors[f"{prefix}{reader[1:]}.mlp_read_log_alphas"][names[writer]] = 9.0
        else:
            layer, head, part = reader[1:].replace("h", "").split(".")
            tensors[f"{prefix}{layer}.{part}_read_log_alphas"][names[writer], int(head)] = 9.0
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize(("kind", "prefix"), [("gpt2", "transformer.h."), ("llama", "model.layers.")])
def test_open_gates_are_the_circuit(network, tmp_path, kind, prefix):
    graph = CircuitGraph(network(kind).config)
    inside = [(graph.writers[0], "a0.h1.k"), ("a0.h1", "m0"), ("m0", "a1.h0.v"), ("a1.h0", "resid_post")]
    path = tmp_path / "model.safetensors"
    tensors = _save(path, graph, inside, prefix)
    kept_E, scores_E = read_checkpoint(tmp_path, graph)
    assert set(graph.edges(kept_E)) == set(inside) and bool((scores_E[kept_E] == 9).all())
    # a writer that is closed takes its edges with it
    tensors[f"{prefix}0.attn_write_log_alphas"][1] = -9.0
    save_file(tensors, path)
    kept_E, scores_E = read_checkpoint(path, graph)
    assert set(graph.edges(kept_E)) == set(inside) - {("a0.h1", "m0")}
    # closed gates rank last, whatever their size, and edges of a closed writer with them
    assert torch.equal(ranking("checkpoint", scores_E) > 0, kept_E)


def test_the_rule_sharpens_and_keeps_the_share_that_is_open():
    log_alpha = torch.linspace(-4, 4, 101)
    soft = _sharpened(log_alpha)
    closed = round(float((1 - torch.sigmoid(log_alpha + 1.5986)).sum()))
    assert int((soft == 0).sum()) == closed
    kept = _decided(soft)
    assert int(kept.sum()) == pytest.approx(float(soft.sum()), abs=1)
    assert bool((kept == (torch.arange(101) >= 101 - int(kept.sum()))).all())


def test_other_files_are_refused(network, tmp_path):
    graph, path = CircuitGraph(network("gpt2").config), tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(path, graph)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds no gates"):
        read_checkpoint(path, graph)
    tensors = _save(path, graph, [])
    save_file({**tensors, "transformer.final_read_log_alphas": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"final_read_log_alphas has the shape \(3,\)"):
        read_checkpoint(path, graph)
