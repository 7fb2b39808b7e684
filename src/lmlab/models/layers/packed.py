"""Linear layers whose weights are kept in 8 or 4 bits, for inference on a CPU: what decoding waits for is the memory
that weights are read from.

`int8` has 8 bits a number and a scale for each row; `int4` has 4 bits and, for each 32 numbers of a row, a scale and a
zero point in bf16, as the 4-bit blocks of GGUF files have: what was read from such a file is met again. Activations are
not rounded. The products are PyTorch's own kernels.

Shapes: N outputs, K inputs, M rows, G groups of a row; P is N filled up to what the kernels take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.models.layers.linear import Linear

Packing = Literal["int8", "int4"]
_GROUP = 32  # numbers of int4 that share a scale; also of GGUF's blocks
_WIDTH = 16  # PyTorch's kernels take numbers of rows and columns that this divides; missing rows are added
_FEW_ROWS = {"int8": 32, "int4": 160}  # for more, to form the weight in bf16 costs less than the kernel for few rows
_MIDDLE = 8  # kernels read a 4-bit number q as (q - 8) * scale + zero
_SHRINKS = (1.0, 0.95, 0.9, 0.85)  # of a group's range: to cut its ends may leave a smaller error than to reach them


class PackedLinear(Linear):
    """A frozen linear layer with a packed weight. Products are in bf16; what is given in another type is rounded to it.

    Arguments:
        base: the layer whose weight is packed, and whose bias is taken over.

    Attributes:
        packed: the weight's numbers: int8 [P, K], or 4-bit numbers in the kernel's own order, [P, K / 2].
        scales: bf16, [P], or scales and zero points [G, P, 2].
        pairs: the 4-bit numbers once more, two a byte, [P, K / 2], where the kernel's order is not known; else None.
    """

    packed: Tensor
    scales: Tensor
    pairs: Tensor | None

    def __init__(self, base: nn.Linear, kind: Packing) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = base.in_features, base.out_features, kind
        self.bias = base.bias
        weight_PK = F.pad(base.weight.detach().float(), (0, 0, 0, -base.out_features % _WIDTH))
        pairs = None
        if kind == "int8":
            packed, scales = _int8(weight_PK)
        else:
            packed, scales, pairs = _int4(weight_PK)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("pairs", pairs)

    @classmethod
    def of(cls, parts: Sequence[PackedLinear], packed: Tensor, scales: Tensor) -> PackedLinear:
        """Several layers of the same inputs as one, whose numbers are those of all."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = parts[0].in_features, sum(each.out_features for each in parts)
        layer.kind = parts[0].kind
        biases = [each.bias.detach() for each in parts if each.bias is not None]
        layer.register_parameter("bias", nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None)
        layer.register_buffer("packed", packed)
        layer.register_buffer("scales", scales)
        layer.register_buffer("pairs", None)
        return layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        scales = self.scales
        super()._apply(fn, recurse)
        # `half` or `float` is for what is computed beside: the kernels take scales in bf16
        self.scales = scales.to(self.scales.device)
        return self

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that is applied, formed anew: [N, K], in bf16."""
        if self.kind == "int8":
            return (self.packed * self.scales[:, None])[: self.out_features]
        if self.pairs is None:
            block = _rows_of_a_block()
            assert block is not None
            numbers_PK = _unpacked(self.packed, block)
        else:
            numbers_PK = torch.stack((self.pairs & 15, self.pairs >> 4), -1).flatten(1)
        scales_PG1, zeros_PG1 = (each.t()[..., None] for each in self.scales.unbind(-1))
        numbers_PGW = numbers_PK.unflatten(1, (-1, _GROUP)).to(torch.bfloat16) - _MIDDLE
        return torch.addcmul(zeros_PG1, numbers_PGW, scales_PG1).flatten(1)[: self.out_features]

    @property
    def outputs_of_scales(self) -> int:
        """The dimension of `scales` that counts outputs."""
        return 0 if self.kind == "int8" else 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., K] to [..., N]."""
        rows_MK = x.reshape(-1, self.in_features).to(torch.bfloat16)
        learns = torch.is_grad_enabled() and x.requires_grad  # the kernels have no gradients
        product_MN = F.linear(rows_MK, self.weight) if learns else self.product(rows_MK)
        if self.bias is not None:
            product_MN = product_MN + self.bias.to(product_MN.dtype)
        return product_MN.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def product(self, rows_MK: Tensor) -> Tensor:
        """The product in bf16, [M, K] to [M, N], without the bias and without gradients."""
        rows_MK = rows_MK.to(torch.bfloat16).contiguous()
        if len(rows_MK) > _FEW_ROWS[self.kind]:
            return F.linear(rows_MK, self.weight)
        product: Tensor
        # what is a part of a larger weight has scales that lie apart (`lay_together`)
        if self.kind == "int8":
            product = torch._weight_int8pack_mm(rows_MK, self.packed, self.scales)
        else:
            product = torch._weight_int4pack_mm_for_cpu(rows_MK, self.packed, _GROUP, self.scales.contiguous())
        return product if len(self.packed) == self.out_features else product[:, : self.out_features]


