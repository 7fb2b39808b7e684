"""Information flow routes (Ferrando and Voita 2024): how much of the output each edge brings, without gradients and
without another input.

Where vectors z_w add up to y, the share of one is its proximity max(0, |y|_1 - |y - z_w|_1) over that of all (section
2.2 of the paper). From the output at the places where the model answers, which has a flow of 1, each reader hands its
flow on to the writers that it reads by their shares, a feed-forward network to its own reader at the same token, and a
head to the tokens that it looks at by the shares of what it takes from each. The method does not tell queries, keys and
values of a head apart: queries get the flow at the token that looks, keys and values that at those which are looked at.

Shapes: B examples, T query tokens, S key tokens, D model width, W writers, w writers that a group reads, R readers, N
heads, H width of a head, E edges.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.graph import Group
from lmlab.methods.edge_pruning.masking.activations import capture, nothing_like
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import Inputs, MaskedModel
from lmlab.models.internals import surgery
from lmlab.models.internals.taps import Recorder
from lmlab.progress import progress


@torch.no_grad()
def information_flow(task: Counterfactuals) -> Tensor:
    """The flow over each edge, a mean over examples, [E]."""
    total_E = torch.zeros(task.masked.graph.num_edges, dtype=torch.float64)
    with progress("ifr", len(task.examples), "examples") as advance:
        for index_B in task.batches():
            weights_BP = task.examples.weights[index_B]
            total_E += _flow(task.masked, task.inputs(index_B), weights_BP).double().cpu().sum(0)
            advance(len(index_B))
    return total_E / len(task.examples)


def shares(parts_BnTD: Tensor, whole_BTD: Tensor) -> Tensor:
    """By how much each part brings the whole about, [B, n, T], which add up to 1. Where none is near the whole, shares
    are those of sizes.
    """
    sizes_BnT = parts_BnTD.abs().sum(-1)
    near_BnT = whole_BTD.abs().sum(-1)[:, None] - (whole_BTD[:, None] - parts_BnTD).abs().sum(-1)
    near_BnT = near_BnT.clamp(min=0)
    near_BnT = torch.where(near_BnT.sum(1, keepdim=True) > 0, near_BnT, sizes_BnT)
    return near_BnT / near_BnT.sum(1, keepdim=True).clamp(min=1e-12)


def _flow(masked: MaskedModel, inputs: Inputs, weights_BP: Tensor) -> Tensor:
    graph = masked.graph
    plain = replace(inputs, replaced=nothing_like(inputs.replaced))  # writers write what they write, less nothing
    store = masked.new_store(plain)
    masked(plain, masked.ones(), store=store)
    batch, length = inputs.clean_BT.shape
    written_BWTD = store.written_BWM.view(batch, len(graph.writers), length, -1)
    seen = capture(masked.model, graph, inputs.clean_BT, inputs.real_BT)
    weights_BP = weights_BP.to(written_BWTD)
    at_BT = written_BWTD.new_zeros(batch, length)
    at_BT.scatter_add_(1, inputs.positions_BP, weights_BP / weights_BP.sum(1, keepdim=True))
    flow_BWT = written_BWTD.new_zeros(batch, len(graph.writers), length)
    edges_BE = written_BWTD.new_zeros(batch, graph.num_edges)
    for group, stream_BTD in reversed(list(zip(graph.groups, seen.streams, strict=True))):
        own_BnT = flow_BWT[:, group.first_write : group.first_write + len(group.writes)]
        readers_BRT = at_BT[:, None]
        if group.kind == "attention":
            readers_BRT = _of_heads(masked, inputs, group, stream_BTD, own_BnT)
        elif group.kind == "ffn":
            readers_BRT = own_BnT.sum(1, keepdim=True)
        shares_BwT = shares(written_BWTD[:, : group.reads], stream_BTD)
        at_spans_BRT = readers_BRT
        if inputs.spans_BT is not None:
            inside_BST = inputs.spans_BT[:, None] == torch.tensor(group.spans, device=at_BT.device)[:, None]
            at_spans_BRT = (inside_BST[:, :, None] * readers_BRT[:, None]).flatten(1, 2)
        edges_BE[:, group.first_edge : group.first_edge + group.num_edges] = torch.einsum(
            "brt,bwt->brw", at_spans_BRT, shares_BwT
        ).flatten(1)
        flow_BWT[:, : group.reads] += readers_BRT.sum(1, keepdim=True) * shares_BwT
    return edges_BE


def _of_heads(masked: MaskedModel, inputs: Inputs, group: Group, stream_BTD: Tensor, own_BnT: Tensor) -> Tensor:
    """The flow at the queries, keys and values of a layer, a third of each head's own in each, [B, R, T]."""
    config, block = masked.graph.config, masked.model.block(group.layer)
    names = [f"blocks.{group.layer}.attention.{part}" for part in ("pattern", "value")]
    seen = Recorder(*names)
    seen.bind(config.num_layers)
    _, context = masked.model.embeddings(inputs.clean_BT, inputs.real_BT)
    surgery.heads(block, stream_BTD, replace(context, taps=seen))
    pattern_BNTS, values_BKSH = (seen[name] for name in names)
    values_BNSH = values_BKSH.repeat_interleave(config.num_heads // config.num_kv_heads, 1)
    written_BSND = surgery.write_heads(block, values_BNSH.transpose(1, 2))
    # where attention is one writer, its heads have equal parts of its flow
    queries_BNT = own_BnT.expand(-1, config.num_heads, -1) * (own_BnT.shape[1] / config.num_heads)
    looked_at = []
    for head in range(config.num_heads):
        parts_BSTD = pattern_BNTS[:, head].transpose(1, 2)[..., None] * written_BSND[:, :, head, None]
        shares_BST = shares(parts_BSTD, parts_BSTD.sum(1))
        looked_at.append((shares_BST * queries_BNT[:, head, None]).sum(2))
    keys_BKT = torch.stack(looked_at, 1).unflatten(1, (config.num_kv_heads, -1)).sum(2)
    return torch.cat((queries_BNT, keys_BKT, keys_BKT), 1) / 3
