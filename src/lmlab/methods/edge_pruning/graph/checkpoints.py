"""Checkpoints of the reference implementation of Edge Pruning: its gates, decided by its own rule.

Shapes: W writers, H query heads, K key-value heads, E edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.models.internals.gates import TEMPERATURE, probability_open

_PREFIXES = ("transformer.h.", "model.layers.")
_SHARPNESS = 0.8  # the factor by which the reference decides its gates


def read_checkpoint(path: Path, graph: CircuitGraph) -> tuple[Tensor, Tensor]:
    """The edges that the reference would keep, and the log-alphas of all, at most their writer's, [E] each.

    An edge is kept where its own gate and its writer's are. Each tensor of gates is sharpened, as many of its entries
    set to 0 as are closed in the mean, and a threshold found at which the share kept is the mean of what is left.

    Arguments:
        path: model.safetensors of a checkpoint, or its folder.

    Raises:
        UserError: it is none, or its tensors do not fit the graph.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' is not a checkpoint ({error}).") from None
    prefix = next((each for each in _PREFIXES if f"{each}0.q_read_log_alphas" in tensors), None)
    if prefix is None:
        raise UserError(
            f"'{path}' holds no gates (such as {_PREFIXES[0]}0.q_read_log_alphas).",
            "Name model.safetensors of a checkpoint of the reference implementation.",
        )
    outer = prefix.rpartition(".")[0].rpartition(".")[0]

    def gates(name: str, *shape: int) -> Tensor:
        found = tensors.get(name)
        if found is None:
            raise UserError(f"'{path}' lacks the tensor {name}.")
        if tuple(found.shape) != shape and found.numel() != torch.Size(shape).numel():
            raise UserError(
                f"'{path}': {name} has the shape {tuple(found.shape)}; this graph needs {shape}.",
                "It was made for another model, or with other graph options (embedding_nodes).",
            )
        return found.float().reshape(shape)

    config, writers = graph.config, len(graph.writers)
    log_alpha_E, soft_E = torch.empty(graph.num_edges), torch.empty(graph.num_edges)
    for group in graph.groups:
        if group.kind == "output":
            parts = [gates(f"{outer}.final_read_log_alphas", writers)[:, None]]
        elif group.kind == "ffn":
            parts = [gates(f"{prefix}{group.layer}.mlp_read_log_alphas", writers)[:, None]]
        else:
            heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
            parts = [
                gates(f"{prefix}{group.layer}.{part}_read_log_alphas", writers, count) for part, count in heads.items()
            ]
        place = slice(group.first_edge, group.first_edge + group.num_edges)
        # a tensor has rows for later writers too, which are no edges, but count when it is sharpened
        log_alpha_E[place] = torch.cat([part[: group.reads].T for part in parts]).flatten()
        soft_E[place] = torch.cat([_sharpened(part)[: group.reads].T for part in parts]).flatten()
    kept_E = _decided(soft_E)
    nodes = _writers(graph, gates, outer, prefix, tensors)
    if nodes is not None:
        log_alpha_W, soft_W = nodes
        kept_E &= _decided(soft_W)[graph.edge_writers]
        log_alpha_E = torch.minimum(log_alpha_E, log_alpha_W[graph.edge_writers])
    return kept_E, log_alpha_E


def _writers(
    graph: CircuitGraph, gates: Callable[..., Tensor], outer: str, prefix: str, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """The log-alphas of writers and their gates, sharpened, [W] each; None for a checkpoint without them."""
    if f"{prefix}0.attn_write_log_alphas" not in tensors:
        return None
    found = []
    for name in graph.writers[: graph.first_writer]:
        kind = {"tok_embeds": "token_write_log_alpha", "pos_embeds": "pos_write_log_alpha"}.get(name)
        single = f"{outer}.{kind or 'embed_write_log_alpha'}"
        found.append(gates(single, 1) if single in tensors else torch.full((1,), torch.inf))  # always open
    for layer in range(graph.config.num_layers):
        found.append(gates(f"{prefix}{layer}.attn_write_log_alphas", graph.config.num_heads))
        found.append(gates(f"{prefix}{layer}.mlp_write_log_alphas", 1))
    return torch.cat(found), torch.cat([_sharpened(each) for each in found])


def _sharpened(log_alpha: Tensor) -> Tensor:
    """Gates without noise, with as many of the smallest at 0 as are closed in the mean."""
    closed = round(float((1 - probability_open(log_alpha)).sum()))
    soft = torch.sigmoid(_SHARPNESS * log_alpha / TEMPERATURE)
    if closed:
        soft = soft.flatten()
        soft[soft.argsort()[:closed]] = 0.0
    return soft.reshape(log_alpha.shape)


def _decided(soft: Tensor) -> Tensor:
    """True for the largest, as many as are open in the mean: where the reference's bisection for that share ends."""
    count = round(float(soft.sum()))
    if not count:
        return torch.zeros_like(soft, dtype=torch.bool)
    return (soft >= soft.sort(descending=True).values[count - 1]) & (soft > 0)
