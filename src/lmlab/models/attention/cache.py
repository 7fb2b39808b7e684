"""The key-value cache: preallocated, grows by slices, can be cropped, and shared as a prefix by many continuations.

Shapes: L layers, B rows, K key-value heads, S slots, M slots of a memory before them, H width of a
head, T newest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.models.attention.visibility import Visibility, padding_mask
from lmlab.models.config import ModelConfig
from lmlab.models.memory.rows import KVRows


class KVCache:
    """Keys and values of the tokens seen so far, for every layer. For inference: no gradient flows through it.

    Slots are filled from the left. Padding, where there is any, is remembered and never attended to; tokens that were
    given no position (-1), such as those of a soft prompt, are remembered and not counted for the positions of later
    ones.

    Arguments:
        config: the model's configuration.
        batch_size: number of rows B.
        max_length: number of slots S.
        dtype, device: of the keys and values; those of the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_length, config.head_dim)
        self._config = config
        self._keys, self._values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self._valid_BS: Tensor | None = None  # None as long as there is no padding
        self._placed_BS: Tensor | None = None  # which slots have a position; None as long as none was given explicitly
        self._ahead_B1: Tensor | None = None  # by how much positions are ahead of the tokens counted (`go_on_from`)
        self.length = 0
        self.prefix: KVCache | None = None
        self.memory: KVRows | None = None  # keys and values from outside, which stand before the slots

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self._keys.shape[1]

    @property
    def max_length(self) -> int:
        """Number of slots, those of a shared prefix or of a memory not counted."""
        return self._keys.shape[3] - self._before

    @property
    def _before(self) -> int:
        """M, the slots of the memory."""
        return 0 if self.memory is None else self.memory.slots

    def take_in(self, memory: KVRows) -> None:
        """Put keys and values from outside before all slots; later tokens take the positions after it.

        Raises:
            ValueError: the cache is in use, or the memory is for another number of rows.
        """
        if self.length or self.prefix is not None or self.memory is not None:
            raise ValueError("a memory stands before the text: give it with the first tokens, to an empty cache")
        if memory.batch_size not in (1, self.batch_size):
            raise ValueError(f"a memory of {memory.batch_size} rows does not fit a cache of {self.batch_size}")
        self.memory = memory = memory.expand(self.batch_size).to(self._keys)
        before = memory.slots
        shape = (*self._keys.shape[:3], before + self._keys.shape[3], self._keys.shape[4])
        self._keys, self._values = (self._keys.new_empty(shape) for _ in range(2))
        self._keys[:, :, :, :before], self._values[:, :, :, :before] = memory.keys_LBKMH, memory.values_LBKMH

    def extend(self, num_new: int, valid_BT: Tensor | None = None, position_ids_BT: Tensor | None = None) -> None:
        """Claim slots for new tokens, which the layers then `update`.

        Arguments:
            num_new: T.
            valid_BT: False marks padding; None means that all are real.
            position_ids_BT: explicit positions, if there are any; -1 for none.

        Raises:
            ValueError: the slots do not suffice.
        """
        new = self.length + num_new
        if new > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens; {new} were asked for")
        if valid_BT is not None and self._valid_BS is None and not bool(valid_BT.all()):
            self._valid_BS = self._all_slots()
        if self._valid_BS is not None:
            self._valid_BS[:, self.length : new] = True if valid_BT is None else valid_BT
        if position_ids_BT is not None and self._placed_BS is None:
            self._placed_BS = self._all_slots()
        if self._placed_BS is not None:
            self._placed_BS[:, self.length : new] = True if position_ids_BT is None else position_ids_BT >= 0
        self.length = new

    def update(self, layer: int, key_BKTH: Tensor, value_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest tokens' keys and values of a layer and return all of its own, each [B, K, M + length, H]."""
        stop = self._before + self.length
        start = stop - key_BKTH.shape[2]
        self._keys[layer, :, :, start:stop] = key_BKTH
        self._values[layer, :, :, start:stop] = value_BKTH
        return self.layer(layer)

    def newest(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """As `update` for one token a row, for all layers at once: of each, where the token's keys and values are to be
        written, [B, K, H], and all of its own, [B, K, M + length, H].
        """
        stop = self._before + self.length
        stores = self._keys, self._values
        places = (store.select(3, stop - 1).unbind() for store in stores)
        return list(zip(*places, *(store.narrow(3, 0, stop).unbind() for store in stores), strict=True))

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [B, K, M + length, H]."""
        stop = self._before + self.length
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]

    def positions(self, num_new: int) -> Tensor:
        """Positions [B or 1, num_new] of the newest tokens: how many real tokens with a position stand before each in
        its row.
        """
        before: Tensor | int = 0 if self.memory is None else self.memory.next_position_B[:, None]
        if self.prefix is not None and self.prefix.length:
            counts_P = self.prefix._counts().expand(self.prefix.batch_size, -1)[:, -1]
            if self.prefix._ahead_B1 is not None:
                counts_P = counts_P + self.prefix._ahead_B1[:, 0]
            before = counts_P.repeat_interleave(self.batch_size // self.prefix.batch_size)[:, None]
        if self._ahead_B1 is not None:
            before = before + self._ahead_B1
        return (self._counts()[:, self.length - num_new :] - 1).clamp(min=0) + before

    def next_positions(self) -> Tensor:
        """Position [B or 1, 1] of the token that will follow the newest one; not of a cache that shares a prefix."""
        assert self.prefix is None
        after = self._counted()
        after = after if self.memory is None else after + self.memory.next_position_B[:, None]
        return after if self._ahead_B1 is None else after + self._ahead_B1

    def go_on_from(self, position: int | Tensor) -> None:
        """Say where the token after the newest one stands, [B] or the same for all rows: not after the last position
        that was counted, but where what the cache holds stands for more tokens, or for fewer positions, than it has
        slots.
        """
        self._ahead_B1 = None
        wanted_B1 = torch.as_tensor(position, device=self._keys.device).reshape(-1, 1)
        self._ahead_B1 = (wanted_B1 - self.next_positions()).expand(self.batch_size, 1).clone()

    def _counted(self) -> Tensor:
        """How many real tokens with a position the slots in use hold, [B or 1, 1]."""
        return self._counts()[:, -1:] if self.length else self._keys.new_zeros(1, 1, dtype=torch.long)

    def real_lengths(self) -> Tensor:
        """Number of real tokens of each row, [B]."""
        if self._valid_BS is None:
            return torch.full((self.batch_size,), self.length, device=self._keys.device)
        return self._valid_BS[:, : self.length].sum(1)

    def _counts(self) -> Tensor:
        """How many real tokens with a position stand up to each slot in use, [B or 1, length]."""
        counted = [each[:, : self.length] for each in (self._valid_BS, self._placed_BS) if each is not None]
        if not counted:
            return torch.arange(1, self.length + 1, device=self._keys.device)[None]
        return (counted[0] & counted[-1]).long().cumsum(1)

    def _all_slots(self) -> Tensor:
        return torch.ones(self.batch_size, self.max_length, dtype=torch.bool, device=self._keys.device)

    def visibility(self, num_new: int) -> Visibility:
        """What the newest tokens see of this cache's own slots."""
        if self._valid_BS is None:
            return Visibility(num_new, self.length)
        valid_BS = self._valid_BS[:, : self.length]
        # a window counts what is there, vectors without a position too, as where nothing is padded
        count_BS = valid_BS.long().cumsum(1) - 1
        return Visibility(num_new, self.length, mask_BTS=padding_mask(valid_BS, num_new), key_positions_BS=count_BS)

    def places(self) -> Tensor:
        """Where the token of each slot in use stands in this cache's part of its text, [B or 1, length]."""
        return self._counts() - 1

    def seen_by(self, positions_BT: Tensor | None, window: int | None) -> Tensor | None:
        """Which slots of this cache, a shared prefix, tokens that continue it see, [B or P, T or 1, length]; None for
        all.

        Arguments:
            positions_BT: of those tokens.
            window: how many keys they see at most, their own included.
        """
        valid_BS = self.valid()
        seen = None if valid_BS is None else valid_BS[:, None]
        if window is None:
            return seen
        assert positions_BT is not None
        places_BS = self.places()
        places_BS = places_BS.repeat_interleave(max(1, len(positions_BT) // len(places_BS)), 0)
        near = places_BS[:, None] > positions_BT[:, :, None] - window
        return near if seen is None else near & seen.repeat_interleave(max(1, len(near) // len(seen)), 0)

    def valid(self) -> Tensor | None:
        """Which slots in use hold real tokens, [B, length]; None if all do."""
        return None if self._valid_BS is None else self._valid_BS[:, : self.length]

    def crop(self, length: int) -> None:
        """Forget all slots from `length` on.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} tokens to {length}")
        self.length = length

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come several times.

        Raises:
            ValueError: the cache shares a prefix, whose rows belong to groups.
        """
        if self.prefix is not None:
            raise ValueError("rows of a cache that shares a prefix cannot be selected")
        index = torch.tensor(rows, device=self._keys.device)
        self._keys, self._values = self._keys[:, index], self._values[:, index]
        self.memory = None if self.memory is None else self.memory.select(rows)
        self._valid_BS = None if self._valid_BS is None else self._valid_BS[index]
        self._placed_BS = None if self._placed_BS is None else self._placed_BS[index]
        self._ahead_B1 = None if self._ahead_B1 is None else self._ahead_B1[index]

    def copy_of(self, row: int, start: int, stop: int, room: int = 0) -> KVCache:
        """A cache of one row with the tokens of these slots, and `room` free ones; they must be the row's first real
        tokens.

        Raises:
            ValueError: this cache shares a prefix, or holds a memory.
        """
        if self.prefix is not None or self.memory is not None:
            raise ValueError("rows of a cache that shares a prefix, or holds a memory, cannot be copied")
        length = stop - start
        copied = KVCache(self._config, 1, length + room, self._keys.dtype, self._keys.device)
        copied._keys[:, 0, :, :length], copied._values[:, 0, :, :length] = (
            self._keys[:, row, :, start:stop],
            self._values[:, row, :, start:stop],
        )
        if self._placed_BS is not None:
            copied._placed_BS = copied._all_slots()
            copied._placed_BS[0, :length] = self._placed_BS[row, start:stop]
        copied._ahead_B1 = None if self._ahead_B1 is None else self._ahead_B1[row : row + 1].clone()
        copied.length = length
        return copied

    @classmethod
    def side_by_side(cls, parts: Sequence[tuple[KVCache, Sequence[int]]], room: int) -> KVCache:
        """A cache of chosen rows of several ones, which end at the same slot; shorter rows get padding on the left.

        Arguments:
            parts: caches and the rows to take of each, in order; padding, where they have any, stands before the
                tokens.
            room: free slots for tokens to come.

        Raises:
            ValueError: a cache shares a prefix, or holds a memory.
        """
        if any(cache.prefix is not None or cache.memory is not None for cache, _ in parts):
            raise ValueError("rows of a cache that shares a prefix, or holds a memory, cannot join others")
        lengths = [cache.real_lengths()[list(rows)] for cache, rows in parts]
        length, first = max(int(each.max()) for each in lengths if len(each)), parts[0][0]
        joined = cls(first._config, sum(map(len, lengths)), length + room, first._keys.dtype, first._keys.device)
        joined._keys[:, :, :, :length] = joined._values[:, :, :, :length] = 0  # what is hidden must still be a number
        joined.extend(length, torch.arange(length, device=first._keys.device) >= length - torch.cat(lengths)[:, None])
        if any(cache._placed_BS is not None for cache, _ in parts):
            joined._placed_BS = joined._all_slots()
        if any(cache._ahead_B1 is not None for cache, _ in parts):
            joined._ahead_B1 = torch.zeros(joined.batch_size, 1, dtype=torch.long, device=first._keys.device)
        start = 0
        for cache, rows in parts:
            stop, kept = start + len(rows), min(length, cache.length)
            index = torch.tensor(list(rows), dtype=torch.long, device=first._keys.device)
            for mine, theirs in ((joined._keys, cache._keys), (joined._values, cache._values)):
                mine[:, start:stop, :, length - kept : length] = theirs[:, index, :, cache.length - kept : cache.length]
            if joined._placed_BS is not None and cache._placed_BS is not None:
                placed = cache._placed_BS[index, cache.length - kept : cache.length]
                joined._placed_BS[start:stop, length - kept : length] = placed
            if joined._ahead_B1 is not None and cache._ahead_B1 is not None:
                joined._ahead_B1[start:stop] = cache._ahead_B1[index]
            start = stop
        return joined

    def fork(self, copies: int, max_length: int) -> KVCache:
        """An empty cache of `copies` rows for each row of this one, whose tokens continue it without copying it.

        Row r of the new cache continues row r // copies of this one. This one must stay as it is while the other is
        used.

        Arguments:
            max_length: slots of the continuations.

        Raises:
            ValueError: this cache shares a prefix itself, or holds a memory.
        """
        if self.prefix is not None or self.memory is not None:
            raise ValueError("a cache that shares a prefix, or holds a memory, cannot be shared as one")
        forked = KVCache(self._config, self.batch_size * copies, max_length, self._keys.dtype, self._keys.device)
        forked.prefix = self
        return forked
