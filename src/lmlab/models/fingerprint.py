"""The identity of a network: what was computed with some weights must not be used with others."""

from __future__ import annotations

import hashlib
import weakref

import torch
from torch import nn


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


_known: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], str]] = weakref.WeakKeyDictionary()


def known_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a model, whichever precision it was read in; computed again only when a weight has changed."""
    try:
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers()))
    except RuntimeError:  # weights that were made in inference mode, or are spread, do not tell
        return weights_fingerprint(model, torch.bfloat16)
    found = _known.get(model)
    if found is None or found[0] != state:
        found = _known[model] = (state, weights_fingerprint(model, torch.bfloat16))
    return found[1]
