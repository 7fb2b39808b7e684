"""Log-likelihoods of tokens: shared beginnings are computed once, and rows are batched by length under a budget of
tokens.

Shapes: B rows, T tokens, P tokens of the shared prefix, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmlab.config import PACKED
from lmlab.evals.prefix_sharing import Group, Tree, Window, share_prefixes, without_sharing
from lmlab.hardware import memory_bytes, select_dtype
from lmlab.hardware.gemm import fast_inference
from lmlab.hardware.threads import beat
from lmlab.models import KVCache, Targets, Transformer
from lmlab.progress import progress

_MAX_TOKENS = {"cpu": 1024, "cuda": 65_536}  # of a batch; more is no faster
_SHARE_OF_MEMORY = 0.1  # of a machine, and four times that of what is free on a GPU; other programs live there too


@dataclass(frozen=True)
class Score:
    """What a model says of a window.

    Attributes:
        log_prob: natural logarithm of the probability of the scored tokens together.
        greedy: whether each of them is the most probable one.
        num_greedy: how many of them are; None where that is not told.
    """

    log_prob: float
    greedy: bool
    num_greedy: int | None = None


class Scorer(Protocol):
    """Whatever can score windows of tokens.

    Attributes:
        max_seq_len: the longest window, its last token not counted, which is never read.
        description: what scores, for the output.
    """

    max_seq_len: int
    description: str

    def score(self, windows: Sequence[Window]) -> Iterator[tuple[int, Score]]:
        """The number of each window and its score, in any order, as they come."""


class ModelScorer:
    """Scores by a transformer of lmlab. The model is left as it was, also when it is in training.

    Arguments:
        model: of which no copy is made.
        precision: `fp32`, `bf16`, or `auto`: the faster one. That of packed weights is told and computed in bf16.
        share: compute shared beginnings once.
        batch_tokens: the most tokens of a batch, by default as many as are fast and fit the memory.
    """

    def __init__(
        self, model: Transformer, precision: str = "auto", share: bool = True, batch_tokens: int | None = None
    ) -> None:
        self.model, self.share, self.batch_tokens = model, share, batch_tokens
        self.device = model.embedding.weight.device
        self.dtype = select_dtype(precision, self.device)
        self.max_seq_len = model.config.max_seq_len
        kept = precision if precision in PACKED else "bf16" if self.dtype == torch.bfloat16 else "fp32"
        self.description = f"lmlab, {kept}"

    def score(self, windows: Sequence[Window]) -> Iterator[tuple[int, Score]]:
        """The number of each window and its score, in any order, as they come."""
        scaling = self.model.config.rope_scaling
        # where the rotation of a token depends on how long its text is, texts have no beginning in common
        share = self.share and not (scaling is not None and scaling.depends_on_length)
        for group in share_prefixes(windows) if share else without_sharing(windows):
            prefix = self._read_prefix(windows[group.trees[0].members[0]].ids[: group.prefix]) if group.prefix else None
            waiting = list(_batches(windows, group, self._budget(group.prefix)))[::-1]
            while waiting:
                beat()
                batch = waiting.pop()
                try:
                    scores = self._run(windows, batch, group.prefix, prefix)
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    torch.cuda.empty_cache()
                    waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                    continue
                yield from scores

    def _budget(self, prefix: int) -> int:
        """Tokens of a batch: scores of attention and the widest layer must fit a share of the memory."""
        most = self.batch_tokens or _MAX_TOKENS.get(self.device.type, 8192)  # another kind of device, between the two
        free = torch.cuda.mem_get_info(self.device)[0] * 4 if self.device.type == "cuda" else memory_bytes() or 8 << 30
        config = self.model.config
        # fp32; a window of a usual question beside its prefix
        token = 4 * (4 * config.num_heads * (prefix + 256) + 8 * config.d_model + 4 * config.d_ff)
        return max(1, min(most, int(free * _SHARE_OF_MEMORY) // token))

    @torch.no_grad()
    def _read_prefix(self, ids: Sequence[int]) -> KVCache:
        cache = KVCache(self.model.config, 1, len(ids), self._cache_dtype(), self.device)
        with self._evaluating():
            self.model(torch.tensor([ids], device=self.device), cache=cache, logits="none")
        return cache

    def _cache_dtype(self) -> torch.dtype:
        weights = self.model.embedding.weight.dtype
        return self.dtype if weights == torch.float32 else weights

    @torch.no_grad()
    def _run(
        self, windows: Sequence[Window], batch: Sequence[Tree], prefix: int, cache: KVCache | None
    ) -> list[tuple[int, Score]]:
        rows = _Rows(windows, batch, prefix)
        inputs_BT, positions_BT, visible_BTT, targets = rows.tensors(self.device)
        own = None if cache is None else cache.fork(len(batch), inputs_BT.shape[1])
        with self._evaluating():
            found = self.model(
                inputs_BT, position_ids_BT=positions_BT, visible_BTS=visible_BTT, cache=own, targets=targets
            ).token_scores
        log_probs, greedy = found.log_probs_N.double().cpu(), found.greedy_N.cpu()
        sizes = [windows[member].num_scored for member in rows.members]
        parts = zip(rows.members, log_probs.split(sizes), greedy.split(sizes), strict=True)
        return [(member, Score(float(part.sum()), bool(each.all()), int(each.sum()))) for member, part, each in parts]

    def _evaluating(self) -> _Evaluating:
        return _Evaluating(self.model, self.device, self.dtype)


class _Evaluating:
    """Evaluation mode, the precision and the faster products, for the duration of one pass."""

    def __init__(self, model: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.was_training = model, model.training
        mixed = dtype != torch.float32 and model.embedding.weight.dtype == torch.float32
        exact = dtype == torch.float32  # then products stay with the library that all compare with
        self.contexts = (
            torch.autocast(device.type, dtype, enabled=mixed),
            nullcontext() if exact else fast_inference(),
        )

    def __enter__(self) -> None:
        self.model.eval()
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self.contexts):
            context.__exit__(None, None, None)
        self.model.train(self.was_training)


class _Rows:
    """The rows of a batch, one a tree: its root, then its branches one after the other.

    A window's last token is never read.
    """

    def __init__(self, windows: Sequence[Window], batch: Sequence[Tree], prefix: int) -> None:
        self.windows, self.batch, self.prefix = windows, batch, prefix
        self.members = [member for tree in batch for member in tree.members]
        self.branched = any(len(tree.members) > 1 for tree in batch)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Targets]:
        """Tokens and positions [B, T]; what each token sees [B, T, T], None where that is all before it; and what is
        scored.
        """
        rows, positions, branches = [], [], []
        where: list[tuple[int, int, int]] = []
        for number, tree in enumerate(self.batch):
            ids, places, owners = self._row(tree, number, where)
            rows.append(ids)
            positions.append(places)
            branches.append(owners)
        longest = max(1, *map(len, rows))
        inputs_BT, positions_BT, branches_BT = (
            torch.tensor([row + [fill] * (longest - len(row)) for row in table])
            for table, fill in ((rows, 0), (positions, 0), (branches, -1))
        )
        visible_BTT = None
        if self.branched:
            own = branches_BT[:, :, None] == branches_BT[:, None, :]
            visible_BTT = (own | (branches_BT == 0)[:, None, :]) & torch.ones(longest, longest, dtype=torch.bool).tril()
            visible_BTT = visible_BTT.to(device)
        targets = Targets(*torch.tensor(where, dtype=torch.long).reshape(-1, 3).T.to(device))
        return inputs_BT.to(device), positions_BT.to(device), visible_BTT, targets

    def _row(
        self, tree: Tree, number: int, where: list[tuple[int, int, int]]
    ) -> tuple[list[int], list[int], list[int]]:
        """Tokens, positions and branches (0 the root) of a row; also notes row, place and label of what is scored."""
        first = self.windows[tree.members[0]].ids
        longest = max(len(self.windows[member].ids) for member in tree.members)
        root = min(tree.root, longest - 1)
        ids = list(first[self.prefix : root])
        places, owners = list(range(self.prefix, root)), [0] * (root - self.prefix)
        for branch, member in enumerate(tree.members, 1):
            window = self.windows[member]
            start = len(ids)
            for place in range(len(window.ids) - window.num_scored, len(window.ids)):
                before = place - 1
                where.append(
                    (number, before - self.prefix if before < root else start + before - root, window.ids[place])
                )
            own = window.ids[root:-1]
            ids += own
            places += range(root, root + len(own))
            owners += [branch] * len(own)
        return ids, places, owners


def _batches(windows: Sequence[Window], group: Group, budget: int) -> Iterator[list[Tree]]:
    """Trees by length, the longest first, so that a batch that does not fit the memory shows at once."""

    def length(tree: Tree) -> int:
        return (
            tree.root - group.prefix + sum(max(0, len(windows[member].ids) - 1 - tree.root) for member in tree.members)
        )

    batch: list[Tree] = []
    widest = 0
    for tree in sorted(group.trees, key=length, reverse=True):
        if batch and (len(batch) + 1) * widest > budget:
            yield batch
            batch = []
        if not batch:
            widest = max(1, length(tree))
        batch.append(tree)
    if batch:
        yield batch


def score_all(scorer: Scorer, windows: Sequence[Window], label: str = "score") -> list[Score]:
    """The scores of all windows in their order, with a progress bar."""
    results: list[Score | None] = [None] * len(windows)
    with progress(label, len(windows), "windows") as advance:
        for index, score in scorer.score(windows):
            results[index] = score
            advance()
    return [score for score in results if score is not None]
