"""The identity of a network: what was computed with some weights must not be used with others."""

from __future__ import annotations

import hashlib
import weakref

import torch
from torch import nn

WeightsState = tuple[tuple[str, int | None, int | None], ...]
"""What `weights_state` gives."""


def weights_fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of all weights with their names, shapes and types.

    Arguments:
        dtype: round the weights to this type first. With `torch.bfloat16` a model has one fingerprint whether it was
            read in fp32 or in bf16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_known: weakref.WeakKeyDictionary[nn.Module, tuple[WeightsState, str]] = weakref.WeakKeyDictionary()


def known_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a model, whichever precision it was read in; computed again only when a weight has changed."""
    state = weights_state(model)
    if any(writes is None for _, _, writes in state):
        return weights_fingerprint(model, torch.bfloat16)
    found = _known.get(model)
    if found is None or found[0] != state:
        found = _known[model] = (state, weights_fingerprint(model, torch.bfloat16))
    return found[1]


def weights_state(model: nn.Module) -> WeightsState:
    """Each weight's name, place in memory, and number of writes so far: equal only while nothing has changed. Weights
    that were made in inference mode, or are spread over processes, do not tell their writes (None).
    """
    return tuple((name, *_told(tensor)) for name, tensor in model.state_dict(keep_vars=True).items())


def _told(tensor: torch.Tensor) -> tuple[int | None, int | None]:
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # spread
        return None, None
    return place, None if tensor.is_inference() else tensor._version
