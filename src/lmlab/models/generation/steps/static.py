"""Steps of decoding whose shapes do not change, so that a GPU can be given one in a single launch (CUDA graphs).

A small model's step is hundreds of short kernels, and to launch each takes longer than to compute it. A step over all
slots of a cache, with a mask for those that are not filled, is the same work every time: it is recorded once and
replayed. Positions and slots advance on the device.

Shapes: R rows, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.models.attention.cache import KVCache
from lmlab.models.attention.visibility import Visibility
from lmlab.models.transformer import Transformer

_WARM_UP = 2  # steps before the recording: libraries choose their kernels and take their memory in the first ones


def can_be_static(model: Transformer, cache: KVCache) -> bool:
    """Whether a step on this cache can have shapes that do not change: not where experts take as many tokens as come,
    where a window follows the newest token, or where rotations depend on the length of the text.
    """
    config = model.config
    scaling = config.rope_scaling
    by_length = scaling is not None and scaling.depends_on_length
    windowed = "sliding" in config.attention_kinds
    return not (
        by_length
        or windowed
        or model.mixtures
        or cache.prefix is not None
        or cache.memory is not None
        or model.attention_backend != "auto"
    )


class StaticStep:
    """One further token for every row of a cache, which it fills as the model would.

    Nothing else may be added to the cache as long as this is used.

    Arguments:
        model: in evaluation mode.
        cache: with at least one token, and room for more.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.cache, self._model = cache, model
        self._slots = _NewestSlot(cache)
        self._ids_R1 = torch.zeros(cache.batch_size, 1, dtype=torch.long, device=self._slots.slot.device)
        self._graph: Any = None
        self._logits_RV: Tensor | None = None
        if self._ids_R1.device.type == "cuda":
            self._record()

    def run(self, ids_R1: Tensor) -> Tensor:
        """The logits [R, V] after these tokens, in fp32; they hold until the next step.

        Raises:
            ValueError: the cache is full.
        """
        self.cache.extend(1)
        self._ids_R1.copy_(ids_R1, non_blocking=True)
        if self._graph is None:
            return self._step()
        self._graph.replay()
        assert self._logits_RV is not None
        return self._logits_RV

    def _step(self) -> Tensor:
        logits_BTV = self._model(self._ids_R1, cache=self._slots, logits="last").logits_BTV
        self._slots.advance()
        return logits_BTV[:, 0].float()

    def _record(self) -> None:
        begun = self._slots.state()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                self._step()
                self._slots.restore(begun)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # a server's other threads may use the device meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits_RV = self._step()


class _NewestSlot(KVCache):
    """The same keys and values as a cache, of which every step sees all slots, behind a mask."""

    def __init__(self, cache: KVCache) -> None:
        self._keys, self._values, self._config = cache._keys, cache._values, cache._config
        self._keys[..., cache.length :, :] = 0  # what is hidden must still be a number
        self._values[..., cache.length :, :] = 0
        self.prefix = None
        self.memory = None
        device, valid_BS = self._keys.device, cache.valid()
        self.slot = torch.tensor([cache.length], device=device)
        self._seen_BS = torch.zeros(cache.batch_size, cache.max_length, dtype=torch.bool, device=device)
        self._seen_BS[:, : cache.length] = True if valid_BS is None else valid_BS
        self._position_B1 = cache.next_positions().clone()

    def state(self) -> tuple[Tensor, ...]:
        """What a step changes, beside keys and values."""
        return self.slot.clone(), self._seen_BS.clone(), self._position_B1.clone()

    def restore(self, state: tuple[Tensor, ...]) -> None:
        """Take back what steps have changed since; what they wrote is hidden again, and overwritten next."""
        for mine, before in zip((self.slot, self._seen_BS, self._position_B1), state, strict=True):
            mine.copy_(before)

    def extend(self, num_new: int, valid_BT: Tensor | None = None, position_ids_BT: Tensor | None = None) -> None:
        """Let the newest token be seen."""
        assert num_new == 1 and valid_BT is None and position_ids_BT is None
        self._seen_BS.index_fill_(1, self.slot, True)

    def update(self, layer: int, key_BKTH: Tensor, value_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest token's key and value of a layer and return all slots."""
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(2, self.slot, key_BKTH.to(keys.dtype))
        values.index_copy_(2, self.slot, value_BKTH.to(values.dtype))
        return keys, values

    def visibility(self, num_new: int) -> Visibility:
        """Every filled slot."""
        return Visibility(1, self.max_length, mask_BTS=self._seen_BS[:, None, None])

    def positions(self, num_new: int) -> Tensor:
        """Of the newest token, [B or 1, 1]."""
        return self._position_B1

    def advance(self) -> None:
        """Go on to the next slot."""
        self.slot.add_(1)
        self._position_B1.add_(1)
