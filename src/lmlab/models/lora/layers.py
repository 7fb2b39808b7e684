"""Layers with a low-rank adapter beside their frozen weights.

Shapes: r rank, V vocabulary, D model width, E experts, I and O inputs and outputs of an expert's matrix.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.models.dtypes import compute_dtype
from lmlab.models.layers.linear import Linear
from lmlab.models.lora.quantized import QuantizedLinear, dequantize, quantized_product, whole_linear
from lmlab.models.moe.experts import Experts, run_experts
from lmlab.models.moe.router import Pairs
from lmlab.models.spread import is_spread


class _Folding(nn.Module):
    """What carries an adapter beside a weight and can fold it in.

    Attributes:
        foldable: False leaves the adapter beside the weight, which then serves something else too.
    """

    weight: Tensor
    foldable = True

    def _begin(self) -> None:
        self._without: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether the weight includes the adapter at present."""
        return self._without is not None

    def difference(self) -> Tensor:
        """What the adapter adds to the weight, shaped as it."""
        raise NotImplementedError

    def full_weight(self) -> Tensor:
        """The weight with the adapter, in the weight's type."""
        return self.weight if self.merged else (self.weight + self.difference()).to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the weight; the weight without it is kept aside."""
        if not self.merged and self.foldable:
            without = self.weight.clone()
            self.weight.copy_(self.full_weight())
            self._without = without

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again, bit for bit."""
        if self._without is not None:
            self.weight.copy_(self._without)
            self._without = None


class LoRALinear(Linear, _Folding):
    """A linear layer, frozen, plus a trainable product of two thin matrices: W x + b + scale B A x.

    The thin matrices are in fp32 (or fp64) whatever the type of the weight, so that small steps are not lost in
    rounding.

    Arguments:
        base: the layer whose weight and bias this one takes over.
        rank: r.
        scale: of the adapter's output.
        dropout: probability of dropping an input of A while training.

    Attributes:
        lora_a, lora_b: A, [r, in_features], and B, [out_features, r].
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.lora_a, self.lora_b = _thin(base.weight, rank)
        self._begin()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        out = self._frozen(x)
        if self.merged:
            return out
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a.to(x.dtype))
        return out + F.linear(low, self.lora_b.to(low.dtype)) * self.scale

    def _frozen(self, x: Tensor) -> Tensor:
        """What the layer gives without its adapter."""
        return super().forward(x)

    def difference(self) -> Tensor:
        """scale B A, [out_features, in_features]."""
        return self.lora_b @ self.lora_a * self.scale

    def plain(self) -> nn.Linear:
        """The layer without the adapter, with the weight as it is at present."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight, plain.bias = self.weight, self.bias
        return plain


