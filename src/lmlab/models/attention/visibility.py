"""Which keys each query sees: causal order, the borders of packed documents, padding.

Shapes: B batch, T query tokens, S key tokens (the last T of them are the queries' own).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Visibility:
    """Query t of a row sees the keys from `starts[t]` up to itself.

    That one number a token describes plain causal attention (0), packed documents (where the document starts) and
    padding on the left (where the text starts). What it cannot describe, such as padding between tokens, is a dense
    mask.

    Arguments:
        num_queries: T.
        num_keys: S.
        starts_BT: first visible key of each query, None for 0 everywhere.
        mask_BTS: a dense mask in place of `starts_BT`, [B, 1, T, S], True = attend.
    """

    def __init__(
        self, num_queries: int, num_keys: int, starts_BT: Tensor | None = None, mask_BTS: Tensor | None = None
    ) -> None:
        self.num_queries, self.num_keys, self.starts_BT = num_queries, num_keys, starts_BT
        self._mask_BTS = mask_BTS
        self._sequences: tuple[Tensor, int] | None = None
        self._block_mask: Any = None
        self.is_dense = mask_BTS is not None

    @property
    def is_causal(self) -> bool:
        """Whether every query sees all keys up to itself."""
        return self.starts_BT is None and not self.is_dense

    def mask(self, device: torch.device) -> Tensor:
        """The dense mask, [B or 1, 1, T, S], True = attend."""
        if self._mask_BTS is None:
            keys = torch.arange(self.num_keys, device=device)
            mask = (keys <= keys[self.num_keys - self.num_queries :, None])[None]
            if self.starts_BT is not None:
                mask = mask & (keys >= self.starts_BT[:, :, None])
            self._mask_BTS = mask[:, None]
        return self._mask_BTS

    def sequences(self, batch: int, device: torch.device) -> tuple[Tensor, int]:
        """The documents of all rows laid end to end: where each starts, and the total, int32 [documents + 1]; and the
        longest one's length.
        """
        length = self.num_keys
        if self.starts_BT is None:
            return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=device), length
        if self._sequences is None:
            index = torch.arange(length, device=device)
            first = (self.starts_BT == index).flatten().nonzero().flatten()
            borders = torch.cat((first, first.new_tensor([batch * length])))
            self._sequences = borders.int(), int(borders.diff().max())
        return self._sequences

    def prepare(self, batch: int, device: torch.device, half: bool) -> None:
        """Make what a GPU's back end for documents needs now, and once: its sizes are known on the device alone, and
        blocks that were compiled must not wait for them.

        Arguments:
            half: whether attention is computed in half precision.
        """
        if device.type != "cuda" or self.starts_BT is None or self.num_queries != self.num_keys:
            return
        if half:
            self.sequences(batch, device)
        else:
            self.block_mask(device)

    def block_mask(self, device: torch.device) -> Any:
        """FlexAttention's mask of blocks."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self._block_mask is None:
            starts = self.starts_BT

            def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return k <= q

            def document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k <= q) & (k >= starts[b, q])  # type: ignore[index]

            rows = None if starts is None else starts.shape[0]
            mask = causal if starts is None else document
            self._block_mask = create_block_mask(mask, rows, None, self.num_queries, self.num_keys, device=device)
        return self._block_mask


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """Where the document of each token starts in its row, [B, T]."""
    index = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    first = torch.ones_like(document_ids_BT, dtype=torch.bool)
    first[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return torch.where(first, index, 0).cummax(1).values


def padding_starts(valid_BT: Tensor) -> Tensor | None:
    """Where the text of each row starts, [B, T], if each row is one run of real tokens; None if padding stands between
    tokens.

    A padded query sees the padding of its own side, so that no softmax is empty.
    """
    runs = document_starts(valid_BT)
    borders = (valid_BT[:, 1:] & ~valid_BT[:, :-1]).sum(1) + valid_BT[:, 0]
    return runs if bool((borders <= 1).all()) else None


def visibility_of_all(
    length: int, document_ids_BT: Tensor | None, valid_BT: Tensor | None, device: torch.device
) -> Visibility:
    """Every token sees all real tokens of its own text, also later ones; padding sees itself."""
    mask_BTS = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if document_ids_BT is not None:
        mask_BTS = mask_BTS & (document_ids_BT[:, :, None] == document_ids_BT[:, None])
    if valid_BT is not None:
        mask_BTS = mask_BTS & valid_BT[:, None] | torch.eye(length, dtype=torch.bool, device=device)
    return Visibility(length, length, mask_BTS=mask_BTS[:, None])


def padding_mask(valid_BS: Tensor, num_queries: int) -> Tensor:
    """The dense causal mask [B, 1, T, S] that leaves out padded keys; a padded query sees itself."""
    slots = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    queries = slots[valid_BS.shape[1] - num_queries :, None]
    mask = (slots <= queries) & (valid_BS[:, None, :] | (slots == queries))
    return mask[:, None]
