"""Labeled sequences as numbers.

Shapes: B sequences, N places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmlab.methods.transformer_programs.tasks.rasp import PAD, Example

IGNORED, UNSEEN = -1, -2
"""Labels of places where nothing is predicted, and of answers that training has never seen, which count as wrong."""


@dataclass(frozen=True)
class Split:
    """Sequences of one split.

    Attributes:
        tokens: (B, N), padded with 0.
        labels: (B, N), or (B,) where there is one label a sequence.
        examples: as texts.
        unseen: how often each label occurs that training has never seen.
    """

    tokens: Tensor
    labels: Tensor
    examples: tuple[Example, ...]
    unseen: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, count: int) -> Split:
        """The first so many sequences."""
        return Split(self.tokens[:count], self.labels[:count], self.examples[:count])


@dataclass(frozen=True)
class Dataset:
    """The splits of one problem.

    Attributes:
        vocabulary, labels: in the order of their numbers.
        pooled: one label a sequence.
        lower, replace_numbers: how the tokens of files were spelled.
    """

    vocabulary: tuple[str, ...]
    labels: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    context: int
    autoregressive: bool = False
    pooled: bool = False
    lower: bool = False
    replace_numbers: bool = False


def encode(
    examples: Sequence[Example], vocabulary: Sequence[str], labels: Sequence[str], context: int, pooled: bool
) -> Split:
    """Numbers of sequences and labels; unknown tokens are `<unk>`."""
    word, label = ({each: number for number, each in enumerate(names)} for names in (vocabulary, labels))
    unknown = word.get("<unk>", 0)
    tokens = torch.zeros(len(examples), context, dtype=torch.int64)
    answers = torch.full((len(examples), context), IGNORED, dtype=torch.int64)
    unseen: Counter[str] = Counter()
    for row, (words, tags) in enumerate(examples):
        tokens[row, : len(words)] = torch.tensor([word.get(each, unknown) for each in words])
        for place, tag in enumerate(tags):
            if tag == PAD:
                continue
            answers[row, place] = label.get(tag, UNSEEN)
            unseen[tag] += tag not in label
    if pooled:
        answers = answers.amax(1) if not unseen else torch.where((answers == UNSEEN).any(1), UNSEEN, answers.amax(1))
    return Split(tokens, answers, tuple(examples), {name: count for name, count in unseen.items() if count})


def accuracy(chosen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Token and sequence accuracy of answers (..., B, N) or (..., B).

    Returns:
        both of the leading shape.
    """
    scored = labels != IGNORED
    right = (chosen == labels) & scored
    if labels.dim() == 1:
        share = right.sum(-1) / scored.sum().clamp(min=1)
        return share, share
    tokens = right.sum((-1, -2)) / scored.sum().clamp(min=1)
    sequences = (right | ~scored).all(-1).double().mean(-1)
    return tokens, sequences
