"""The losses of a model's routers, from the passes in which they decide."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.hooks import RemovableHandle

from lmlab.models import Transformer


class RouterLossesWithin:
    """The losses of routers of the passes within, of a model that has some."""

    def __init__(self, model: Transformer) -> None:
        self._model, self._found = model, list[Any]()
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> list[Any]:
        if self._model.mixtures and self._model.training and torch.is_grad_enabled():
            self._handle = self._model.register_forward_hook(
                lambda module, arguments, output: (
                    None if output.router_losses is None else self._found.append(output.router_losses)
                )
            )
        return self._found

    def __exit__(self, *error: object) -> Literal[False]:
        if self._handle is not None:
            self._handle.remove()
        return False