def can_be_packed(layer: nn.Module, kind: Packing) -> bool:
    """Whether PyTorch has a kernel for a layer of this size."""
    return type(layer) is Linear and not layer.in_features % (_WIDTH if kind == "int8" else _GROUP)


def _int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    # the scale as the kernel has it, so that numbers are rounded to what they will stand for
    scales_N = (weight_NK.abs().amax(1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    numbers = (weight_NK / scales_N[:, None].float()).round().clamp(-127, 127)
    return numbers.to(torch.int8), scales_N


def _int4(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    numbers, scales, zeros = round_to_4_bits(weight_NK)
    pairs_GN2 = torch.stack((scales.t(), zeros.t()), -1).contiguous()
    halves = None
    if _rows_of_a_block() is None:
        small = numbers.to(torch.uint8)
        halves = small[:, ::2] | small[:, 1::2] << 4
    return _in_the_kernels_order(numbers), pairs_GN2, halves


def _in_the_kernels_order(numbers_NK: Tensor) -> Tensor:
    packed: Tensor = torch._convert_weight_to_int4pack_for_cpu(numbers_NK.contiguous(), 1)
    return packed


def _unpacked(packed_NB: Tensor, block: int) -> Tensor:
    """The 4-bit numbers, uint8 [N, K], from the kernel's order: blocks of rows, and a smaller one of what is left."""
    rows = len(packed_NB)
    whole = rows - rows % block
    parts = (packed_NB[:whole], block), (packed_NB[whole:], rows - whole)
    return torch.cat([_by_row(part, size)[:, _order(size)].flatten(0, 1) for part, size in parts if len(part)])


def _by_row(packed_NB: Tensor, block: int) -> Tensor:
    """The numbers of blocks, in which those of a column lie side by side, two a byte: [blocks, block, K], with the rows
    of a block in the kernel's order.
    """
    halves = packed_NB.reshape(len(packed_NB) // block, -1, block // 2).transpose(1, 2).contiguous()
    return torch.cat((halves & 15, halves >> 4), 1)


@cache
def _order(block: int) -> list[int]:
    """Where in the kernel's order the rows of a block stand: seen from how it orders their numbers."""
    rows = torch.arange(block, dtype=torch.int32)[:, None].expand(-1, _GROUP)
    low, high = (_by_row(_in_the_kernels_order(rows >> shift & 15), block)[0, :, 0].int() for shift in (0, 4))
    found: list[int] = (low + 16 * high).argsort().tolist()
    return found


@cache
def _rows_of_a_block() -> int | None:
    """How many rows the kernel of this processor keeps together; None if its order is not of that kind."""
    # 112 = 64 + 32 + 16 rows: of blocks of each size, and of what is left
    numbers = torch.randint(16, (112, 2 * _GROUP), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    packed = _in_the_kernels_order(numbers)
    return next((block for block in (64, 32, 16) if torch.equal(_unpacked(packed, block).int(), numbers)), None)


def round_to_4_bits(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers q from 0 to 15, int32 [N, K], and in bf16 the scales s and zero points z, [N, G]: each weight is near
    (q - 8) s + z of its group.

    Several scales are tried and the one with the smallest squared error is taken: from end to end of the group, over
    somewhat less, and from the number that is greatest without its sign, at q = 0 with z = 0, as GGUF's Q4_0 has it.
    """
    groups_NGW = weight_NK.unflatten(1, (-1, _GROUP))
    low, high = groups_NGW.aminmax(dim=-1, keepdim=True)
    greatest = torch.where(-low > high, low, high)
    candidates = [((high - low) / 15 * each, (high + low) / 2 + (high - low) / 30 * each) for each in _SHRINKS]
    candidates.append((greatest / -_MIDDLE, torch.zeros_like(greatest)))
    best_q, best_s, best_z, least = None, greatest, greatest, greatest
    for scale, zero in candidates:
        s, z = (each.to(torch.bfloat16).float() for each in (scale, zero))
        q = ((groups_NGW - z) / torch.where(s == 0, torch.ones_like(s), s)).round().clamp(-_MIDDLE, 7)
        error = (q * s + z - groups_NGW).square().sum(-1, keepdim=True)
        if best_q is None:
            best_q, best_s, best_z, least = q, s, z, error
            continue
        better = error < least
        best_q, best_s, best_z, least = (
            torch.where(better, new, old) for new, old in ((q, best_q), (s, best_s), (z, best_z), (error, least))
        )
    assert best_q is not None
    numbers = (best_q + _MIDDLE).to(torch.int32).flatten(1)
    return numbers, best_s[..., 0].to(torch.bfloat16), best_z[..., 0].to(torch.bfloat16)


def remedy_of_other_weights(model: nn.Module, remedy: str) -> str:
    """What to do where something was made for other weights than a model has: packed ones are others than those they
    were packed from, though it is one model to whoever loads it.
    """
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    return "Load the model in full precision (without int8 or int4): packed weights are others." if packed else remedy
