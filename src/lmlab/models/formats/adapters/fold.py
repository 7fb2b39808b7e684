"""Adapters that change more than a product of two thin matrices: DoRA (Liu et al. 2024) and biases. They are folded
into the weights as they are read, exactly, and not trained further here.

Shapes: O and I outputs and inputs of a matrix, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.models.formats.names import Layout, Shape

MAGNITUDE, BIAS = "lora_magnitude_vector", "lora_B.bias"


def is_folded(settings: Mapping[str, Any]) -> bool:
    """Whether adapters are of a kind that is folded in as it is read."""
    return bool(settings.get("use_dora") or settings.get("lora_bias") or settings.get("bias") not in (None, "none"))


def tensors_of(layout: Layout, stored: str, settings: Mapping[str, Any]) -> dict[str, Shape]:
    """What a file holds of one adapted module beside A and B.

    Raises:
        UserError: the adapter has a bias, and the module has none that it could be added to.
    """
    outputs = layout.in_and_out(stored)[1]
    found: dict[str, Shape] = {f"{stored}.{MAGNITUDE}": (outputs,)} if settings.get("use_dora") else {}
    if settings.get("lora_bias"):
        if f"{stored}.bias" not in layout.shapes:
            raise UserError(
                f"lora_bias: the model has no bias in '{stored}' to fold that of the adapter into.",
                "Run it by the peft library.",
            )
        found[f"{stored}.{BIAS}"] = (outputs,)
    return found


@torch.no_grad()
def fold(
    model: nn.Module, layout: Layout, stored: str, scale: float, tensors: Mapping[str, Tensor], dora: bool
) -> None:
    """Put W + s B A in the place of a matrix W, with DoRA its rows brought to the length m that was learned:
    m (W + s B A) / ||W + s B A|| (Liu et al. 2024, equation 5).
    """
    weight = f"{stored}.weight"
    transposed = layout.in_and_out(stored) != layout.shapes[weight][::-1]
    parameters = {name: each.detach().float() for name, each in _parts(model, layout, weight).items()}
    w_OI = layout.write(weight, parameters)
    w_OI = w_OI.t() if transposed else w_OI
    a_rI, b_Or = (tensors[f"{stored}.lora_{which}.weight"].float() for which in "AB")
    w_OI = w_OI + scale * (b_Or @ a_rI).to(w_OI.device)
    if dora:
        lengths_O = torch.linalg.vector_norm(w_OI, dim=1)
        w_OI = (tensors[f"{stored}.{MAGNITUDE}"].float().to(w_OI.device) / lengths_O)[:, None] * w_OI
    _put(model, layout, weight, w_OI)
    if f"{stored}.{BIAS}" in tensors:
        bias = f"{stored}.bias"
        before_O = layout.write(
            bias, {name: each.detach().float() for name, each in _parts(model, layout, bias).items()}
        )
        _put(model, layout, bias, before_O + scale * tensors[f"{stored}.{BIAS}"].float().to(before_O.device))


def _parts(model: nn.Module, layout: Layout, stored: str) -> dict[str, Tensor]:
    return {name: model.get_parameter(name) for name, each in layout.locations.items() if each.names == (stored,)}


def _put(model: nn.Module, layout: Layout, stored: str, tensor: Tensor) -> None:
    for (_, parameter), part in zip(_parts(model, layout, stored).items(), layout.split(stored, tensor), strict=True):
        parameter[: len(part)].copy_(part)


def canonical(name: str, of_weight: Callable[[str], str]) -> str | None:
    """A tensor's name in the model's own names; None for one of another kind."""
    for end in (f".{MAGNITUDE}.weight", f".{MAGNITUDE}", f".{BIAS}", ".base_layer.bias"):
        if name.endswith(end):
            stem = of_weight(name.removesuffix(end) + ".weight").removesuffix(".weight")
            return stem + (".bias" if end == ".base_layer.bias" else f".{MAGNITUDE}" if MAGNITUDE in end else end)
    return None
