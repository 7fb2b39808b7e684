"""Which keys each query sees: causal order or none, the borders of packed documents, padding.

Shapes: B batch, T query tokens, S key tokens (the last T of them are the queries' own).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Visibility:
    """Query t of a row sees one run of keys: from `starts[t]` up to itself, or without causal order up to `stops[t]`.

    Such numbers describe plain attention, packed documents (a document is a run) and padding at the ends of rows (the
    text is a run), and need memory of the length, not of its square. What they cannot describe, such as padding between
    tokens in causal order, is a mask.

    Arguments:
        num_queries: T.
        num_keys: S.
        starts_BT: first visible key of each query, None for 0 everywhere.
        mask_BTS: a mask in place of runs, [B, 1, T, S], or [B, 1, 1, S] if all queries see the same; True = attend.
        causal: a query sees no key after its own.
        stops_BT: without causal order, the key after the last visible one; given with `starts_BT`.
        key_positions_BS: where each key stands in its text, [B, S], if that is not its slot: what the width of a window
            is measured in; with a mask only.

    Attributes:
        rows_are_one_document: as `prepare` has found, documents hide nothing: each row is one.
        is_tree: tokens see each other as the caller says, and one may stand in several texts.
        window: how many keys a query sees at most, its own included (`within`); None for all.
        unwindowed: the same without the window.
    """

    def __init__(
        self,
        num_queries: int,
        num_keys: int,
        starts_BT: Tensor | None = None,
        mask_BTS: Tensor | None = None,
        *,
        causal: bool = True,
        stops_BT: Tensor | None = None,
        key_positions_BS: Tensor | None = None,
    ) -> None:
        assert (stops_BT is None) == (causal or starts_BT is None)
        self.num_queries, self.num_keys, self.causal = num_queries, num_keys, causal
        self.starts_BT, self.stops_BT = starts_BT, stops_BT
        self._mask_BTS, self._key_positions_BS = mask_BTS, key_positions_BS
        self.is_tree = False
        self.rows_are_one_document = False
        self.window: int | None = None
        self.unwindowed = self
        self._within: dict[int, Visibility] = {}
        self._sequences: tuple[Tensor, int] | None = None
        self._block_mask: Any = None
        self.is_dense = mask_BTS is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but causal order, if that, hides keys."""
        return self.starts_BT is None and not self.is_dense

    def within(self, window: int, device: torch.device) -> Visibility:
        """The same, in causal order, with a window: of those keys a query sees the last `window`, its own included."""
        assert self.causal
        if window >= self.num_keys and self._key_positions_BS is None:
            return self
        if window not in self._within:
            self._within[window] = self._windowed(window, device)
        return self._within[window]

    def _windowed(self, window: int, device: torch.device) -> Visibility:
        slots_S = torch.arange(self.num_keys, device=device)
        if self.is_dense:
            places_BS = slots_S[None] if self._key_positions_BS is None else self._key_positions_BS
            queries_BT = places_BS[:, self.num_keys - self.num_queries :]
            near = places_BS[:, None, :] > queries_BT[:, :, None] - window
            found = Visibility(self.num_queries, self.num_keys, mask_BTS=self.mask(device) & near[:, None])
        else:
            starts_BT = (slots_S[self.num_keys - self.num_queries :] - window + 1).clamp(min=0)[None]
            if self.starts_BT is not None:
                starts_BT = torch.maximum(starts_BT, self.starts_BT)
            found = Visibility(self.num_queries, self.num_keys, starts_BT)
        found.window, found.unwindowed = window, self
        return found

    def mask(self, device: torch.device) -> Tensor:
        """The mask [B or 1, 1, T or 1, S], True = attend; it is made when first asked for, and kept."""
        if self._mask_BTS is None:
            keys = torch.arange(self.num_keys, device=device)
            mask = (keys <= keys[self.num_keys - self.num_queries :, None])[None]
            if not self.causal:
                mask = torch.ones_like(mask)
            if self.starts_BT is not None:
                mask = mask & (keys >= self.starts_BT[:, :, None])
            if self.stops_BT is not None:
                mask = mask & (keys < self.stops_BT[:, :, None])
            self._mask_BTS = mask[:, None]
        return self._mask_BTS

    def sequences(self, batch: int, device: torch.device) -> tuple[Tensor, int]:
        """The runs of all rows laid end to end: where each starts, and the total, int32 [runs + 1]; and the longest
        one's length.
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
            borders, longest = self.unwindowed.sequences(batch, device)
            self.rows_are_one_document = self.window is None and longest == self.num_keys and len(borders) == batch + 1
        else:
            self.block_mask(device)

    def block_mask(self, device: torch.device) -> Any:
        """FlexAttention's mask of blocks; None if every query sees every key."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self.is_plain and not self.causal:
            return None
        if self._block_mask is None:
            starts, stops = self.starts_BT, self.stops_BT

            def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return k <= q

            def document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k <= q) & (k >= starts[b, q])  # type: ignore[index]

            def run(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k >= starts[b, q]) & (k < stops[b, q])  # type: ignore[index]

            def window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k <= q) & (k >= starts[0, q])  # type: ignore[index]

            # starts that hold for all rows are those of a window over rows of one text
            alike = self.window is not None and starts is not None and len(starts) == 1
            rows = None if starts is None or alike else starts.shape[0]
            mask = causal if starts is None else window if alike else document if stops is None else run
            self._block_mask = create_block_mask(mask, rows, None, self.num_queries, self.num_keys, device=device)
        return self._block_mask


