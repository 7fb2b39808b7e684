"""Adapters on what is no linear layer, as the `peft` library stores them: `lora_embedding_A` and `lora_embedding_B`
of a table, and `target_parameters` for the stacked matrices of experts.

Of experts A is [E r, I] and B [O, r E], the number of the expert counting slowest in A and fastest in B. Where both
stacks of a layer are adapted, `peft` nests what wraps them, and the first, of gates and ups, is called `base_layer`.

Shapes: E experts, r rank, O and I outputs and inputs of a matrix, V vocabulary, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.models.formats.names import Layout, Shape
from lmlab.models.lora.adapt import STACKED, attach, thin_pairs
from lmlab.models.lora.layers import LoRALinear, LowRank
from lmlab.models.moe.experts import Experts


@dataclass(frozen=True)
class Place:
    """One adapter's place in a file.

    Attributes:
        ours: what it adapts.
        key: their name of it, which targets and patterns of ranks are matched with.
        names: of the tensors A and B.
    """

    ours: str
    key: str
    names: tuple[str, str]

    @property
    def of_experts(self) -> bool:
        """Whether it adapts a stacked parameter, and no module."""
        return not self.names[0].endswith("lora_embedding_A")


def places(layout: Layout, ours: Iterable[str]) -> list[Place]:
    """Where the adapters of these (`embedding`, `blocks.0.ffn.experts.down`) are stored."""
    found, names = [], dict.fromkeys(ours)
    for name in names:
        if name == "embedding":
            module = layout.module("embedding")
            found.append(Place(name, module, (f"{module}.lora_embedding_A", f"{module}.lora_embedding_B")))
            continue
        key = layout.stacked(name)
        module, matrix = key.rpartition(".")[0], name.rpartition(".")[2]
        both = {f"{name.rpartition('.')[0]}.{each}" for each in STACKED} <= names.keys()
        module += ".base_layer" if both and matrix == STACKED[0] else ""
        found.append(Place(name, key, (f"{module}.lora_A.weight", f"{module}.lora_B.weight")))
    return found


def write_beside(model: nn.Module, layout: Layout) -> tuple[list[Place], dict[str, Tensor]]:
    """The places of a model's adapters on what is no linear layer, and their tensors."""
    pairs = {name: pair for name, pair in thin_pairs(model).items() if not isinstance(pair, LoRALinear)}
    found, tensors = places(layout, pairs), dict[str, Tensor]()
    for place in found:
        pair = pairs[place.ours]
        a, b = pair.lora_a.detach(), pair.lora_b.detach()
        if isinstance(pair, LowRank):
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        else:
            a = a[:, : layout.shapes[f"{place.key}.weight"][0]]  # without what only pads the vocabulary
        tensors |= dict(zip(place.names, (a, b), strict=True))
    return found, tensors


def wanted_beside(
    model: nn.Module, layout: Layout, is_target: Callable[[str], bool], parameters: list[str]
) -> list[Place]:
    """The places that a file's settings name.

    Arguments:
        is_target: whether a module of theirs is one.
        parameters: ends of the names of the parameters that are.
    """
    ours = ["embedding"] if is_target(layout.module("embedding")) else []
    stacks = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    known = {f"{name}.{matrix}": layout.stacked(f"{name}.{matrix}") for name in stacks for matrix in STACKED}
    for end in parameters:
        if not any(_ends(key, end) for key in known.values()):
            raise UserError(
                f"target_parameters: lmlab has no adapters on '{end}'.", "Fold them in with the peft library."
            )
    ours += [name for name, key in known.items() if any(_ends(key, end) for end in parameters)]
    return places(layout, ours)


def expected_shapes(model: nn.Module, layout: Layout, place: Place, rank: int) -> dict[str, Shape]:
    """Of the tensors of a place."""
    if place.of_experts:
        experts, outputs, inputs = model.get_parameter(place.ours).shape
        return dict(zip(place.names, ((experts * rank, inputs), (outputs, rank * experts)), strict=True))
    rows, width = layout.shapes[f"{place.key}.weight"]
    return dict(zip(place.names, ((rank, rows), (width, rank)), strict=True))


@torch.no_grad()
def read_beside(
    model: nn.Module, place: Place, settings: Mapping[str, Any], rank: int, alpha: float, tensors: Mapping[str, Tensor]
) -> None:
    """Put one adapter beside what it adapts."""
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    a, b = (tensors[name] for name in place.names)
    pair = attach(model, place.ours, rank, scale, 0.0)
    if isinstance(pair, LowRank):
        experts = len(pair.lora_a)
        pair.lora_a.copy_(a.unflatten(0, (experts, rank)))
        pair.lora_b.copy_(b.unflatten(1, (rank, experts)).permute(2, 0, 1))
    else:
        pair.lora_a.zero_()
        pair.lora_a[:, : a.shape[1]].copy_(a)
        pair.lora_b.copy_(b)


def short_targets(found: Iterable[Place], stacks: Iterable[str]) -> list[str]:
    """Names of the experts' parameters that are adapted: their ends, where all that end so are."""
    adapted = {place.key for place in found if place.of_experts}
    targets = set()
    for key in adapted:
        end = ".".join(key.split(".")[-3:])
        targets.add(end if all(other in adapted for other in stacks if _ends(other, end)) else key)
    return sorted(targets)


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
