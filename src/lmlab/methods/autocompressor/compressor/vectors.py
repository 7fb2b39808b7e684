"""Summary vectors: what stands for a text that has been read.

Shapes: B batch, P vectors, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmlab.models import SoftPrompt


@dataclass(frozen=True, eq=False)
class SummaryVectors:
    """Vectors that stand for texts, one row a text.

    Attributes:
        vectors_BPD: they themselves.
        segment_of_P: the number of the segment, counted from 0, that each stands for.
        tokens_B: how many tokens were read.
        valid_BP: False for the vectors of segments that were padding; None if all are real.
        positions: they take positions of their own (rotary models).
        budget: positions that are kept for them, as in `SoftPrompt`.
    """

    vectors_BPD: Tensor
    segment_of_P: Tensor
    tokens_B: Tensor
    valid_BP: Tensor | None = None
    positions: bool = True
    budget: int | None = None

    def __len__(self) -> int:
        return len(self.vectors_BPD)

    @property
    def length(self) -> int:
        """P."""
        return self.vectors_BPD.shape[1]

    @property
    def soft_prompt(self) -> SoftPrompt:
        """As the model takes them before a text."""
        return SoftPrompt(self.vectors_BPD, self.positions, self.valid_BP, self.budget)

    @property
    def segments(self) -> int:
        """Segments that they stand for."""
        return int(self.segment_of_P[-1]) + 1 if self.length else 0

    def detach(self) -> SummaryVectors:
        """The same without a graph."""
        return replace(self, vectors_BPD=self.vectors_BPD.detach())

    def row(self, number: int) -> SummaryVectors:
        """One row, without vectors that are none."""
        rows = slice(number, number + 1)
        kept = slice(None) if self.valid_BP is None else self.valid_BP[number]
        return replace(
            self,
            vectors_BPD=self.vectors_BPD[rows][:, kept],
            segment_of_P=self.segment_of_P[kept],
            tokens_B=self.tokens_B[rows],
            valid_BP=None,
        )

    def after(self, summary_BND: Tensor, real_B: Tensor | None, tokens_B: Tensor, accumulate: bool) -> SummaryVectors:
        """With the summary of a further segment behind these, or in their place.

        Arguments:
            real_B: False for rows whose segment was padding, which keep what they have; None if there are none.
            tokens_B: tokens of the segment.
        """
        rows, count = summary_BND.shape[:2]
        valid_BN = None if real_B is None else real_B[:, None].expand(-1, count)
        number = torch.full((count,), self.segments, device=summary_BND.device)
        read_B = self.tokens_B + tokens_B
        if not self.length:
            return replace(
                self, vectors_BPD=summary_BND, segment_of_P=number, tokens_B=read_B, valid_BP=_or_none(valid_BN)
            )
        held_BPD = self.vectors_BPD.to(summary_BND.dtype).expand(rows, -1, -1)
        if accumulate:
            valid_BP = None
            if valid_BN is not None or self.valid_BP is not None:
                every = torch.ones(rows, count, dtype=torch.bool, device=summary_BND.device)
                held = self.valid_BP if self.valid_BP is not None else every.new_ones(rows, self.length)
                valid_BP = torch.cat((held.expand(rows, -1), every if valid_BN is None else valid_BN), 1)
            return replace(
                self,
                vectors_BPD=torch.cat((held_BPD, summary_BND), 1),
                segment_of_P=torch.cat((self.segment_of_P, number)),
                tokens_B=read_B,
                valid_BP=_or_none(valid_BP),
            )
        if valid_BN is None or bool(valid_BN.all()):
            return replace(self, vectors_BPD=summary_BND, segment_of_P=number, tokens_B=read_B, valid_BP=None)
        if self.length != count:
            raise ValueError(f"rows keep {self.length} vectors where others get {count}")
        kept = torch.where(valid_BN[..., None], summary_BND, held_BPD)
        valid_BP = None if self.valid_BP is None else self.valid_BP | valid_BN
        return replace(self, vectors_BPD=kept, segment_of_P=number, tokens_B=read_B, valid_BP=_or_none(valid_BP))


def _or_none(valid_BP: Tensor | None) -> Tensor | None:
    return None if valid_BP is None or bool(valid_BP.all()) else valid_BP
