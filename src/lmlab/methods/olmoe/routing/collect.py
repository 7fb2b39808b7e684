"""Collecting routing traces: from lmlab's models, and from mixtures of experts of `transformers` by hooks on their
routers.

Shapes: B batch, T tokens, L layers, k experts for each token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.errors import UserError, missing_extra
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.models import Transformer
from lmlab.models.formats.families import FAMILIES
from lmlab.models.formats.hf import read_settings
from lmlab.progress import progress
from lmlab.runs import Model

Routing = tuple[list[Tensor], Tensor]  # experts of each layer, [B, T, k], and the most probable next tokens, [B, T]
_ROUTER = re.compile(r"(router|gate)$", re.IGNORECASE)


class Routed:
    """A model whose routers can be watched.

    Attributes:
        layers: numbers of the layers with routers.
        num_experts: of each.
        vocab_size: token ids must be below it.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Routing],
        layers: Sequence[int],
        num_experts: int,
        vocab_size: int,
        max_seq_len: int,
    ) -> None:
        self.run, self.layers, self.num_experts = run, tuple(layers), num_experts
        self.vocab_size, self.max_seq_len = vocab_size, max_seq_len


def watch(model: Transformer | nn.Module) -> Routed:
    """Any model with routers that choose experts for tokens: lmlab's, or a causal language model of `transformers`.

    Raises:
        UserError: it has none, or experts choose their tokens.
    """
    return _watch_ours(model) if isinstance(model, Transformer) else _watch_theirs(model)


def load_routed(place: str | Path, dtype: torch.dtype = torch.float32) -> Routed:
    """The model at a place (`Model.find`): by lmlab where it knows the family, else by `transformers`."""
    found = Model.find(place)
    directory = found.path
    known = {"lmlab", *(family.model_type for family in FAMILIES)}
    if found.form != "directory" or read_settings(directory).get("model_type") in known:
        return watch(found.load(dtype=dtype))
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise missing_extra("transformers", "Models of other families") from None
    return watch(
        AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True, use_safetensors=True).eval()
    )


@torch.no_grad()
def collect(
    model: Routed | Transformer | nn.Module,
    batches: Iterable[Tensor],
    layers: Sequence[int] | None = None,
    *,
    domains: Sequence[str] = ("text",),
    domain_S: Sequence[int] | None = None,
    total: int | None = None,
    about: dict[str, Any] | None = None,
) -> RoutingTrace:
    """Run a model over batches of token ids, all of one length, and keep which experts its routers choose.

    Arguments:
        batches: token ids, [B, T].
        layers: which layers; by default all with routers.
        domains, domain_S: names of domains, and each sequence's number.
        total: number of sequences, for the progress line.

    Raises:
        UserError: a layer has no router, a token id is not in the vocabulary, or a sequence is too long; the place is
            named.
    """
    routed = model if isinstance(model, Routed) else watch(model)
    kept = routed.layers if layers is None else tuple(layers)
    for layer in kept:
        if layer not in routed.layers:
            raise UserError(f"Layer {layer} has no router; those that have one: {', '.join(map(str, routed.layers))}.")
    places = [routed.layers.index(layer) for layer in kept]
    ids: list[Any] = []
    experts, predicted = [], []
    with progress("trace", total, "sequences") as advance:
        for batch_BT in batches:
            _check(batch_BT, routed, sum(len(each) for each in ids))
            chosen, next_BT = routed.run(batch_BT)
            ids.append(batch_BT.numpy())
            experts.append(torch.stack([chosen[place] for place in places], 2).to(torch.int32).numpy())
            predicted.append(next_BT.numpy())
            advance(len(batch_BT))
    if not ids:
        raise UserError("There are no tokens to trace.")
    domain = np.zeros(0, np.int64) if domain_S is None else np.asarray(domain_S)
    return RoutingTrace(
        np.concatenate(ids),
        np.concatenate(experts),
        routed.num_experts,
        kept,
        tuple(domains),
        domain,
        np.concatenate(predicted),
        about or {},
    )


def _check(ids_BT: Tensor, routed: Routed, before: int) -> None:
    wrong = (ids_BT < 0) | (ids_BT >= routed.vocab_size)
    if bool(wrong.any()):
        row, place = (int(each) for each in wrong.nonzero()[0])
        raise UserError(
            f"Sequence {before + row}, place {place}: token id {int(ids_BT[row, place])} is not below vocab_size"
            f" {routed.vocab_size}."
        )
    if ids_BT.shape[1] > routed.max_seq_len:
        raise UserError(
            f"Sequences of {ids_BT.shape[1]} tokens are longer than the model's {routed.max_seq_len}.",
            "Lower the length.",
        )


def _watch_ours(model: Transformer) -> Routed:
    moe = model.config.moe
    layers = [number for number, kind in enumerate(model.config.ffn_kinds) if kind == "moe"]
    if moe is None or not layers:
        raise UserError("The model has no mixture-of-experts layers.", "Name one that has.")
    if moe.router == "expert_choice":
        raise UserError("Experts of this model choose their tokens, so tokens have no ranked experts to trace.")
    model.eval()

    def run(ids_BT: Tensor) -> Routing:
        output = model(ids_BT)
        assert output.logits_BTV is not None
        return [each.indices for each in output.routers], output.logits_BTV.argmax(-1)

    return Routed(run, layers, moe.num_experts, model.config.vocab_size, model.config.max_seq_len)


def _watch_theirs(model: nn.Module) -> Routed:
    config: Any = model.config
    names = [
        name
        for name, module in model.named_modules()
        if _ROUTER.search(name) and "router" in type(module).__name__.lower()
    ]
    k = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_topk", None)
    experts = next(
        (
            getattr(config, key)
            for key in ("num_experts", "num_local_experts", "n_routed_experts")
            if getattr(config, key, None)
        ),
        None,
    )
    if not names or k is None or experts is None:
        raise UserError(
            f"{type(model).__name__} has no routers that are known here.",
            "Name a mixture of experts, such as Mixtral or Qwen-MoE.",
        )
    layers = [int(re.findall(r"\.(\d+)\.", name)[0]) for name in names]
    modules = dict(model.named_modules())

    def run(ids_BT: Tensor) -> Routing:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, arguments, output: found.__setitem__(name, _indices(output, k))

        handles = [modules[name].register_forward_hook(keep(name)) for name in names]
        try:
            logits = model(ids_BT, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return [found[name].view(*ids_BT.shape, k) for name in names], logits.argmax(-1)

    return Routed(run, layers, experts, config.vocab_size, getattr(config, "max_position_embeddings", 2**31))


def _indices(output: Any, k: int) -> Tensor:
    """The chosen experts, most probable first, of what a router gives: logits, weights and indices in any order, or
    logits alone.
    """
    parts = output if isinstance(output, tuple) else (output,)
    indices = next((part for part in parts if part.dtype in (torch.int64, torch.int32) and part.shape[-1] == k), None)
    if indices is None:
        return max(parts, key=lambda part: part.shape[-1]).topk(k, -1).indices
    weights = next((part for part in parts if part.is_floating_point() and part.shape == indices.shape), None)
    return indices if weights is None else indices.gather(-1, weights.argsort(dim=-1, descending=True, stable=True))


def batches_of(ids_ST: np.ndarray[Any, Any], size: int = 8) -> Iterator[Tensor]:
    """Rows of token ids as batches."""
    for start in range(0, len(ids_ST), size):
        yield torch.from_numpy(np.ascontiguousarray(ids_ST[start : start + size], np.int64))
