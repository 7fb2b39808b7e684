"""What a model computes on an input without any masks: the activations that take the place of pruned edges.

Shapes: B examples, T tokens, D model width, N heads, H width of a head, e embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.models import Transformer
from lmlab.models.internals import surgery
from lmlab.models.internals.taps import Recorder


@dataclass(frozen=True)
class Activations:
    """The outputs of all writers and the residual stream that they add up to. Heads are kept before the output matrix:
    D values in place of N D.

    Attributes:
        embeddings: [B, T, D] for each table.
        heads: for each layer [B, T, N, H], times the scale of a frozen norm if there is one; [B, T, D] where attention
            is one writer.
        ffns: for each layer [B, T, D], or [B, T, E, D] where experts are writers.
        streams: what each group of readers would read, [B, T, D].
        scales: for each layer the factor of the norm after the attention, [B, T, 1, 1]; none where there is no such
            norm.
        biased: the bias of the output matrix is part of `streams`.
    """

    embeddings: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    ffns: tuple[Tensor, ...]
    streams: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] = ()
    biased: bool = True

    def map(self, change: Callable[[Tensor], Tensor], biased: bool | None = None) -> Activations:
        """Every tensor changed in the same way."""
        parts = {
            field.name: tuple(change(each) for each in getattr(self, field.name))
            for field in fields(self)
            if field.name != "biased"
        }
        return Activations(**parts, biased=self.biased if biased is None else biased)

    def rows(self, index_B: Tensor) -> Activations:
        """Those of some examples; activations of a single row stand for all."""
        return self.map(lambda x: x if len(x) == 1 else x[index_B.to(x.device)])

    def to(self, device: torch.device) -> Activations:
        """On another device."""
        return self.map(lambda x: x.to(device))

    @property
    def num_bytes(self) -> int:
        """The memory they take."""
        return sum(
            x.numel() * x.itemsize
            for part in (self.embeddings, self.heads, self.ffns, self.streams, self.scales)
            for x in part
        )

    @staticmethod
    def concatenate(parts: Sequence[Activations]) -> Activations:
        """Those of several batches, padded on the right to one length."""
        length = max(part.streams[0].shape[1] for part in parts)

        def join(name: str) -> tuple[Tensor, ...]:
            return tuple(
                torch.cat([_pad(x, length) for x in each])
                for each in zip(*(getattr(part, name) for part in parts), strict=True)
            )

        return Activations(
            join("embeddings"), join("heads"), join("ffns"), join("streams"), join("scales"), parts[0].biased
        )


def _pad(x: Tensor, length: int) -> Tensor:
    missing = length - x.shape[1]
    return x if missing == 0 else torch.cat((x, x.new_zeros(x.shape[0], missing, *x.shape[2:])), 1)


@torch.no_grad()
def capture(
    model: Transformer, graph: CircuitGraph, input_ids_BT: Tensor, real_BT: Tensor | None = None
) -> Activations:
    """Run the model as it is, and keep what its parts write.

    Arguments:
        real_BT: False for padding that no token may see; needed where attention is not causal.
    """
    layers = range(graph.config.num_layers)
    seen = Recorder(
        "blocks.*.attention.heads",
        "blocks.*.attention.output",
        "blocks.*.ffn.output",
        "blocks.*.input",
        "blocks.*.middle",
        "blocks.*.output",
    )
    model(input_ids_BT, attention_mask_BT=real_BT, logits="none", taps=seen)
    heads, scales, ffns, streams = [], [], [], []
    for layer in layers:
        block, name = model.block(layer), f"blocks.{layer}."
        found = seen[name + "attention.heads"]
        if graph.one_writer:
            found = seen[name + "attention.output"]
        elif graph.frozen:
            written_BTD = surgery.merge_heads(block, found)
            scales.append((written_BTD.square().mean(-1, keepdim=True) + graph.config.norm_eps).rsqrt()[..., None])
            found = found * scales[-1]
        heads.append(found)
        streams += [seen[name + "input"], seen[name + ("input" if graph.config.parallel_residual else "middle")]]
        apart = graph.groups[2 * layer + 1].writes[0] != f"m{layer}"
        ffns.append(surgery.expert_outputs(block, streams[-1]) if apart else seen[name + "ffn.output"])
    streams.append(seen[f"blocks.{layers[-1]}.output"])
    embeddings, _ = model.embeddings(input_ids_BT)
    return Activations(embeddings, tuple(heads), tuple(ffns), tuple(streams), tuple(scales))


def mean_of(activations: Activations, real_BT: Tensor) -> Activations:
    """The mean over all real tokens of all examples, as one row of one token that stands for all."""
    total = real_BT.sum()

    def mean(x: Tensor) -> Tensor:
        weights = real_BT.to(x).view(*real_BT.shape, *[1] * (x.dim() - 2))
        return ((x * weights).sum((0, 1)) / total)[None, None]

    return activations.map(mean)


def nothing_like(activations: Activations) -> Activations:
    """Zeros in their place, without a bias."""
    return activations.map(lambda x: x.new_zeros(1, 1, *x.shape[2:]), biased=False)
