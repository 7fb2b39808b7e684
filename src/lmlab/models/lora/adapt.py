"""Low-rank adapters (LoRA, Hu et al. 2021): train a few thin matrices beside frozen weights, then fold them in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmlab.errors import UserError, did_you_mean
from lmlab.models.layers.linear import Linear
from lmlab.models.layers.packed import PackedLinear
from lmlab.models.lora.config import LoRAConfig
from lmlab.models.lora.layers import (
    Adapted,
    LoRAEmbedding,
    LoRAExperts,
    LoRALinear,
    LowRank,
    QuantizedLoRALinear,
    ThinPair,
)
from lmlab.models.lora.quantized import QuantizedLinear, require_bitsandbytes, whole_linear
from lmlab.models.moe.experts import Experts

_BESIDE = "_trained_beside_adapters"
PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
STACKED = ("gate_up", "down")  # the matrices of experts


def full_weight(linear: nn.Linear) -> Tensor:
    """The matrix that a layer applies, its adapter included."""
    return linear.full_weight() if isinstance(linear, LoRALinear) else linear.weight


def add_lora(model: nn.Module, config: LoRAConfig, seed: int = 0) -> list[str]:
    """Put adapters beside the layers that `config` names, and freeze every other parameter.

    A is drawn uniformly within 1 / sqrt(in_features) and B is zero, so the model computes what it did. For embeddings
    A is zero and B normal, as in `peft`: a lookup takes single columns of A.

    Returns:
        the names of what is adapted: layers, and stacked matrices such as `blocks.0.ffn.experts.down`.

    Raises:
        UserError: a target or a layer is not in the model, the model has adapters already, or its weights cannot be
            quantized here.
    """
    if adapters(model):
        raise UserError("The model has adapters already.", "Fold them in or drop them with remove_lora first.")
    chosen, saved = _chosen(model, config), _trained_fully(model, config)
    quantize_base(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        _fill(attach(model, name, config.rank, config.scale, config.dropout), generator)
    freeze(model, saved)
    return chosen


def quantize_base(model: nn.Module, config: LoRAConfig) -> None:
    """Quantize the linear layers that stay frozen beside adapters, as `config` says; nothing without `quantize`.

    Raises:
        UserError: that does not work here.
    """
    if config.quantize is None:
        return
    require_bitsandbytes(config.quantize)
    for name in quantizable(model, config):
        layer = cast(nn.Linear, model.get_submodule(name))
        _refuse_packed(name, layer)
        _replace(model, layer, QuantizedLinear(layer, config.quantize))


def quantizable(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The linear layers that stay frozen beside adapters."""
    trained = tuple(f"{name}." for name in _trained_fully(model, config))
    return [name for name in adaptable(model) if not f"{name}.".startswith(trained)]


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
    """Make the model a plain one again, all of it trainable, with the adapters folded in (`merge`) or dropped.

    An adapter on an embedding that is the output matrix too is folded into a table of its own: the model is not tied
    any more. Quantized weights become whole: those that were applied.
    """
    for adapter in adapters(model).values():
        if merge:
            if isinstance(adapter, LoRAEmbedding) and not adapter.foldable:
                untie(cast(Any, model))
                adapter.foldable = True
            adapter.merge()
        else:
            adapter.unmerge()
        plain = adapter.plain()
        if merge and isinstance(adapter, QuantizedLoRALinear):
            plain = whole_linear(adapter, adapter.full_weight())
        plain.train(adapter.training)
        _replace(model, adapter, plain)
    for layer in [each for each in model.modules() if isinstance(each, QuantizedLinear)]:
        _replace(model, layer, layer.plain())
    model.requires_grad_(True)
    vars(model).pop(_BESIDE, None)


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """The modules that carry adapters by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def thin_pairs(model: nn.Module) -> dict[str, ThinPair]:
    """The adapters by the names of what they adapt: layers, `embedding`, and stacked matrices of experts."""
    found: dict[str, ThinPair] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoRAExperts):
            stacks = [matrix for matrix in STACKED if matrix in module.low_rank]
            found |= {f"{name}.{matrix}": cast(LowRank, module.low_rank[matrix]) for matrix in stacks}
        else:
            found[name] = module
    return found


def adaptable(model: nn.Module) -> list[str]:
    """The names of the linear layers that can have adapters: those of the blocks. Routers cannot, since their decisions
    read the weight itself.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and not name.endswith(".router")
    ]


def attach(model: nn.Module, name: str, rank: int, scale: float, dropout: float) -> ThinPair:
    """Put an adapter, whose A is not yet filled, beside a linear layer, the embedding, or a stack of matrices of
    experts.

    Raises:
        UserError: the layer's weight is packed for reading (`lmlab.models.pack_weights`).
    """
    parent, _, leaf = name.rpartition(".")
    if parent.endswith("experts") and leaf in STACKED:
        return _attach_to_experts(model, parent, leaf, rank, scale)
    base = model.get_submodule(name)
    _refuse_packed(name, base)
    adapter: LoRALinear | LoRAEmbedding
    if isinstance(base, nn.Embedding):
        config = cast(Any, model).config
        adapter = LoRAEmbedding(base, rank, scale, config.tie_embeddings and config.num_labels is None)
    elif isinstance(base, QuantizedLinear):
        adapter = QuantizedLoRALinear(base, rank, scale, dropout)
    else:
        assert isinstance(base, nn.Linear)
        adapter = LoRALinear(base, rank, scale, dropout)
    adapter.train(base.training)
    _replace(model, base, adapter)
    return adapter


