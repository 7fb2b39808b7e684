"""Optimizers from `torch.optim` with the field's usual parameter groups."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from lmlab.config import Config


class OptimizerConfig(Config):
    """Which optimizer, with what settings.

    Attributes:
        name: `adamw` for everything, or `muon` (Jordan et al. 2024) for the matrices of the blocks with AdamW for the rest.
        learning_rate: the highest rate, for AdamW and for Muon alike (Muon's updates are scaled to AdamW's size, Liu et al. 2025, section 2.2).
        weight_decay: on matrices only; norms and biases have none.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    momentum: float = Field(default=0.95, ge=0, lt=1)


class Optimizers:
    """The optimizers of one model, stepped together.

    Every parameter of the model that needs a gradient is in exactly one group.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        muon = {name for name, parameter in named.items() if config.name == "muon" and _is_block_matrix(name, parameter)}
        rest = [name for name in named if name not in muon]
        groups = [
            {"params": [named[name] for name in rest if named[name].dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [named[name] for name in rest if named[name].dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._all: list[torch.optim.Optimizer] = []
        if groups:
            self._all.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True))
        if muon:
            self._all.append(
                torch.optim.Muon(
                    [named[name] for name in named if name in muon],
                    lr=config.learning_rate,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._all]

    def set_factor(self, factor: float) -> None:
        """Set every group's learning rate to its base rate times `factor`."""
        for optimizer, rates in zip(self._all, self._base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def step(self) -> None:
        """Apply the gradients."""
        for optimizer in self._all:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as tensors called `parameter.field`."""
        tensors = {}
        for optimizer in self._all:
            for parameter, state in optimizer.state.items():
                for field, value in state.items():
                    tensors[f"{self._names[parameter]}.{field}"] = torch.as_tensor(value)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = f"{self._names[parameter]}."
                    fields = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
                    state: dict[str, Any] = optimizer.state[parameter]
                    for field, value in fields.items():
                        if "." not in field:
                            state[field] = value.to(parameter.device) if value.dim() else value.clone()


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and "embedding" not in name and not name.startswith("head.")
