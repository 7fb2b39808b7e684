"""Low-rank adapters on named projections (LoRA, Hu et al. 2021): train a few thin matrices beside frozen weights, then
fold them in.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.config import Config
from lmlab.errors import UserError, did_you_mean
from lmlab.models.linear import Linear

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


class LoRAConfig(Config):
    """Which layers get adapters, and of what kind.

    Attributes:
        rank: r, the width of the thin matrices.
        alpha: the adapters' output is scaled by alpha / r.
        dropout: probability of dropping an input of an adapter while training.
        targets: ends of the names of linear layers in the blocks (`query`, `ffn.down`, `blocks.3.attention.output`); by
            default every projection of the attention and of the dense feed-forward networks.
        layers: numbers of the blocks that get adapters, by default all.
        rank_stabilized: scale by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023).
        train_fully: ends of the names of modules that are trained themselves and saved with the adapters, as `score`.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None
    layers: tuple[NonNegativeInt, ...] | None = None
    rank_stabilized: bool = False
    train_fully: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRALinear(Linear):
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
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=base.weight.device))
        self._without: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether the weight includes the adapter at present."""
        return self._without is not None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        out = super().forward(x)
        if self.merged:
            return out
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a.to(x.dtype))
        return out + F.linear(low, self.lora_b.to(low.dtype)) * self.scale

    def full_weight(self) -> Tensor:
        """W + scale B A, [out_features, in_features]."""
        return (
            self.weight if self.merged else (self.weight + self.lora_b @ self.lora_a * self.scale).to(self.weight.dtype)
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the weight; the weight without it is kept aside."""
        if not self.merged:
            without = self.weight.clone()
            self.weight.copy_(self.full_weight())
            self._without = without

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again, bit for bit."""
        if self._without is not None:
            self.weight.copy_(self._without)
            self._without = None


def full_weight(linear: nn.Linear) -> Tensor:
    """The matrix that a layer applies, its adapter included."""
    return linear.full_weight() if isinstance(linear, LoRALinear) else linear.weight


def add_lora(model: nn.Module, config: LoRAConfig, seed: int = 0) -> list[str]:
    """Put adapters beside the layers that `config` names, and freeze every other parameter.

    A is drawn uniformly within 1 / sqrt(in_features) and B is zero, so the model computes what it did.

    Returns:
        the names of the adapted layers.

    Raises:
        UserError: a target or a layer is not in the model, or the model has adapters already.
    """
    if adapters(model):
        raise UserError("The model has adapters already.", "Fold them in or drop them with remove_lora first.")
    chosen = _chosen(model, config)
    saved = [
        name
        for target in config.train_fully
        for name in _matching(target, [name for name, _ in model.named_modules() if name])
    ]
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        adapter = attach(model, name, config.rank, config.scale, config.dropout)
        bound = 1 / math.sqrt(adapter.in_features)
        with torch.no_grad():
            adapter.lora_a.copy_((2 * torch.rand(adapter.lora_a.shape, generator=generator) - 1) * bound)
    freeze(model, saved)
    return chosen


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its weight, for speed; `unmerge_lora` gives back the very weights, of which a copy is
    kept meanwhile.
    """
    for adapter in adapters(model).values():
        adapter.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undo `merge_lora`, bit for bit."""
    for adapter in adapters(model).values():
        adapter.unmerge()


def remove_lora(model: nn.Module, *, merge: bool) -> None:
    """Make the model a plain one again, all of it trainable, with the adapters folded in (`merge`) or dropped."""
    for name, adapter in adapters(model).items():
        if merge:
            adapter.merge()
        else:
            adapter.unmerge()
        with torch.device("meta"):
            plain = Linear(adapter.in_features, adapter.out_features, bias=adapter.bias is not None)
        plain.weight, plain.bias = adapter.weight, adapter.bias
        plain.train(adapter.training)
        model.set_submodule(name, plain)
    model.requires_grad_(True)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adaptable(model: nn.Module) -> list[str]:
    """The names of the linear layers that can have adapters: those of the blocks."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith("blocks.")
    ]


def attach(model: nn.Module, name: str, rank: int, scale: float, dropout: float) -> LoRALinear:
    """Put an adapter, whose A is not yet filled, beside one layer."""
    base = model.get_submodule(name)
    assert isinstance(base, nn.Linear)
    adapter = LoRALinear(base, rank, scale, dropout)
    adapter.train(base.training)
    model.set_submodule(name, adapter)
    return adapter


def freeze(model: nn.Module, except_modules: list[str]) -> None:
    """Leave only adapters and these modules trainable."""
    model.requires_grad_(False)
    for adapter in adapters(model).values():
        adapter.lora_a.requires_grad_(True)
        adapter.lora_b.requires_grad_(True)
    for name in except_modules:
        model.get_submodule(name).requires_grad_(True)


def trained_fully(model: nn.Module) -> list[str]:
    """The names of the trainable parameters that are not adapters'."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.endswith((".lora_a", ".lora_b"))
    ]


def _chosen(model: nn.Module, config: LoRAConfig) -> list[str]:
    names = adaptable(model)
    if config.targets is None:
        chosen = {name for name in names if name.endswith(PROJECTIONS)}
    else:
        chosen = {name for target in config.targets for name in _matching(target, names)}
    if config.layers is not None:
        count = 1 + max(_layer(name) for name in names)
        if beyond := [layer for layer in config.layers if layer >= count]:
            raise UserError(f"There is no layer {beyond[0]}; the model has {count}, counted from 0.")
        chosen = {name for name in chosen if _layer(name) in config.layers}
    if not chosen:
        raise UserError("The targets and layers of the adapters have nothing in common.")
    return [name for name in names if name in chosen]


def _matching(target: str, names: list[str]) -> list[str]:
    found = [name for name in names if f".{name}".endswith(f".{target}")]
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
        raise UserError(f"The model has no module whose name ends in '{target}'. {did_you_mean(target, ends)}")
    return found


def _layer(name: str) -> int:
    return int(name.split(".")[1])
