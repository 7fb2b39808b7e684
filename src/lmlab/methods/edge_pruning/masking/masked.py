"""A frozen model whose every part reads a masked sum of earlier outputs (Bhaskar et al. 2024, eq. 1).

With y_w what writer w gives in this pass, c_w what takes its place on a pruned edge, and z the mask of the edge from w
to a reader, the reader gets sum_w z y_w + (1 - z) c_w, computed as base + sum_w z d_w with d_w = y_w - c_w and base =
sum_w c_w: the residual stream of the ablated run.

Shapes: B examples, T tokens, D model width, E edges, R readers, N heads, K key-value heads, H width of a head, n
writers, M = T D.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph, Group
from lmlab.methods.edge_pruning.graph.store import Compute, Store
from lmlab.methods.edge_pruning.masking.activations import Activations, capture
from lmlab.models import Transformer
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.block import Block
from lmlab.models.internals import surgery
from lmlab.models.internals.taps import Recorder, Taps

_ADDS_UP = 1e-4  # rounding in fp32 stays well below, a part that is left out well above


@dataclass(frozen=True)
class Inputs:
    """Examples, ready for masked passes.

    Attributes:
        clean_BT: their tokens, padded on the right.
        replaced: what takes the place of pruned edges.
        scales: those of frozen norms, from the clean run.
        positions_BP: where logits are wanted, [B, P].
        real_BT: False for padding that no token may see, where attention is not causal; None if there is none.
        spans_BT: the span of each token, where the graph tells them apart.
    """

    clean_BT: Tensor
    replaced: Activations
    scales: tuple[Tensor, ...]
    positions_BP: Tensor
    real_BT: Tensor | None = None
    spans_BT: Tensor | None = None


class MaskedModel:
    """A model and its graph.

    Arguments:
        model: it is frozen; its own sub-layers compute everything.
        recompute: activation checkpointing: compute each sub-layer again in the backward pass.
    """

    def __init__(self, model: Transformer, graph: CircuitGraph, recompute: bool = False) -> None:
        self.model, self.graph, self.recompute = model.eval().requires_grad_(False), graph, recompute

    def __call__(
        self,
        inputs: Inputs,
        z_BE: Tensor,
        *,
        embeddings: tuple[Tensor, ...] | None = None,
        measured: Store | None = None,
        store: Store | None = None,
        first_group: int = 0,
        straight: bool = False,
        taps: Taps | None = None,
        neurons_WD: Tensor | None = None,
    ) -> Tensor:
        """The logits of a masked pass.

        Arguments:
            z_BE: masks, [B, E], or [1, E] for all examples alike.
            embeddings: in place of those of the clean tokens.
            measured: gradients of masks are taken with what that pass has written.
            store: receives what is written, in place of a new memory.
            first_group: begin at this group of readers; the store holds what those before it have written.
            straight: gradients pass through norms, attention patterns and activations as through linear maps
                (`surgery`); numbers are the same.
            taps: listeners on what happens within attention, such as its patterns.
            neurons_WD: masks of single numbers that writers write, for all tokens alike, [n, D]; by default all ones.

        Returns:
            [B, P, V].
        """
        found, context = self.model.embeddings(inputs.clean_BT, inputs.real_BT)
        found = embeddings or found
        if taps is not None:
            taps.bind(self.graph.config.num_layers)
            context = replace(context, taps=taps)
        batch, length, width = found[0].shape
        store = store or self.new_store(inputs, measured)
        embedded = [y - c for y, c in zip(found, inputs.replaced.embeddings, strict=True)]
        if self.graph.options.join_embeddings:
            embedded = [torch.stack(torch.broadcast_tensors(*embedded)).sum(0)]
        if self.graph.options.embedding_nodes:
            store.write(0, _kept(torch.stack(embedded, 1).flatten(2), neurons_WD, 0))
        always_BTD = None if self.graph.options.embedding_nodes else sum(embedded)
        z_BE = z_BE.to(found[0].dtype).expand(batch, -1)
        for group, stream in list(zip(self.graph.groups, inputs.replaced.streams, strict=True))[first_group:]:
            base_BTD = stream if always_BTD is None else stream + always_BTD
            base_BM = base_BTD.expand(batch, length, width).reshape(batch, -1)
            z_BRw = z_BE[:, group.first_edge : group.first_edge + group.num_edges].view(
                batch, len(group.readers), group.reads
            )
            if group.kind == "output":
                read_BRM = store.last_read(z_BRw, base_BM)
                read_BTD = _at_spans(read_BRM, group, inputs.spans_BT).view(batch, length, width)
                index = inputs.positions_BP[..., None].expand(-1, -1, width)
                return self.model.read_out(read_BTD.gather(1, index), straight)
            step = _Attention if group.kind == "attention" else _FeedForward
            kept = inputs.replaced.heads if group.kind == "attention" else inputs.replaced.ffns
            constants = [each for each in (kept[group.layer],) if each.requires_grad]
            compute = step(self, group, inputs, context, straight)
            kept_ = partial(_after, compute, neurons_WD, group, inputs.spans_BT)
            store.step(z_BRw, base_BM, kept_, group.first_write, len(group.writes), constants)
        raise AssertionError("a graph ends with its output")

    def new_store(self, inputs: Inputs, measured: Store | None = None, dropped: Collection[int] = ()) -> Store:
        """Memory for a pass over such inputs; arguments as of `Store`."""
        like = inputs.replaced.streams[0]
        batch, length = inputs.clean_BT.shape
        written = None if measured is None else measured.written_BWM
        return Store(batch, len(self.graph.writers), length * like.shape[-1], like, self.recompute, written, dropped)

    def ones(self) -> Tensor:
        """The masks of the whole graph, [1, E]."""
        return self.model.embedding.weight.new_ones(1, self.graph.num_edges)

    @torch.no_grad()
    def check(self, input_ids_BT: Tensor) -> None:
        """See that writers add up to the residual stream.

        Raises:
            UserError: they do not to 1e-4.
        """
        seen, name = capture(self.model, self.graph, input_ids_BT), "blocks.{}.attention.output"
        added = Recorder(name.format("*"))
        self.model(input_ids_BT, logits="none", taps=added)
        for layer in range(self.graph.config.num_layers):
            parts_BTD = written_by_all(self, layer, seen.heads[layer])
            added_BTD = added[name.format(layer)]
            error = float((parts_BTD - added_BTD).norm() / (added_BTD.norm() + 1e-9))
            if error > _ADDS_UP:
                raise UserError(
                    f"The heads of layer {layer} do not add up to the attention's output (relative error {error:.1e}).",
                    "Set the graph option post_norm to block, or run the model in fp32.",
                )


def written_by_all(masked: MaskedModel, layer: int, heads: Tensor) -> Tensor:
    """What the attention of a layer adds to the residual stream by what stands in `Activations.heads`, [B, T, D]."""
    return _written(masked.model.block(layer), masked.graph, heads, bias=True).sum(2)


def _written(block: Block, graph: CircuitGraph, heads: Tensor, bias: bool) -> Tensor:
    """What heads (or the attention as one) write, [B, T, n, D]."""
    if graph.one_writer:
        return heads[:, :, None]
    return surgery.write_heads(block, heads, bias)


def _kept(y_BnM: Tensor, neurons_WD: Tensor | None, first: int) -> Tensor:
    """What writers from this one on write, where only some of its numbers are kept."""
    if neurons_WD is None:
        return y_BnM
    own_nD = neurons_WD[first : first + y_BnM.shape[1]].to(y_BnM)
    return (y_BnM.unflatten(2, (-1, own_nD.shape[1])) * own_nD[:, None]).flatten(2)


def _after(
    compute: Compute, neurons_WD: Tensor | None, group: Group, spans_BT: Tensor | None, read_BRM: Tensor
) -> Tensor:
    return _kept(compute(_at_spans(read_BRM, group, spans_BT)), neurons_WD, group.first_write)


def _at_spans(read_BRM: Tensor, group: Group, spans_BT: Tensor | None) -> Tensor:
    """Of the readers of all spans, for each token what that of its own span reads."""
    if spans_BT is None:
        return read_BRM
    read_BSRTD = read_BRM.unflatten(1, (len(group.spans), group.parts)).unflatten(3, (spans_BT.shape[1], -1))
    # of tokens where nothing is read, such as the output's where nothing is asked, any place will do
    places = spans_BT.new_zeros(max(int(spans_BT.max()), *group.spans) + 1)
    places[list(group.spans)] = torch.arange(len(group.spans), device=places.device)
    index = places[spans_BT][:, None, None, :, None].expand(-1, 1, *read_BSRTD.shape[2:])
    return read_BSRTD.gather(1, index)[:, 0].flatten(2)


def written_by_heads(
    masked: MaskedModel, layer: int, inputs: Inputs, heads_BTNH: Tensor, straight: bool = False
) -> Tensor:
    """What the attention of a layer writes, less what takes its place, [B, n, M], given what its heads gathered."""
    graph, block, replaced = masked.graph, masked.model.block(layer), inputs.replaced
    if graph.one_writer:
        heads_BTNH = surgery.write_attention(block, heads_BTNH, straight)
    elif graph.frozen:
        heads_BTNH = heads_BTNH * inputs.scales[layer]
    out_BTnD = _written(block, graph, heads_BTNH - replaced.heads[layer], bias=not replaced.biased)
    return out_BTnD.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Attention:
    masked: MaskedModel
    group: Group
    inputs: Inputs
    context: AttentionContext
    straight: bool = False

    def __call__(self, read_BRM: Tensor) -> Tensor:
        graph, layer = self.masked.graph, self.group.layer
        config, block = graph.config, self.masked.model.block(layer)
        parts = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        read_BRTD = read_BRM.view(*read_BRM.shape[:2], -1, config.d_model)
        query, key, value = (part.transpose(1, 2) for part in read_BRTD.split(parts, 1))
        heads_BTNH = surgery.heads(block, query, self.context, key, value, self.straight)
        return written_by_heads(self.masked, layer, self.inputs, heads_BTNH, self.straight)


@dataclass(frozen=True)
class _FeedForward:
    masked: MaskedModel
    group: Group
    inputs: Inputs
    context: AttentionContext
    straight: bool = False

    def __call__(self, read_B1M: Tensor) -> Tensor:
        block, replaced = self.masked.model.block(self.group.layer), self.inputs.replaced.ffns[self.group.layer]
        read_BTD = read_B1M.view(read_B1M.shape[0], -1, self.masked.graph.config.d_model)
        if replaced.dim() == 3:
            out_BTD, _ = surgery.feed_forward(block, read_BTD, self.context, self.straight)
            return (out_BTD - replaced).flatten(1)[:, None]
        return (surgery.expert_outputs(block, read_BTD) - replaced).transpose(1, 2).flatten(2)
