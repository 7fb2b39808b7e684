"""Labeled sequences as numbers.

Shapes: B sequences, N places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.program.ir import spelled
from lmlab.methods.transformer_programs.tasks.rasp import PAD, UNK, Example

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


def recode(data: Dataset, spec: NetworkSpec) -> Dataset:
    """The same sequences in the numbers of a network that was made elsewhere, as of an edited program.

    Raises:
        UserError: its answers are of another kind, or a token, a label or a sequence is none that it knows.
    """
    if data.pooled != spec.pool_outputs or data.autoregressive != spec.autoregressive:
        words = {True: "one answer a sequence", False: "an answer for each token"}
        sees = {True: "places see what is to their left alone", False: "places see the whole sequence"}
        raise UserError(
            f"Of the data there is {words[data.pooled]}, and {sees[data.autoregressive]}; of the program there is"
            f" {words[spec.pool_outputs]}, and {sees[spec.autoregressive]}."
        )
    known, answers = set(spec.vocabulary), {*spec.labels, PAD}

    def recoded(split: Split) -> Split:
        examples = [
            ([spelled(x, spec.lower, spec.replace_numbers) for x in words], tags) for words, tags in split.examples
        ]
        for words, tags in examples:
            strange = None if UNK in known else next((word for word in words if word not in known), None)
            if strange is not None:
                raise UserError(f"The program's vocabulary has no token {strange!r:.100}, which the data has.")
            other = next((tag for tag in tags if tag not in answers), None)
            if other is not None:
                raise UserError(f"The label {other!r:.100} of the data is no answer of the program.")
            if len(words) > spec.context:
                raise UserError(f"A sequence has {len(words)} places, but the program knows {spec.context}.")
        return encode(examples, spec.vocabulary, spec.labels, spec.context, data.pooled)

    return replace(
        data, vocabulary=spec.vocabulary, labels=spec.labels, context=spec.context, lower=spec.lower,
        replace_numbers=spec.replace_numbers, train=recoded(data.train), valid=recoded(data.valid),
        test=None if data.test is None else recoded(data.test),
    )  # fmt: skip


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
