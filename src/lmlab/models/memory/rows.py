"""Keys and values from outside: rows that every layer attends to before its own tokens.

They may be those of a text that was read before (whole, pruned by head, or of special tokens only) or trained outright.

Shapes: L layers, B rows of a batch, K key-value heads, N query heads, M slots of the memory, H width of a head, T query
tokens, S keys of the pass itself or of its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.models.attention.rope import apply_rotary, rotary_table
from lmlab.models.attention.visibility import Visibility
from lmlab.models.config import ModelConfig

EMPTY = -1  # a position that no token has


@dataclass(frozen=True, eq=False)
class KVRows:
    """Keys (after rotation) and values, for every layer.

    Attributes:
        keys_LBKMH, values_LBKMH: one memory for each row of a batch, or one (B = 1) for all.
        positions_LBKM: where the token of each slot stood in its text, -1 for a slot that is empty: heads may hold
            unlike numbers, and rows of a batch unlike lengths.
        next_position_B: the position of the first token after the memory: its text's whole length, however many rows
            of it are left.
    """

    keys_LBKMH: Tensor
    values_LBKMH: Tensor
    positions_LBKM: Tensor
    next_position_B: Tensor
    _seen: dict[str, bool] = field(default_factory=dict, repr=False)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.keys_LBKMH.shape[1]

    @property
    def slots(self) -> int:
        """M, empty ones included."""
        return self.keys_LBKMH.shape[3]

    @property
    def is_full(self) -> bool:
        """Whether no slot is empty."""
        if "full" not in self._seen:  # asked at every token that is generated
            self._seen["full"] = bool((self.positions_LBKM >= 0).all())
        return self._seen["full"]

    def counts_LBK(self) -> Tensor:
        """How many slots each head holds."""
        return (self.positions_LBKM >= 0).sum(-1)

    def check(self, config: ModelConfig) -> None:
        """Refuse rows of another network.

        Raises:
            UserError: other numbers of layers, heads or dimensions of a head, or parts that do not fit each other.
        """
        if self.keys_LBKMH.dim() != 5:
            raise UserError("The memory is not whole: its keys are no layers of rows of heads.")
        layers, batch, heads, slots, width = self.keys_LBKMH.shape
        for name, held, needed in (
            ("layers", layers, config.num_layers),
            ("key-value heads", heads, config.num_kv_heads),
            ("dimensions of a head", width, config.head_dim),
        ):
            if held != needed:
                raise UserError(
                    f"The memory holds keys and values of {held} {name}; the model has {needed}.",
                    "Read it with the model that it was made with.",
                )
        if (
            self.values_LBKMH.shape != self.keys_LBKMH.shape
            or self.positions_LBKM.shape != (layers, batch, heads, slots)
            or self.next_position_B.shape != (batch,)
        ):
            raise UserError("The memory is not whole: its keys, values and positions do not fit each other.")

    def require_whole(self) -> None:
        """Refuse numbers that are none: types, and positions that do not stand before what follows.

        Raises:
            UserError: see above.
        """
        last = self.positions_LBKM.amax((0, 2, 3)) if self.positions_LBKM.numel() else self.next_position_B * 0 - 1
        if (
            not self.batch_size
            or not self.keys_LBKMH.is_floating_point()
            or self.keys_LBKMH.dtype != self.values_LBKMH.dtype
            or bool((self.positions_LBKM < EMPTY).any())
            or bool((last >= self.next_position_B).any())
            or bool((self.next_position_B < 0).any())
        ):
            raise UserError("The memory is not whole: its keys, values and positions do not fit each other.")

    def to(self, like: Tensor) -> KVRows:
        """The same on the device and in the type of a tensor."""
        if self.keys_LBKMH.dtype == like.dtype and self.keys_LBKMH.device == like.device:
            return self
        return KVRows(
            self.keys_LBKMH.to(like),
            self.values_LBKMH.to(like),
            self.positions_LBKM.to(like.device),
            self.next_position_B.to(like.device),
        )

    def select(self, rows: Sequence[int]) -> KVRows:
        """These rows of the batch, in this order."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.keys_LBKMH.device)
        return KVRows(
            self.keys_LBKMH[:, index],
            self.values_LBKMH[:, index],
            self.positions_LBKM[:, index],
            self.next_position_B[index],
        )

    def gather(self, index_LBKM: Tensor, valid_LBKM: Tensor | None = None) -> KVRows:
        """Chosen slots of each head; those that are not valid become empty."""
        wide = index_LBKM[..., None].expand(-1, -1, -1, -1, self.keys_LBKMH.shape[4])
        positions = self.positions_LBKM.gather(3, index_LBKM)
        if valid_LBKM is not None:
            positions = positions.masked_fill(~valid_LBKM, EMPTY)
        return KVRows(
            self.keys_LBKMH.gather(3, wide), self.values_LBKMH.gather(3, wide), positions, self.next_position_B
        )

    def shifted(self, config: ModelConfig, by_B: Tensor) -> KVRows:
        """The same as if their text had begun so many positions later: keys are rotated further.

        Raises:
            UserError: keys say nothing of positions that could be changed: those of a learned table, or of rotations
                that depend on the length of the text.
        """
        scaling = config.rope_scaling
        if config.positions == "learned" or (scaling is not None and scaling.depends_on_length):
            how = "a learned table" if config.positions == "learned" else f"rope_scaling {scaling and scaling.type}"
            raise UserError(
                f"The keys of this memory cannot move to later positions: the model has {how}.",
                "Compress the texts as one.",
            )
        keys = self.keys_LBKMH
        if config.positions == "rotary":
            keys = torch.stack([self._rotated(config, layer, by_B) for layer in range(len(keys))])
        places = torch.where(self.positions_LBKM >= 0, self.positions_LBKM + by_B[:, None, None], EMPTY)
        return replace(
            self, keys_LBKMH=keys, positions_LBKM=places, next_position_B=self.next_position_B + by_B, _seen={}
        )

    def _rotated(self, config: ModelConfig, layer: int, by_B: Tensor) -> Tensor:
        keys_BKMH = self.keys_LBKMH[layer]
        if config.rotary_layers is not None and not config.rotary_layers[layer]:
            return keys_BKMH
        sliding = config.attention_kinds[layer] == "sliding"
        cos, sin = rotary_table(config, by_B[:, None], torch.float32, sliding=sliding)
        # some scalings multiply the table by a factor, which the keys have already
        factor = rotary_table(config, torch.zeros_like(by_B[:, None]), torch.float32, sliding=sliding)[0]
        return apply_rotary(keys_BKMH.float(), (cos / factor, sin / factor)).to(keys_BKMH.dtype)

    @classmethod
    def in_sequence(cls, parts: Sequence[KVRows], config: ModelConfig) -> KVRows:
        """Memories of texts that stand one after the other: those of later texts move behind the earlier ones.

        Raises:
            UserError: as `shifted`.
        """
        batch = max(each.batch_size for each in parts)
        joined = parts[0].expand(batch)
        for each in parts[1:]:
            moved = each.expand(batch).shifted(config, joined.next_position_B)
            joined = cls(
                torch.cat((joined.keys_LBKMH, moved.keys_LBKMH), 3),
                torch.cat((joined.values_LBKMH, moved.values_LBKMH), 3),
                torch.cat((joined.positions_LBKM, moved.positions_LBKM), 3),
                moved.next_position_B,
            )
        return joined

    @classmethod
    def batch(cls, parts: Sequence[KVRows]) -> KVRows:
        """The memories of several rows side by side; shorter ones get empty slots in front."""
        slots = max(each.slots for each in parts)

        def padded(x: Tensor, value: float) -> Tensor:
            missing = slots - x.shape[3]
            front = x.new_full((*x.shape[:3], missing, *x.shape[4:]), value)
            return torch.cat((front, x), 3) if missing else x

        return cls(
            torch.cat([padded(each.keys_LBKMH, 0) for each in parts], 1),
            torch.cat([padded(each.values_LBKMH, 0) for each in parts], 1),
            torch.cat([padded(each.positions_LBKM, EMPTY) for each in parts], 1),
            torch.cat([each.next_position_B for each in parts]),
        )

    def expand(self, rows: int) -> KVRows:
        """One memory for all as one for each row, without a copy."""
        if self.batch_size == rows:
            return self
        assert self.batch_size == 1
        return KVRows(
            self.keys_LBKMH.expand(-1, rows, -1, -1, -1),
            self.values_LBKMH.expand(-1, rows, -1, -1, -1),
            self.positions_LBKM.expand(-1, rows, -1, -1),
            self.next_position_B.expand(rows),
        )


