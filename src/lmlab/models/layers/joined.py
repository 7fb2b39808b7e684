"""Matrices that read the same input, one below the other in memory, so that one product serves them all.

The layers stay what they are: each has its part of the larger tensor as its weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmlab.models.layers.linear import Linear
from lmlab.models.layers.packed import PackedLinear

_BLOCK = 64  # rows that the kernels for 4 bits keep together, at most: what begins elsewhere cannot be cut out


def lay_together(layers: Sequence[nn.Module]) -> None:
    """Move the weights of layers that read the same input next to each other; without effect where they are of several
    kinds, have adapters, are spread over processes or shared with other ones.
    """
    if joint(layers) is not None:
        return
    # outside of inference mode, so that the weights can be trained as before
    with torch.inference_mode(False), torch.no_grad():
        if plain := _plain(layers):
            for layer, part in zip(plain, _moved([layer.weight.detach() for layer in plain], 0), strict=True):
                layer.weight.data = part
        elif packed := _packed(layers):
            numbers = _moved([layer.packed for layer in packed], 0)
            scales = _moved([layer.scales for layer in packed], packed[0].outputs_of_scales)
            for layer, of_numbers, of_scales in zip(packed, numbers, scales, strict=True):
                layer.packed, layer.scales = of_numbers, of_scales


def joint(layers: Sequence[nn.Module]) -> Linear | None:
    """Layers whose weights lie together as one, without a copy; None where they do not."""
    if plain := _plain(layers):
        weight = _joined([layer.weight.detach() for layer in plain], 0)
        if weight is None:
            return None
        with torch.device("meta"):
            found = Linear(weight.shape[1], len(weight), bias=False)
        found.weight = nn.Parameter(weight, requires_grad=False)
        if plain[0].bias is not None:
            found.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in plain]), requires_grad=False)
        return found
    if packed := _packed(layers):
        numbers = _joined([layer.packed for layer in packed], 0)
        scales = _joined([layer.scales for layer in packed], packed[0].outputs_of_scales)
        return None if numbers is None or scales is None else PackedLinear.of(packed, numbers, scales)
    return None


def _plain(layers: Sequence[nn.Module]) -> list[Linear]:
    """The layers if they are all ordinary ones that can be joined, else none."""
    found = [layer for layer in layers if type(layer) is Linear and type(layer.weight) is nn.Parameter]
    fits = [
        each.weight.dtype == found[0].weight.dtype
        and each.weight.device.type == "cpu"
        and each.weight.is_contiguous()
        and not each.weight.is_shared()
        and (each.bias is None) == (found[0].bias is None)
        for each in found
    ]
    return found if len(found) == len(layers) and all(fits) else []


def _packed(layers: Sequence[nn.Module]) -> list[PackedLinear]:
    """The layers if they are all packed ones that can be joined, else none."""
    found = [layer for layer in layers if type(layer) is PackedLinear]
    fits = [
        each.kind == found[0].kind
        and len(each.packed) == each.out_features
        and (each.kind == "int8" or (each.pairs is None and not each.out_features % _BLOCK))
        and (each.bias is None) == (found[0].bias is None)
        for each in found
    ]
    return found if len(found) == len(layers) and all(fits) else []


def _moved(tensors: Sequence[Tensor], dim: int) -> tuple[Tensor, ...]:
    """Copies that are parts of one tensor, one after the other along a dimension."""
    return torch.cat(list(tensors), dim).split([each.shape[dim] for each in tensors], dim)


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor | None:
    """The tensors as the one that they are parts of along a dimension; None if they do not lie so."""
    first, offset = tensors[0], tensors[0].storage_offset()
    for each in tensors:
        near = each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not near or each.storage_offset() != offset or each.stride() != first.stride():
            return None
        offset += each.shape[dim] * each.stride(dim)
    size = list(first.shape)
    size[dim] = sum(each.shape[dim] for each in tensors)
    return first.as_strided(size, first.stride(), first.storage_offset())
