"""Pruned caches: of the keys and values of a text, each head keeps those with the highest scores. Nothing is trained.

The score of a kind says what a key will be worth. Rows are chosen after rotation, so that keys stay where they stood,
and what follows goes on at the position after the whole text.

Shapes: L layers, T tokens of the text, Q tokens of a query, K key-value heads, G = N / K query heads of each, N query
heads, H width of a head, M slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import Compressor, read_once, register, slots_for
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.models import KVRows, Memory, Transformer, hash_of_ids, known_fingerprint
from lmlab.models.internals.taps import Taps

Budget = Literal["head", "layer", "model"]


class Pruning(Compressor):
    """A pruned cache, by the scores that a kind gives.

    Attributes:
        budget: each head keeps as many slots (`head`), or heads share those of their layer (`layer`) or of the whole
            model (`model`), so that a head keeps more where others need less.
    """

    budget: ClassVar[Budget] = "head"
    _last: tuple[tuple[str, ...], Tensor] | None = None

    def forget(self) -> None:
        super().forget()
        self._last = None

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        return Memory(self.narrow(read_once(self.model, ids_1T), ids_1T, query_1Q, ratio))

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        """What each token's keys and values are worth, [L, K, T]; `rows` are those of the whole text."""
        raise NotImplementedError

    def narrow(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> KVRows:
        """Of rows, of which some may be gone already, those with the highest scores: as many of each head's as the
        ratio leaves, but at least one and the sinks.
        """
        length = ids_1T.shape[1]
        places_LKM = rows.positions_LBKM[:, 0]
        held_LKM = places_LKM >= 0
        scores_LKT = self._scored(rows if rows.slots == length and rows.is_full else None, ids_1T, query_1Q)
        scores_LKM = scores_LKT.gather(2, places_LKM.clamp(min=0))
        scores_LKM = scores_LKM.masked_fill(places_LKM < self.config.sinks, math.inf)
        scores_LKM = scores_LKM.masked_fill(~held_LKM, -math.inf)
        keep_LKM = _keep(scores_LKM, held_LKM, ratio, self.config.sinks, self._budget())
        # kept slots to the right, in the order of the text; the longest head says how many slots there are
        slots = max(1, int(keep_LKM.sum(-1).max()))
        index_LKM = keep_LKM.int().argsort(dim=-1, stable=True)[..., -slots:]
        return rows.gather(index_LKM[:, None], keep_LKM.gather(2, index_LKM)[:, None])

    def _budget(self) -> Budget:
        return self.budget

    def _scored(self, rows: KVRows | None, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        """The scores, which are the same for all ratios, and so are kept for the last text."""
        query = "" if query_1Q is None else hash_of_ids(query_1Q[0].tolist())
        key = (known_fingerprint(self.model), hash_of_ids(ids_1T[0].tolist()), query)
        if self._last is None or self._last[0] != key:
            whole = read_once(self.model, ids_1T) if rows is None else rows
            self._last = (key, self.scores(whole, ids_1T, query_1Q))
        return self._last[1]


def _keep(scores_LKM: Tensor, held_LKM: Tensor, ratio: float, sinks: int, budget: Budget) -> Tensor:
    """Which slots stay, [L, K, M]."""
    if budget == "head":
        groups = scores_LKM.flatten(0, 1)  # one row of slots for each budget
        sizes = [slots_for(int(count), ratio, sinks) for count in held_LKM.flatten(0, 1).sum(-1)]
    else:
        groups = scores_LKM.flatten(1) if budget == "layer" else scores_LKM.flatten()[None]
        by_head = torch.tensor([[slots_for(int(count), ratio, sinks) for count in layer] for layer in held_LKM.sum(-1)])
        sizes = by_head.sum(-1).tolist() if budget == "layer" else [int(by_head.sum())]
    keep = torch.zeros(groups.shape, dtype=torch.bool, device=groups.device)
    for row, size in enumerate(sizes):
        keep[row, groups[row].topk(size).indices] = True
    return keep.view(scores_LKM.shape) & held_LKM


@register("prune:random")
class Random(Pruning):
    """Any: what every other score must beat."""

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.seed + int(ids_1T.sum()))
        shape = (len(rows.keys_LBKMH), rows.keys_LBKMH.shape[2], ids_1T.shape[1])
        return torch.rand(shape, generator=generator).to(ids_1T.device)


@register("prune:norm")
class Norm(Pruning):
    """-|k|: keys of small norm are attended to more (Devoto et al. 2024)."""

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        return -rows.keys_LBKMH[:, 0].float().norm(dim=-1)


@register("prune:recent")
class Recent(Pruning):
    """Sinks and the last tokens (StreamingLLM, Xiao et al. 2024)."""

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        return rows.positions_LBKM[:, 0].float()


class SnapConfig(KindConfig):
    """How much is kept, and by whose attention.

    Attributes:
        window: last tokens of the text whose attention counts; with a query, its tokens count instead.
    """

    window: PositiveInt = 32


@register("prune:snap")
class Snap(Pruning):
    """Mean attention of the last queries (SnapKV, Li et al. 2024)."""

    Config = SnapConfig

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        length = ids_1T.shape[1]
        if query_1Q is not None and query_1Q.shape[1]:
            looking, before = query_1Q, rows
        else:
            assert isinstance(self.config, SnapConfig)
            window = min(self.config.window, length)
            looking, before = ids_1T[:, length - window :], _first(rows, length - window)
        return attention_of(self.model, before, looking, lambda pattern_KGTS: pattern_KGTS.mean((1, 2)))[..., :length]


def _first(rows: KVRows, length: int) -> KVRows:
    """The rows of a text's first tokens."""
    return KVRows(
        rows.keys_LBKMH[:, :, :, :length],
        rows.values_LBKMH[:, :, :, :length],
        rows.positions_LBKM[:, :, :, :length],
        torch.full_like(rows.next_position_B, length),
    )


def attention_of(model: Transformer, rows: KVRows, ids_1T: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """What tokens that follow rows attend to, reduced to [K, S] in each layer: [L, K, S], S the slots and the tokens.

    Arguments:
        reduce: of the probabilities [K, G, T, S] of one layer.
    """
    found: list[Tensor] = []

    def listen(pattern_1NTS: Tensor) -> None:
        found.append(reduce(pattern_1NTS[0].unflatten(0, (model.config.num_kv_heads, -1)).float()))

    memory = Memory(rows) if rows.slots else None
    model(ids_1T, memory=memory, taps=Taps({"blocks.*.attention.pattern": listen}), logits="none")
    return torch.stack(found)


class Composed(Compressor):
    """Several kinds one after the other: what the first has kept, the next narrows.

    The ratio of the whole is the product of the parts', each of which takes the same root of it, but for one that keeps
    everything. It must be trained where a part must.

    Raises:
        UserError: a later part does not narrow rows.
    """

    def __init__(self, model: Transformer, parts: Sequence[Compressor], config: KindConfig) -> None:
        super().__init__(model, config)
        for part in parts[1:]:
            if not isinstance(part, Pruning):
                raise UserError(f"'{part.kind}' cannot follow another kind: only pruning narrows what is there.")
        self.parts = nn.ModuleList(parts)
        self.kind = "+".join(part.kind for part in parts)  # type: ignore[misc]
        self.learns = any(part.learns for part in parts)  # type: ignore[misc]
        self.trains_each = any(part.trains_each for part in parts)  # type: ignore[misc]
        self._narrowing = sum(not part.keeps_all for part in parts)

    def forget(self) -> None:
        super().forget()
        for part in self.parts:
            assert isinstance(part, Compressor)
            part.forget()

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        each = ratio ** (1 / self._narrowing)
        first = self.parts[0]
        assert isinstance(first, Compressor)
        memory = first.memory(ids_1T, query_1Q, each)
        for part in self.parts[1:]:
            assert isinstance(part, Pruning)
            if memory.rows is None:
                raise UserError(f"'{first.kind}' gives no keys and values that '{part.kind}' could narrow.")
            memory = replace(memory, rows=part.narrow(memory.rows, ids_1T, query_1Q, each))
        return memory
