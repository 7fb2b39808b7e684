"""AtP* (Kramár et al. 2024): attribution that neither saturated attention nor effects that cancel can hide.

Two repairs of the gradient at the whole model. Where an edge ends in a query or a key, the attention pattern without
the edge is computed, and its change takes the place of the slope of the softmax (section 3.1.1 of the paper). And
scores are the mean size over gradients of which each drops what passes through one layer, so that a direct effect and
one through later layers do not cancel (section 3.1.2). In models of few layers an edge may act only through all layers
but its own, where every such gradient is zero; the gradient that drops nothing can be taken into the mean for them.

Shapes: B examples, c writers at once, T tokens, E edges, R readers of a layer, w writers that they read, M = T D, N
query heads, K key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.graph import Group
from lmlab.methods.edge_pruning.graph.store import Store
from lmlab.methods.edge_pruning.masking.activations import capture
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import Inputs, MaskedModel, written_by_heads
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.internals import surgery
from lmlab.models.internals.taps import Recorder, Taps

_ROWS = 64
"""Examples times writers of one computation of patterns."""


def sizes_of_dropped_gradients(
    task: Counterfactuals, index_B: Tensor, total: Callable[[Tensor], Tensor], whole: bool = False
) -> Tensor:
    """The mean size of each edge's score over gradients that drop a layer, [B, E].

    An edge into the layer that is dropped has no score there, so that its mean is over the other layers; with a single
    layer nothing is dropped. A norm over all queries of a layer is that without the edge to any of them.

    Arguments:
        total: the sum of the metric over examples, from logits.
        whole: the gradient that drops nothing is part of the mean too. Equation 11 of the paper leaves it out, so that
            an edge that acts only through all other layers has a score of 0.
    """
    masked, inputs = task.masked, task.inputs(index_B)
    layers = range(masked.graph.config.num_layers)
    drops = [[group.first_write for group in masked.graph.groups if group.layer == layer] for layer in layers]
    if len(drops) == 1:
        drops, whole = [], True
    if whole:
        drops = [[], *drops]
    patterns = _Patterns(masked, inputs)
    slopes: list[Tensor] = []
    passes: list[list[Tensor | None]] = []
    for dropped in drops:
        store = masked.new_store(inputs, dropped=dropped)
        z = masked.ones().repeat(len(index_B), 1).requires_grad_()
        (slope_BE,) = torch.autograd.grad(total(masked(inputs, z, store=store)), z)
        slopes.append(slope_BE.clone())
        passes.append(
            [None if group.first_write in dropped else patterns.slope(group, store) for group in patterns.groups]
        )
    for place, group in enumerate(patterns.groups):
        for part, span, first, change_cBNTT in patterns.changes(group, store):
            for slope_BE, found in zip(slopes, passes, strict=True):
                slope_BNTT = found[place]
                if slope_BNTT is not None:
                    patterns.put(slope_BE, group, part, span, first, (change_cBNTT * slope_BNTT).sum((-1, -2)))
    # its own layer is one of those that are dropped, but for an edge to the output
    dropping = len(drops) > 1
    among = torch.tensor(
        [
            len(drops) - (dropping and group.kind != "output")
            for group in masked.graph.groups
            for _ in range(group.num_edges)
        ]
    )
    return torch.stack(slopes).abs().sum(0) / among.to(slopes[0])


class _Patterns:
    """Attention patterns of the whole model, with their gradients and without single edges."""

    def __init__(self, masked: MaskedModel, inputs: Inputs) -> None:
        self.masked, self.inputs = masked, inputs
        self.groups = [group for group in masked.graph.groups if group.kind == "attention"]
        self.seen = capture(masked.model, masked.graph, inputs.clean_BT, inputs.real_BT)

    def slope(self, group: Group, store: Store) -> Tensor:
        """The gradient of the metric for the pattern of a layer, [B, N, T, T], after the backward pass of a store."""
        leaves: list[Tensor] = []

        def hold(pattern: Tensor) -> Tensor:
            leaves.append(pattern.detach().requires_grad_())
            return leaves[0]

        block, stream_BTD = self.masked.model.block(group.layer), self.seen.streams[2 * group.layer]
        context = self._listening(Taps({self._name(group): hold}))
        with torch.enable_grad():
            heads_BTNH = surgery.heads(block, stream_BTD, context)
            out_BnM = written_by_heads(self.masked, group.layer, self.inputs, heads_BTNH)
        (found,) = torch.autograd.grad(out_BnM, leaves[0], store.gradient(group.first_write, len(group.writes)))
        return found

    @torch.no_grad()
    def changes(self, group: Group, store: Store) -> Iterator[tuple[str, int, int, Tensor]]:
        """The pattern of the whole model less that without the edge from each writer, by parts: `query` or `key`, the
        place of the span where it is read, the first writer, and [c, B, N, T, T].
        """
        stream_BTD = self.seen.streams[2 * group.layer]
        batch, length, _ = stream_BTD.shape
        count = max(1, _ROWS // batch)
        whole_BNTT = self._pattern(group, stream_BTD, stream_BTD)
        spans_BT = self.inputs.spans_BT
        for first, (span, number) in product(range(0, group.reads, count), enumerate(group.spans)):
            written_BcM = store.written_BWM[:, first : min(first + count, group.reads)]
            written_BcTD = written_BcM.view(batch, -1, length, stream_BTD.shape[-1])
            if spans_BT is not None:  # the edge of a span is missing at its tokens alone
                written_BcTD = written_BcTD * (spans_BT == number)[:, None, :, None]
            without = (stream_BTD[:, None] - written_BcTD).transpose(0, 1).flatten(0, 1)
            same = stream_BTD.repeat(written_BcM.shape[1], 1, 1)
            for part, query, key in (("query", without, same), ("key", same, without)):
                yield part, span, first, whole_BNTT - self._pattern(group, query, key).unflatten(0, (-1, batch))

    def put(self, slope_BE: Tensor, group: Group, part: str, span: int, first: int, each_cBN: Tensor) -> None:
        """Put scores of edges to queries or keys in the place of those by the slope of the softmax."""
        heads, kv_heads = self.masked.graph.config.num_heads, self.masked.graph.config.num_kv_heads
        own_BRw = slope_BE[:, group.first_edge : group.first_edge + group.num_edges].unflatten(1, (-1, group.reads))
        begin = span * group.parts
        rows = slice(begin, begin + heads)
        if part == "key":  # which the heads of its group share
            rows, each_cBN = slice(rows.stop, rows.stop + kv_heads), each_cBN.unflatten(2, (kv_heads, -1)).sum(3)
        own_BRw[:, rows, first : first + len(each_cBN)] = each_cBN.permute(1, 2, 0)

    def _pattern(self, group: Group, query: Tensor, key: Tensor) -> Tensor:
        seen = Recorder(self._name(group))
        surgery.heads(self.masked.model.block(group.layer), query, self._listening(seen, len(query)), key, key)
        return seen[self._name(group)]

    def _listening(self, taps: Taps, rows: int | None = None) -> AttentionContext:
        """What a layer shares of a pass over so many rows, in whose turns the examples come."""
        tokens_BT, real_BT = self.inputs.clean_BT, self.inputs.real_BT
        times = 1 if rows is None else rows // len(tokens_BT)
        real = None if real_BT is None else real_BT.repeat(times, 1)
        _, context = self.masked.model.embeddings(tokens_BT.repeat(times, 1), real)
        taps.bind(self.masked.graph.config.num_layers)
        return replace(context, taps=taps)

    @staticmethod
    def _name(group: Group) -> str:
        return f"blocks.{group.layer}.attention.pattern"
