"""Which token sequences share what: so that a few-shot prompt is computed once for a task, and a question once for its
options.

Sequences are sorted, so that those with a common beginning are neighbors. A *group* has a prefix that is computed once
and kept in a cache. Within a group, a *tree* is one row of a batch: a root that several sequences share, and the
branches in which they differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_PASS_COST = 128  # a pass of its own for a prefix costs about as much as so many tokens in a batch
_DEPTH = 6  # borders between groups are looked for so deep in the trie of all sequences
_MAX_ROW = 1024  # tokens of a tree: its mask grows with the square


@dataclass(frozen=True)
class Window:
    """Tokens of which the last `num_scored` are to be predicted from those before them (at least one must be
    before).
    """

    ids: Sequence[int]
    num_scored: int


@dataclass(frozen=True)
class Tree:
    """Windows that have their first `root` tokens in common, those of the group's prefix included."""

    members: tuple[int, ...]
    root: int


@dataclass(frozen=True)
class Group:
    """Trees that have their first `prefix` tokens in common."""

    prefix: int
    trees: tuple[Tree, ...]


def share_prefixes(windows: Sequence[Window]) -> list[Group]:
    """Cut windows into groups and trees so that few tokens are computed.

    Every window is in one tree; no scored token is within a prefix.
    """
    order = sorted(range(len(windows)), key=lambda index: tuple(windows[index].ids))
    arrays = [np.asarray(windows[index].ids, dtype=np.int64) for index in order]
    common = [_common(a, b) for a, b in pairwise(arrays)]
    return _Planner([windows[index] for index in order], order, common).plan()


def without_sharing(windows: Sequence[Window]) -> list[Group]:
    """Every window on its own."""
    return [Group(0, tuple(Tree((index,), len(window.ids)) for index, window in enumerate(windows)))]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The number of equal tokens at the beginning."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


class _Planner:
    """Works on sorted windows; `common[i]` is what windows i and i + 1 share."""

    def __init__(self, windows: Sequence[Window], numbers: Sequence[int], common: Sequence[int]) -> None:
        self.windows, self.numbers, self.common = windows, numbers, common

    def plan(self) -> list[Group]:
        """The cheapest groups; windows that share nothing come together in one."""
        groups = [group for _, group in [*self._split(0, len(self.windows), 0)]] if self.windows else []
        alone = tuple(tree for group in groups if group.prefix == 0 for tree in group.trees)
        return [group for group in groups if group.prefix] + ([Group(0, alone)] if alone else [])

    def _split(self, first: int, stop: int, depth: int) -> list[tuple[int, Group]]:
        """The groups of windows first..stop, each with its cost in tokens."""
        choices = [[self._group(first, stop, 0)]]
        prefix = self._shared(first, stop)
        usable = min(prefix, *(len(window.ids) - window.num_scored - 1 for window in self.windows[first:stop]))
        if stop - first > 1 and usable > 0:
            choices.append([self._group(first, stop, usable)])
        if depth < _DEPTH:
            parts = list(self._children(first, stop, prefix))
            # groups of a few are better made as trees, unless what they share is longer than a tree may be
            few = len(parts) > (stop - first) // 4
            if len(parts) > 1 and (not few or any(self._shared(*part) > _MAX_ROW for part in parts)):
                choices.append([group for part in parts for group in self._split(*part, depth + 1)])
        return min(choices, key=lambda groups: sum(cost for cost, _ in groups))

    def _shared(self, first: int, stop: int) -> int:
        """Tokens that all of several windows have in common; of one alone there are none to share."""
        return min((self.common[index] for index in range(first, stop - 1)), default=0)

    def _children(self, first: int, stop: int, prefix: int) -> Iterator[tuple[int, int]]:
        """The runs of windows that share more than `prefix` tokens."""
        borders = [index + 1 for index in range(first, stop - 1) if self.common[index] == prefix]
        yield from pairwise([first, *borders, stop])

    def _group(self, first: int, stop: int, prefix: int) -> tuple[int, Group]:
        trees: list[Tree] = []
        cost = prefix + _PASS_COST if prefix else 0
        for start, end, root in self._trees(first, stop, prefix):
            trees.append(Tree(tuple(self.numbers[start:end]), root))
            cost += self._row_length(start, end, root, prefix)
        return cost, Group(prefix, tuple(trees))

    def _trees(self, first: int, stop: int, prefix: int) -> Iterator[tuple[int, int, int]]:
        """Runs of windows with their roots: a window joins the run before it while that saves tokens."""
        start, root = first, len(self.windows[first].ids)
        for index in range(first + 1, stop):
            narrower = min(root, self.common[index - 1])
            lost = (index - start) * (root - narrower) if index - start > 1 else 0  # a lone window has no root to lose
            longer = self._row_length(start, index + 1, narrower, prefix)
            if narrower - prefix <= lost or longer > _MAX_ROW:
                yield start, index, root
                start, root = index, len(self.windows[index].ids)
            else:
                root = narrower
        yield start, stop, root

    def _row_length(self, start: int, stop: int, root: int, prefix: int) -> int:
        return root - prefix + sum(max(0, len(window.ids) - 1 - root) for window in self.windows[start:stop])