class Before:
    """A memory before the keys of one forward pass: what layers attend to, and who sees what of it.

    Arguments:
        rows: the memory.
        own: what the tokens see of each other, and of the slots of the cache that are not the memory's.
        num_heads: N.
        positions_BT: of the tokens of this pass.
        in_cache: the cache holds the keys and values already.
    """

    def __init__(
        self, rows: KVRows, own: Visibility, num_heads: int, positions_BT: Tensor, in_cache: bool = False
    ) -> None:
        self.rows, self._own, self._num_heads, self._positions_BT = rows, own, num_heads, positions_BT
        self._in_cache = in_cache
        self._made: dict[tuple[int | None, int | None], Visibility] = {}

    def put(self, layer: int, k_BKSH: Tensor, v_BKSH: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer with the memory's in front, [B, K, M + S, H]."""
        if self._in_cache:
            return k_BKSH, v_BKSH
        batch = len(k_BKSH)
        keys, values = (
            each[layer].expand(batch, -1, -1, -1) for each in (self.rows.keys_LBKMH, self.rows.values_LBKMH)
        )
        return torch.cat((keys.to(k_BKSH.dtype), k_BKSH), 2), torch.cat((values.to(v_BKSH.dtype), v_BKSH), 2)

    def visibility(self, layer: int, window: int | None) -> Visibility:
        """What the tokens see of the M + S keys of a layer."""
        # layers share what does not depend on the positions of their slots
        alike = self.rows.is_full and window is None
        key = (None if alike else layer, window)
        if key not in self._made:
            self._made[key] = self._see(layer, window, alike)
        return self._made[key]

    def _see(self, layer: int, window: int | None, alike: bool) -> Visibility:
        own, slots = self._own, self.rows.slots
        if alike and own.is_plain:
            return Visibility(own.num_queries, slots + own.num_keys, causal=own.causal)
        places_BKM = self.rows.positions_LBKM[layer]
        device = places_BKM.device
        seen = (places_BKM >= 0)[:, :, None]
        if window is not None:
            own = own.within(window, device)
            seen = seen & (places_BKM[:, :, None] > self._positions_BT[:, None, :, None] - window)
        if bool((seen == seen[:, :1]).all()):
            seen = seen[:, :1]
        else:
            seen = seen.repeat_interleave(self._num_heads // seen.shape[1], 1)
        mask = own.mask(device)
        batch, heads = max(len(seen), len(mask)), max(seen.shape[1], mask.shape[1])
        queries = max(seen.shape[2], mask.shape[2])
        both = torch.cat([each.expand(batch, heads, queries, -1) for each in (seen, mask)], 3)
        return Visibility(own.num_queries, slots + own.num_keys, mask_BTS=both, causal=own.causal)
