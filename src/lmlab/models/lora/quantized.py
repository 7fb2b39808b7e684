"""Frozen weights in 4 or 8 bits beside adapters (QLoRA, Dettmers et al. 2023), by the `bitsandbytes` library.

A weight is formed anew for each product, in the forward pass and again in the backward pass, so that no more than one
of them is whole at a time. Unlike in the 8-bit layers of the library, activations are not rounded: what is trained
beside is exactly the model whose weights are those that `dequantize` gives.

`nf4` holds 4 bits a number and a scale in fp32 for each 64 (section 3; without quantizing the scales once more), `int8`
8 bits and a scale for each row.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lmlab.errors import UserError, missing_extra
from lmlab.hardware.gemm import mm
from lmlab.models.layers.linear import Linear

Quantization = Literal["nf4", "int8"]
_BLOCK = 64  # numbers of nf4 that share a scale


class QuantizedLinear(Linear):
    """A frozen linear layer with a quantized weight.

    Arguments:
        base: the layer whose weight is quantized, and whose bias is taken over.

    Attributes:
        packed: the weight's numbers: two a byte, [n / 2, 1], or one a byte, [out_features, in_features].
        scales: [n / 64] or [out_features], in fp32.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, base: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = base.in_features, base.out_features, kind
        self.bias = base.bias
        packed, scales = _quantize(base.weight.detach().float(), kind)
        # frozen parameters, as in the library: they are neither trained nor part of a checkpoint of adapters
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that is applied, formed anew: [out_features, in_features], in fp32."""
        return self.dequantize()

    def dequantize(self) -> Tensor:
        """The weight that is applied."""
        return dequantize(self.packed, self.scales, (self.out_features, self.in_features), self.kind)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return quantized_product(x, self)

    def plain(self) -> nn.Linear:
        """The layer with the weight that is applied, whole."""
        return whole_linear(self, self.dequantize())


def quantized_product(x: Tensor, layer: Any) -> Tensor:
    """x @ weight.T + bias with the quantized weight of a layer; gradients flow to x alone."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    product: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), layer)
    product = product.view(*x.shape[:-1], layer.out_features)
    return product if layer.bias is None else product + layer.bias.to(product.dtype)


def whole_linear(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """A plain layer with another's bias."""
    with torch.device("meta"):
        plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight, plain.bias = nn.Parameter(weight), layer.bias
    return plain


def quantized_bytes(outputs: int, inputs: int, kind: Quantization) -> int:
    """The memory of a quantized weight."""
    numbers = outputs * inputs
    return (numbers + 1) // 2 + 4 * -(-numbers // _BLOCK) if kind == "nf4" else numbers + 4 * outputs


def require_bitsandbytes(kind: str) -> None:
    """Refuse to quantize where that does not work.

    Raises:
        UserError: `bitsandbytes` is not installed, or does not work here.
    """
    try:
        _library()
    except ImportError:
        raise missing_extra("bitsandbytes", f"lora.quantize: {kind}") from None
    except Exception as error:  # its compiled part fails in its own ways
        raise UserError(
            f"lora.quantize: {kind}: bitsandbytes does not work on this machine ({error}).",
            "Leave quantize out, and lower trainer.micro_batch_size to save memory.",
        ) from None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_MI: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return mm(x_MI, layer.dequantize().to(x_MI.dtype).t())

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_MO,) = grad_outputs
        return mm(grad_MO, ctx.layer.dequantize().to(grad_MO.dtype)), None  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _library() -> ModuleType:
    # it says at each import which further kernels it looked for, and did not find
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes.functional


def _quantize(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    functional = _library()
    if kind == "nf4":
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
        return packed, state.absmax
    # the library's own function for rows takes fp16, whose range weights may leave
    scales = weight.abs().amax(1)
    return (weight * (127 / scales.clamp(min=torch.finfo(weight.dtype).tiny))[:, None]).round().to(torch.int8), scales


def dequantize(packed: Tensor, scales: Tensor, shape: tuple[int, int], kind: Quantization) -> Tensor:
    """The weight of this shape that quantized numbers and their scales stand for, in fp32."""
    functional = _library()
    if kind == "int8":
        found: Tensor = functional.int8_vectorwise_dequant(packed, scales)
        return found
    code = _nf4_code(packed.device)
    state = functional.QuantState(scales, torch.Size(shape), code, _BLOCK, quant_type="nf4", dtype=torch.float32)
    whole: Tensor = functional.dequantize_4bit(packed, state)
    return whole


@lru_cache(maxsize=8)
def _nf4_code(device: torch.device) -> Tensor:
    code: Tensor = _library().get_4bit_type("nf4", device=device)
    return code
