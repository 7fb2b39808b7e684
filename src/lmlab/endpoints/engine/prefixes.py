"""Beginnings that prompts share: keys and values of prompts that were read, for the next one that begins in the same
way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from lmlab.models import KVCache

_SHORTEST = 64  # tokens for which a copy is worth its while


class Prefixes:
    """The prompts that were read last.

    Arguments:
        max_tokens: how many tokens are kept.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._kept: OrderedDict[tuple[int, ...], KVCache] = OrderedDict()

    @property
    def tokens(self) -> int:
        """How many are kept."""
        return sum(map(len, self._kept))

    def keep(self, prompt: Sequence[int], cache: KVCache, row: int) -> None:
        """Keep a prompt that was just read: its keys and values are the last slots of a row.

        What was used longest ago makes room.
        """
        key = tuple(prompt)
        if not _SHORTEST <= len(key) <= self._max_tokens or key in self._kept:
            return
        self._kept[key] = cache.copy_of(row, cache.length - len(key), cache.length)
        while self.tokens > self._max_tokens:
            self._kept.popitem(last=False)

    def shared(self, prompt: Sequence[int]) -> int:
        """With how many tokens of the prompt a kept one begins; 0 if they are not worth a copy."""
        found = max((shares(key, prompt) for key in self._kept), default=0)
        return found if worth_sharing(found, prompt) else 0

    def find(self, prompt: Sequence[int], room: int) -> KVCache | None:
        """A copy of the keys and values with which a prompt begins, if they are worth it; at least its last token
        remains to be read.

        Arguments:
            room: free slots behind the prompt.
        """
        if not (shared := self.shared(prompt)):
            return None
        best = next(key for key in self._kept if shares(key, prompt) == shared)
        self._kept.move_to_end(best)
        shared = min(shared, len(prompt) - 1)
        return self._kept[best].copy_of(0, 0, shared, len(prompt) - shared + room)


def shares(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    for number, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return number
    return min(len(a), len(b))


def worth_sharing(shared: int, prompt: Sequence[int]) -> bool:
    """Whether so many common tokens are worth a copy: they must save half of the reading."""
    return shared >= max(_SHORTEST, len(prompt) // 2)
