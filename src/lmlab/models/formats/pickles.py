"""Weights that are stored as a pickle: read only when asked for, and as plain tensors only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lmlab.errors import LmlabError


def read_pickle(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Arguments:
        mmap: leave them on the disk until they are used.

    Raises:
        LmlabError: the file is damaged, or holds anything but plain weights.
    """
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (
        Exception
    ) as error:  # the library raises many kinds for malformed and for forbidden content, some without words
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LmlabError(f"'{path}' cannot be read as plain weights ({reason}).") from None
    return tensors
