"""The tokens of one forward pass, from what a caller says of them to what the blocks must know.

Shapes: B batch, T tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.models.attention.visibility import Visibility, visibility_of


@dataclass(frozen=True)
class Tokens:
    """The rows of one pass.

    Attributes:
        x_BTD: their embeddings, before anything of their positions is added.
        causal: a token sees no later one.
        document_ids_BT: which document of a packed row each belongs to, -1 for padding; None if a row is one text.
        valid_BT: False for padding; None if there is none.
        position_ids_BT: explicit positions, -1 for none; None if they are to be counted.
        type_ids_BT: rows of the table of token types; None for 0 everywhere.
    """

    x_BTD: Tensor
    causal: bool
    document_ids_BT: Tensor | None = None
    valid_BT: Tensor | None = None
    position_ids_BT: Tensor | None = None
    type_ids_BT: Tensor | None = None

    @property
    def length(self) -> int:
        """T."""
        return self.x_BTD.shape[1]

    @property
    def visibility(self) -> Visibility:
        """What each token sees when nothing stands in a cache.

        Kept by hand: in Python 3.11 a cached property takes a lock, which `torch.compile` cannot follow.
        """
        if "_visibility" not in self.__dict__:
            self.__dict__["_visibility"] = self._look()
        found: Visibility = self.__dict__["_visibility"]
        return found

    def _look(self) -> Visibility:
        documents_BT = self.document_ids_BT
        if documents_BT is not None and self.valid_BT is not None:  # padding is a document of its own
            documents_BT = documents_BT.masked_fill(~self.valid_BT, -1)
        return visibility_of(self.length, documents_BT, self.valid_BT, self.x_BTD.device, self.causal)

    def positions(self) -> Tensor:
        """The explicit positions, else [B or 1, T]: from 0 in every document, or from a row's first real token."""
        if self.position_ids_BT is not None:
            return self.position_ids_BT
        index = torch.arange(self.length, device=self.x_BTD.device)[None]
        if self.document_ids_BT is not None:
            assert self.visibility.starts_BT is not None
            return index - self.visibility.starts_BT
        return index if self.valid_BT is None else (self.valid_BT.long().cumsum(1) - 1).clamp(min=0)

    def real(self) -> Tensor | None:
        """Which tokens are not padding, [B, T]; None if none is marked as such."""
        if self.document_ids_BT is None:
            return self.valid_BT
        real_BT = self.document_ids_BT >= 0
        # on a CPU a look is cheap, and saves the losses of routers a pass; elsewhere it would hold up the device
        if real_BT.device.type == "cpu" and bool(real_BT.all()):
            return self.valid_BT
        return real_BT if self.valid_BT is None else real_BT & self.valid_BT