class QuantizedLoRALinear(LoRALinear):
    """A linear layer with a quantized weight, and an adapter that stays beside it: the sum of both has more digits."""

    foldable = False

    def __init__(self, base: QuantizedLinear, rank: int, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = base.in_features, base.out_features, base.kind
        self.packed, self.scales, self.bias = base.packed, base.scales, base.bias
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.lora_a, self.lora_b = _thin(base.weight, rank)
        self._begin()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight without the adapter, formed anew: [out_features, in_features], in fp32."""
        return self.dequantize()

    def dequantize(self) -> Tensor:
        """The weight without the adapter."""
        return dequantize(self.packed, self.scales, (self.out_features, self.in_features), self.kind)

    def _frozen(self, x: Tensor) -> Tensor:
        return quantized_product(x, self)

    def plain(self) -> nn.Linear:
        """The layer without the adapter, with the weight that was applied, whole."""
        return whole_linear(self, self.dequantize())


class LoRAEmbedding(nn.Embedding, _Folding):
    """A table of embeddings, frozen, plus the product of two thin ones: W[id] + scale (B A)[id].

    Where the table is the output matrix too, the adapter is on the lookup alone, as in `peft`: it cannot be folded in
    while one table serves both, and `merge` then leaves it beside.

    Arguments:
        tied: the table is the output matrix too.

    Attributes:
        lora_a, lora_b: A, [r, V], and B, [D, r].
    """

    dropout = 0.0  # as in peft, which has none on lookups

    def __init__(self, base: nn.Embedding, rank: int, scale: float, tied: bool) -> None:
        with torch.device("meta"):
            super().__init__(base.num_embeddings, base.embedding_dim)
        self.weight = base.weight
        self.rank, self.scale, self.foldable = rank, scale, not tied
        self.lora_a, self.lora_b = _thin(base.weight.t(), rank)
        self._begin()

    def forward(self, input: Tensor) -> Tensor:
        """Map ids [...] to vectors [..., D]."""
        out = super().forward(input)
        if self.merged:
            return out
        low = F.embedding(input, self.lora_a.t())
        return out + (F.linear(low, self.lora_b) * self.scale).to(out.dtype)

    def difference(self) -> Tensor:
        """scale (B A)^T, [V, D]."""
        return (self.lora_b @ self.lora_a).t() * self.scale

    def plain(self) -> nn.Embedding:
        """The table without the adapter, as it is at present."""
        with torch.device("meta"):
            plain = nn.Embedding(self.num_embeddings, self.embedding_dim)
        plain.weight = self.weight
        return plain


class LowRank(nn.Module):
    """The thin matrices of stacked weights [E, O, I].

    Attributes:
        lora_a, lora_b: A of each, [E, r, I], and B, [E, O, r].
    """

    def __init__(self, weight_EOI: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.rank, self.scale, self.dropout = rank, scale, 0.0
        self.lora_a, self.lora_b = _thin(weight_EOI, rank)

    def difference(self) -> Tensor:
        """scale B A, [E, O, I], of the experts that this process holds."""
        return _local(self.lora_b) @ _local(self.lora_a) * self.scale


class LoRAExperts(Experts):
    """Experts whose stacked matrices are frozen, each with thin matrices of its own: W_e + scale B_e A_e.

    The sum is formed before the products, as `peft` does for stacked parameters: it costs the memory of the adapted
    matrices once more in each layer, and there is no dropout.

    Attributes:
        low_rank: the adapters by the name of the matrices, `gate_up` or `down`.
    """

    def __init__(self, base: Experts) -> None:
        nn.Module.__init__(self)
        self.activation, self.backend, self.spread = base.activation, base.backend, base.spread
        self.gate_up, self.down = base.gate_up, base.down
        self.low_rank = nn.ModuleDict()
        self._without: dict[str, Tensor] = {}

    @property
    def merged(self) -> bool:
        """Whether the matrices include the adapters at present."""
        return bool(self._without)

    def run(self, x_MD: Tensor, pairs: Pairs) -> Tensor:
        """The weighted sum over its pairs for each token, [M, D], by the experts that this process holds."""
        gate_up, down = self.full_weight("gate_up"), self.full_weight("down")
        return run_experts(x_MD.to(compute_dtype(x_MD)), pairs, gate_up, down, self.activation, self.backend)

    def full_weight(self, name: str) -> Tensor:
        """The stacked matrices that are applied, [E, O, I], of the experts that this process holds."""
        weight = _local(getattr(self, name))
        if self.merged or name not in self.low_rank:
            return weight
        return (weight + cast(LowRank, self.low_rank[name]).difference()).to(weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapters into the matrices, which are kept aside."""
        if not self.merged:
            for name, weight in {name: self.full_weight(name) for name in self.low_rank}.items():
                self._without[name] = getattr(self, name).clone()
                getattr(self, name).copy_(weight)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapters out of the matrices again, bit for bit."""
        for name, weight in self._without.items():
            getattr(self, name).copy_(weight)
        self._without = {}

    def plain(self) -> Experts:
        """The experts without adapters, with the matrices as they are at present."""
        experts, width, inner = self.down.shape
        with torch.device("meta"):
            plain = Experts(experts, width, inner, self.activation, self.backend)
        plain.gate_up, plain.down, plain.spread = self.gate_up, self.down, self.spread
        return plain


Adapted = LoRALinear | LoRAEmbedding | LoRAExperts
ThinPair = LoRALinear | LoRAEmbedding | LowRank


def _thin(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A, [..., r, I], to be filled, and B, [..., O, r], of zeros, for a weight [..., O, I]; in fp32 at least."""
    *leading, outputs, inputs = weight.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a = torch.empty(*leading, rank, inputs, dtype=dtype, device=weight.device)
    return nn.Parameter(a), nn.Parameter(torch.zeros(*leading, outputs, rank, dtype=dtype, device=weight.device))


def _local(tensor: Any) -> Tensor:
    """This process's part of a tensor that may be spread."""
    return cast(Tensor, tensor.to_local() if is_spread(tensor) else tensor)