def visibility_of(
    length: int, document_ids_BT: Tensor | None, valid_BT: Tensor | None, device: torch.device, causal: bool
) -> Visibility:
    """What tokens see of each other: those of their own document, without padding.

    Arguments:
        document_ids_BT: documents of packed rows, with padding as one of its own.
        valid_BT: real tokens of rows that are one text each; it says nothing more where there are documents.
    """
    if document_ids_BT is not None:
        return _runs(document_ids_BT, causal)
    if valid_BT is None:
        return Visibility(length, length, causal=causal)
    # to see whether padding stands at the ends of rows alone is cheap on a CPU, and would hold up another device
    looks = device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and _is_one_run(valid_BT):
        return _runs(valid_BT, causal)
    mask_BTS = padding_mask(valid_BT, length) if causal else key_mask(valid_BT)
    return Visibility(length, length, mask_BTS=mask_BTS, causal=causal)


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """Where the document of each token starts in its row, [B, T]."""
    index = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    return torch.where(_is_first(document_ids_BT), index, 0).cummax(1).values


def document_stops(document_ids_BT: Tensor) -> Tensor:
    """Where the document of each token has ended in its row: the place after its last token, [B, T]."""
    length = document_ids_BT.shape[1]
    return length - document_starts(document_ids_BT.flip(1)).flip(1)


def padding_mask(valid_BS: Tensor, num_queries: int) -> Tensor:
    """The dense causal mask [B, 1, T, S] that leaves out padded keys; a padded query sees itself, so that no softmax is
    empty.
    """
    slots = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    queries = slots[valid_BS.shape[1] - num_queries :, None]
    mask = (slots <= queries) & (valid_BS[:, None, :] | (slots == queries))
    return mask[:, None]


def key_mask(valid_BS: Tensor) -> Tensor:
    """The mask [B, 1, 1, S] that leaves out padded keys for all queries alike. A row of nothing but padding sees
    itself, so that no softmax is empty.
    """
    return (valid_BS | ~valid_BS.any(1, keepdim=True))[:, None, None]


def _runs(document_ids_BT: Tensor, causal: bool) -> Visibility:
    """Every token sees the run of equal numbers that it stands in. Padding sees the padding of its own side, so that no
    softmax is empty.
    """
    length, starts_BT = document_ids_BT.shape[1], document_starts(document_ids_BT)
    stops_BT = None if causal else document_stops(document_ids_BT)
    return Visibility(length, length, starts_BT, causal=causal, stops_BT=stops_BT)


def _is_first(document_ids_BT: Tensor) -> Tensor:
    """Whether a token has another number than the one before it, [B, T]."""
    first = torch.ones_like(document_ids_BT, dtype=torch.bool)
    first[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return first


def _is_one_run(valid_BT: Tensor) -> bool:
    """Whether the real tokens of each row stand side by side."""
    begins = (valid_BT[:, 1:] & ~valid_BT[:, :-1]).sum(1) + valid_BT[:, 0]
    return bool((begins <= 1).all())
