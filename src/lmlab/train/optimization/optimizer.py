"""Optimizers from `torch.optim` with the field's usual parameter groups."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.train.config import OptimizerConfig, ParameterGroup

_IN_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.")


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
        for parameter, _, kind, rate, decay in chosen:
            # tensors that are spread in different ways cannot be worked on in one go
            settings.setdefault((kind, rate, decay, getattr(parameter, "device_mesh", None)), []).append(parameter)
        groups: dict[str, list[dict[str, Any]]] = {"adamw": [], "muon": [], "rmsprop": []}
        for (name, rate, decay, _), parameters in settings.items():
            groups[name].append({"params": parameters, "lr": rate, "weight_decay": decay})
        self._all: list[torch.optim.Optimizer] = []
        if groups["adamw"]:
            self._all.append(torch.optim.AdamW(groups["adamw"], betas=config.betas, eps=config.eps, fused=True))
        if groups["muon"]:
            # steps of the size of AdamW's, so that one learning rate serves both (Liu et al. 2025, eq. 4)
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
            # PyTorch's fused kernels do not count their writes, by which others see that weights have changed
            torch.autograd.graph.increment_version(
                [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
            )

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
            parameter: (optimizer, bool(group.get("fused")))
            for optimizer in self._all
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        parameters = self.parameters
        for key, value in tensors.items():
            name, _, field = key.rpartition(".")
            parameter = parameters[name]
            optimizer, fused = owners[parameter]
            # PyTorch counts steps on the CPU, but its fused kernels read the count where the parameter is
            there = value.dim() or fused
            optimizer.state[parameter][field] = value.clone().to(parameter.device) if there else value.clone()

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
        # norms and biases are not decayed, as is usual
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
