"""Optimizers from `torch.optim` with the field's usual parameter groups."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.errors import UserError

Name = Literal["adamw", "muon", "rmsprop"]


_IN_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.")


class ParameterGroup(Config):
    """Settings of the parameters whose names hold a pattern.

    Attributes:
        match: a regular expression, searched in names such as `blocks.0.attention.query.weight`.
        learning_rate, weight_decay, optimizer: in place of the optimizer's own.
        frozen: they are not trained.
    """

    match: str
    learning_rate: PositiveFloat | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    optimizer: Name | None = None
    frozen: bool = False

    @field_validator("match")
    @classmethod
    def _check(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error}).") from None
        return value


class OptimizerConfig(Config):
    """Which optimizer, with what settings.

    Attributes:
        name: `adamw` or `rmsprop` for everything, or `muon` (Jordan et al. 2024) for the matrices of the blocks with
            AdamW for the rest.
        learning_rate: the highest rate, for AdamW and for Muon alike (Muon's updates are scaled to AdamW's size, Liu et
            al. 2025, section 2.2).
        weight_decay: on matrices only; norms and biases have none.
        groups: exceptions; a parameter belongs to the first group that matches it.
    """

    name: Name = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    momentum: float = Field(default=0.95, ge=0, lt=1)
    groups: tuple[ParameterGroup, ...] = ()


class Optimizers:
    """The optimizers of one model, stepped together.

    Every parameter of the model that needs a gradient is in exactly one group; those of frozen groups need none from
    then on.

    Raises:
        UserError: a group matches nothing, a group asks Muon for what is no matrix, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        chosen = _assign(model, config)
        self._names: dict[Tensor, str] = {parameter: name for parameter, name, *_ in chosen}
        settings: dict[tuple[str, float, float, Any], list[Tensor]] = {}
        for (
            parameter,
            _,
            kind,
            rate,
            decay,
        ) in chosen:  # tensors that are spread in different ways cannot be worked on in one go
            settings.setdefault((kind, rate, decay, getattr(parameter, "device_mesh", None)), []).append(parameter)
        groups: dict[str, list[dict[str, Any]]] = {"adamw": [], "muon": [], "rmsprop": []}
        for (name, rate, decay, _), parameters in settings.items():
            groups[name].append({"params": parameters, "lr": rate, "weight_decay": decay})
        self._all: list[torch.optim.Optimizer] = []
        if groups["adamw"]:
            self._all.append(torch.optim.AdamW(groups["adamw"], betas=config.betas, eps=config.eps, fused=True))
        if groups["muon"]:
            self._all.append(torch.optim.Muon(groups["muon"], momentum=config.momentum, adjust_lr_fn="match_rms_adamw"))
        if groups["rmsprop"]:
            self._all.append(torch.optim.RMSprop(groups["rmsprop"], alpha=config.betas[1], eps=config.eps))
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
        owners = {
            parameter: optimizer
            for optimizer in self._all
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        parameters = self.parameters
        for key, value in tensors.items():
            name, _, field = key.rpartition(".")
            parameter = parameters[name]
            owners[parameter].state[parameter][field] = value.to(parameter.device) if value.dim() else value.clone()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return {name: parameter for parameter, name in self._names.items()}


def _assign(model: nn.Module, config: OptimizerConfig) -> list[tuple[Tensor, str, str, float, float]]:
    """For each trained parameter: itself, its name, its optimizer, learning rate and weight decay."""
    chosen: list[tuple[Tensor, str, str, float, float]] = []
    matched: set[ParameterGroup | None] = set()
    for name, parameter in model.named_parameters():
        group = next((group for group in config.groups if re.search(group.match, name)), None)
        matched.add(group)
        if group is not None and group.frozen:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        kind = config.name if config.name != "muon" or is_block_matrix(name, parameter) else "adamw"
        rate, decay = config.learning_rate, config.weight_decay if parameter.dim() >= 2 else 0.0
        if group is not None:
            if group.optimizer == "muon" and parameter.dim() != 2:
                raise UserError(
                    f"optimizer.groups: '{group.match}' gives Muon the parameter '{name}', which is no matrix.",
                    "Narrow the pattern.",
                )
            kind, rate = group.optimizer or kind, group.learning_rate or rate
            decay = decay if group.weight_decay is None else group.weight_decay
        chosen.append((parameter, name, kind, rate, decay))
    for group in config.groups:
        if group not in matched:
            raise UserError(
                f"optimizer.groups: '{group.match}' matches no parameter that an earlier group does not.",
                "Names look like blocks.0.attention.query.weight.",
            )
    if not chosen:
        raise UserError("optimizer.groups: every parameter is frozen; nothing is left to train.")
    if config.name == "muon" and not any(kind == "muon" for _, _, kind, *_ in chosen):
        raise UserError(
            "optimizer.name muon: no matrix of a block is trained here, so that AdamW would train everything.",
            "Set optimizer.name to adamw.",
        )
    return chosen


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is meant for a parameter: a matrix of one of the repeated blocks. Tables, heads and scores map
    between unlike spaces; stacks of matrices are none (Jordan et al. 2024).
    """
    return parameter.dim() == 2 and _IN_BLOCK.search(name) is not None
