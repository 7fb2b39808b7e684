"""The key-value cache of generation: preallocated, grows by slices, can be cropped and shared as a prefix."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.models.config import ModelConfig


class KVCache:
    """Keys and values of the tokens seen so far, for every layer.

    Slots are filled from the left; `valid` marks the slots that hold real tokens, so that rows of unequal length can be
    left-padded.

    Arguments:
        config: the model's configuration.
        batch_size: number of rows B.
        max_length: number of slots S.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, max_length: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_length, config.head_dim)
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.valid_BS = torch.zeros(batch_size, max_length, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def max_length(self) -> int:
        """Number of slots."""
        return self._keys.shape[3]

    def extend(self, valid_BT: Tensor) -> None:
        """Claim T new slots, marking which hold real tokens; the layers then `update` them."""
        new = self.length + valid_BT.shape[1]
        if new > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens; {new} were asked for")
        self.valid_BS[:, self.length : new] = valid_BT
        self.length = new

    def update(self, layer: int, key_BKTH: Tensor, value_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest tokens' keys and values of a layer and return all of them, each [B, K, length, H]."""
        start = self.length - key_BKTH.shape[2]
        self._keys[layer, :, :, start : self.length] = key_BKTH
        self._values[layer, :, :, start : self.length] = value_BKTH
        return self._keys[layer, :, :, : self.length], self._values[layer, :, :, : self.length]

    def positions(self, num_new: int) -> Tensor:
        """Positions [B, num_new] of the newest tokens: how many real tokens stand before each in its row."""
        counts = self.valid_BS[:, : self.length].long().cumsum(1) - 1
        return counts[:, -num_new:].clamp(min=0)

    def attention_mask(self, num_new: int) -> Tensor:
        """The mask [B, 1, num_new, length] of the newest tokens over all slots: causal, padding left out (True = attend)."""
        slots = torch.arange(self.length, device=self.valid_BS.device)
        queries = slots[-num_new:, None]
        mask = (slots <= queries) & (self.valid_BS[:, None, : self.length] | (slots == queries))
        return mask[:, None]

    def crop(self, length: int) -> None:
        """Forget all slots from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} tokens to {length}")
        self.valid_BS[:, length:] = False
        self.length = length
