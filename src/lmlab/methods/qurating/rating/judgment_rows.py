"""Judged texts as rows for the trainer: whole groups are packed into rows, in which texts do not see each other, so
that little is padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data import Tokenizer, best_fit
from lmlab.errors import UserError
from lmlab.judging import MISSING, Judgment
from lmlab.methods.qurating.rating.problems import NoConfidentPairs

_SLACK = 1e-9  # rounding must not decide at the boundary
_BINS = 10  # of confidence, each 0.1 wide


@dataclass(frozen=True)
class EncodedGroup:
    """A group as token ids with its labels.

    Attributes:
        ids: of each text.
        pairs: [P, 2], numbers of two texts, the first the lower one.
        labels: [P, C], P(the second is better), -100 where missing.
        votes: votes behind each pair's labels, in both orders; 0 where unknown.
    """

    ids: tuple[NDArray[np.int32], ...]
    pairs: NDArray[np.int64]
    labels: NDArray[np.float64]
    votes: int = 0

    @property
    def num_tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.ids))


def encode_groups(
    judgments: Sequence[Judgment],
    criteria: Sequence[str],
    tokenizer: Tokenizer,
    max_tokens: int,
    confidence: float = 0.5,
) -> tuple[list[EncodedGroup], dict[str, int]]:
    """Groups that have a label to learn from, encoded; and how many were left out, by reason.

    Arguments:
        max_tokens: longer texts are cut; no begin token is added.

    Raises:
        NoConfidentPairs: a criterion has no label that is confident enough.
        UserError: a criterion was not judged.
    """
    groups, dropped = list[EncodedGroup](), Counter[str]()
    seen: dict[str, list[float]] = {name: [] for name in criteria}
    for judgment in judgments:
        labels = pair_labels(judgment, criteria)
        for column, name in enumerate(criteria):
            seen[name] += [abs(2 * y - 1) for y in labels[:, column].tolist() if y != MISSING]
        known = labels != MISSING
        if judgment.k < 2 or not known.any():
            dropped["no label"] += 1
            continue
        if not (known & (np.abs(labels - 0.5) >= confidence / 2 - _SLACK)).any():
            dropped["no confident label"] += 1
            continue
        encoded = [np.array(ids[:max_tokens], np.int32) for ids in tokenizer.encode_batch(judgment.texts, "as_text")]
        if not all(map(len, encoded)):
            dropped["an empty text"] += 1
            continue
        groups.append(
            EncodedGroup(tuple(encoded), np.stack(np.triu_indices(judgment.k, 1), 1), labels, _votes(judgment))
        )
    for name, sizes in seen.items():
        if not any(size >= confidence - _SLACK for size in sizes):
            raise _none_confident(name, sizes, confidence)
    return groups, dict(dropped)


def pair_labels(judgment: Judgment, criteria: Sequence[str]) -> NDArray[np.float64]:
    """P(the second is better) for each pair of texts and each criterion, [P, C].

    Raises:
        UserError: a criterion was not judged.
    """
    upper = np.triu_indices(judgment.k, 1)
    for name in criteria:
        if name not in judgment.average:
            raise UserError(f"A judgment lacks the criterion '{name}'.", f"It has: {', '.join(judgment.average)}.")
    return np.stack([judgment.average[name][upper] for name in criteria], 1)


def _votes(judgment: Judgment) -> int:
    for a, b in judgment.votes.values():
        valid = (a + b)[np.triu_indices(judgment.k, 1)]
        if len(valid) and valid.max() > 1.5:  # votes, not probabilities
            return round(2 * float(valid.max()))
    return 0


def _none_confident(name: str, sizes: Sequence[float], confidence: float) -> NoConfidentPairs:
    counts = np.histogram(sizes, _BINS, (0, 1))[0]
    bars = ", ".join(f"{number / _BINS:.1f}: {count}" for number, count in enumerate(counts))
    return NoConfidentPairs(
        f"No judgment by '{name}' has |2y - 1| >= {confidence:g}; of {len(sizes)} labels there are, by |2y - 1| from:"
        f" {bars}.",
        "Judge more pairs or more different texts, ask more votes, or lower the confidence.",
    )


class JudgmentRows:
    """Rows by number. A row is `input_ids` and `document_ids` [T] (-1 for padding), `ends` [M] (the last place of each
    text), `pairs` [P, 2] (numbers of texts in the row) and `labels` [P, C] (-100 where there is nothing to learn).

    Arguments:
        row_tokens: T; by default twice the longest group, at least.

    Raises:
        UserError: there are no groups.
    """

    def __init__(self, groups: Sequence[EncodedGroup], row_tokens: int = 0) -> None:
        if not groups:
            raise UserError("There are no judgments to learn from.", "Judge more pairs.")
        self.groups = groups
        lengths = np.array([group.num_tokens for group in groups])
        self.row_tokens = max(row_tokens, int(lengths.max()))
        rows = best_fit(lengths, self.row_tokens)
        self._members: list[list[int]] = [[] for _ in range(int(rows.max()) + 1)]
        for number, row in enumerate(rows.tolist()):
            self._members[row].append(number)
        self._texts = max(sum(len(groups[number].ids) for number in members) for members in self._members)
        self._pairs = max(sum(len(groups[number].pairs) for number in members) for members in self._members)
        self.num_pairs = sum(len(group.pairs) for group in groups)
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self._members)

    @property
    def padding_fraction(self) -> float:
        """Share of places without a token."""
        return 1 - self.num_tokens / (len(self) * self.row_tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "input_ids": np.zeros(self.row_tokens, np.int64),
            "document_ids": np.full(self.row_tokens, -1, np.int64),
            "ends": np.zeros(self._texts, np.int64),
            "pairs": np.zeros((self._pairs, 2), np.int64),
            "labels": np.full((self._pairs, self.groups[0].labels.shape[1]), MISSING, np.float32),
        }
        place = text = pair = 0
        for number in self._members[index]:
            group = self.groups[number]
            count = len(group.pairs)
            row["pairs"][pair : pair + count], row["labels"][pair : pair + count] = group.pairs + text, group.labels
            pair += count
            for ids in group.ids:
                row["input_ids"][place : place + len(ids)] = ids
                row["document_ids"][place : place + len(ids)] = text
                place += len(ids)
                row["ends"][text] = place - 1
                text += 1
        return row