def _refuse_packed(name: str, layer: nn.Module) -> None:
    if isinstance(layer, PackedLinear):
        raise UserError(
            f"{name} is packed in {layer.kind}, and adapters cannot be folded into such weights.",
            "Read the model in fp32 or bf16; quantize makes small weights to train beside.",
        )


def _attach_to_experts(model: nn.Module, name: str, matrix: str, rank: int, scale: float) -> LowRank:
    base = model.get_submodule(name)
    assert isinstance(base, Experts)
    if not isinstance(base, LoRAExperts):
        adapted = LoRAExperts(base)
        adapted.train(base.training)
        _replace(model, base, adapted)
        base = adapted
    pair = base.low_rank[matrix] = LowRank(getattr(base, matrix), rank, scale)
    return pair


def _fill(pair: ThinPair, generator: torch.Generator) -> None:
    with torch.no_grad():
        if isinstance(pair, LoRAEmbedding):
            pair.lora_a.zero_()
            pair.lora_b.copy_(torch.randn(pair.lora_b.shape, generator=generator))
        else:
            bound = 1 / math.sqrt(pair.lora_a.shape[-1])
            pair.lora_a.copy_((2 * torch.rand(pair.lora_a.shape, generator=generator) - 1) * bound)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in every place where another is: experts may serve all layers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def untie(model: Any) -> None:
    """Give the output a matrix of its own: a copy of the table, without an adapter that stands beside it."""
    embedding = model.embedding
    with torch.device("meta"):
        head = Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)
    head.weight = nn.Parameter(embedding.weight.detach().clone())
    model.head = head
    model.config = model.config.model_copy(update={"tie_embeddings": False})


def freeze(model: nn.Module, except_modules: list[str]) -> None:
    """Leave only adapters and these modules trainable."""
    model.requires_grad_(False)
    for pair in thin_pairs(model).values():
        pair.lora_a.requires_grad_(True)
        pair.lora_b.requires_grad_(True)
    for name in except_modules:
        model.get_submodule(name).requires_grad_(True)
    vars(model)[_BESIDE] = tuple(except_modules)  # they go with the adapters, also where nothing is trained any more


def trained_fully(model: nn.Module) -> list[str]:
    """The names of the parameters that belong to adapters and are none: those trained beside them, and those that are
    trainable now.
    """
    beside = tuple(f"{name}." for name in vars(model).get(_BESIDE, ()))
    return [
        name
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or name.startswith(beside)) and not name.endswith((".lora_a", ".lora_b"))
    ]


def _trained_fully(model: nn.Module, config: LoRAConfig) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    return [name for target in config.train_fully for name in _matching(target, names)]


def _chosen(model: nn.Module, config: LoRAConfig) -> list[str]:
    linear = adaptable(model)
    names = [*linear, *_beside_linear(model)]
    if config.targets is None:
        chosen = {name for name in linear if name.endswith(PROJECTIONS)}
    else:
        chosen = {name for target in config.targets for name in _matching_or_inner(target, names)}
    if config.layers is not None:
        count = 1 + max(_layer(name) for name in linear)
        if beyond := [layer for layer in config.layers if layer >= count]:
            raise UserError(f"There is no layer {beyond[0]}; the model has {count}, counted from 0.")
        chosen = {name for name in chosen if name == "embedding" or _layer(name) in config.layers}
    if not chosen:
        raise UserError("The targets and layers of the adapters have nothing in common.")
    return [name for name in names if name in chosen]


def _beside_linear(model: nn.Module) -> Iterator[str]:
    """The names of what else can have adapters."""
    if isinstance(getattr(model, "embedding", None), nn.Embedding):
        yield "embedding"
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            yield from (f"{name}.{matrix}" for matrix in STACKED)


def _matching_or_inner(target: str, names: list[str]) -> list[str]:
    """What ends so, or is a matrix of the experts that end so."""
    inner = [
        name
        for name in names
        if name.rpartition(".")[2] in STACKED and f".{name}".rpartition(".")[0].endswith(f".{target}")
    ]
    return [name for name in inner if ".experts." in name] or _matching(target, names)


def _matching(target: str, names: list[str]) -> list[str]:
    found = [name for name in names if f".{name}".endswith(f".{target}")]
    if not found:
        if target.endswith("router"):
            raise UserError(
                "Routers cannot have adapters.", "Train them themselves: name them in train_fully, or leave them out."
            )
        ends = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
        raise UserError(f"The model has no module whose name ends in '{target}'. {did_you_mean(target, ends)}")
    return found


def _layer(name: str) -> int:
    return int(name.split(".")[1])
