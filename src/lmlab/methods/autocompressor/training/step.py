"""The step function: a row in blocks of segments, the gradient of each block as soon as it is there (Chevalier et al.
2023, section 3.2).

Shapes: B rows, T tokens of a row, M tokens of a segment, N vectors of a summary, P vectors, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lmlab.data import Batch
from lmlab.distributed import sum_over_all
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.output import SegmentLoss
from lmlab.methods.autocompressor.compressor.segmenting import (
    block_borders,
    equal_lengths,
    lengths_of,
    random_lengths,
)
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.methods.autocompressor.config import CompressorConfig, SegmentsConfig
from lmlab.models import IGNORE, ModelConfig, SegmentError
from lmlab.models.prompts.segments import check_window
from lmlab.progress import console
from lmlab.train import StepOutput

COLLAPSED = 0.99
"""Vectors of a summary whose mean pairwise cosine is above this are all the same: nothing is told by more of them."""


class CompressorStep:
    """The loss of rows that are read in segments: cross-entropy over the tokens of all segments, the first included.

    Per step it gives, beside the loss: `loss/segment_1` and so on, whose differences say what summaries are worth;
    `summary/norm`, the norm of a summary vector over that of a token's embedding; `summary/cosine`, how alike the
    vectors of one summary are.

    The gradient of a block (or, with sliding back-propagation, of a segment) is computed as soon as its loss is there,
    so that no more than a block's graph is held. Lengths and prefixes are drawn from the seed that the trainer sets for
    the step, so that they do not depend on how a batch is cut into micro-batches.

    Arguments:
        config: how rows are cut.
        nested: read and write a random prefix of each summary, one length a step.
    """

    def __init__(self, config: SegmentsConfig, *, nested: bool = False) -> None:
        self.config, self.nested = config, nested
        self._counts_LE: Tensor | None = None
        self._collapsed = False

    def __call__(self, model: AutoCompressor, batch: Batch) -> StepOutput:
        """The loss of a micro-batch, whose gradient is there already where one is wanted."""
        ids_BT, labels_BT = batch["input_ids"], batch["labels"]
        documents_BT = batch.get("document_ids")
        mask_BT = None if documents_BT is None or bool((documents_BT >= 0).all()) else documents_BT >= 0
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        prefix = self._prefix(model, generator)
        drawn = generator if model.training else None
        blocks = self._blocks(model.model.config, model.config, ids_BT.shape[1], prefix, drawn)
        parts = _Parts(ids_BT, self._labels(labels_BT, blocks), mask_BT)
        run = self._sliding if self.config.bptt == "sliding" else self._block_by_block
        losses, last = run(model, parts, blocks, prefix)
        return self._output(model, losses, last, parts, blocks)

    def after_step(self, model: AutoCompressor) -> Mapping[str, float]:
        """Tell routers of the step's loads."""
        if self._counts_LE is not None:
            model.model.end_step(sum_over_all(self._counts_LE))
            self._counts_LE = None
        return {}

    def check(self, shape: ModelConfig, compressor: CompressorConfig, length: int) -> None:
        """Refuse rows that cannot be cut so, before there is a model to learn from them. Of segments of random lengths
        none is longer than the window allows, nor then are equal ones of held-out rows.

        Arguments:
            shape: of the model that reads them.
            length: tokens of a row.

        Raises:
            SegmentError: they are too short for their segments, or the window is.
        """
        kappa = compressor.summary_length
        blocks = self._blocks(shape, compressor, length, kappa, torch.Generator())
        lengths = [each for block in blocks for each in block]
        for number, text in enumerate(lengths):
            before = compressor.positions_behind(number)
            check_window(shape, before, text, kappa if number + 1 < len(lengths) else 0)

    def _prefix(self, model: AutoCompressor, generator: torch.Generator) -> int:
        most = model.summary_length
        if not (self.nested and model.training and most):
            return most
        return int(torch.randint(1, most + 1, (), generator=generator))

    def _blocks(
        self,
        shape: ModelConfig,
        compressor: CompressorConfig,
        length: int,
        prefix: int,
        generator: torch.Generator | None,
    ) -> list[list[int]]:
        """The lengths of the segments of each block; without a generator random ones are equal."""
        config, found = self.config, list[list[int]]()
        borders = block_borders(length, config.blocks)
        for number, (start, stop) in enumerate(pairwise(borders)):
            window = shape.max_seq_len
            if shape.positions == "rotary":
                read = (number + 1) * config.segments - 1 if compressor.accumulate else 1
                window -= (compressor.position_budget or read * prefix) + prefix
            if window < 1:
                raise SegmentError(
                    f"The window of {shape.max_seq_len} has no room for text beside the summaries of"
                    f" {(number + 1) * config.segments} segments.",
                    "Lower compressor.summary_length or the number of segments.",
                )
            if config.lengths is not None:
                found.append(lengths_of(stop - start, config.lengths, window))
            elif config.random and generator is not None:
                found.append(random_lengths(stop - start, window, config.segments, generator))
            else:
                found.append(equal_lengths(stop - start, config.segments))
        return found

    def _labels(self, labels_BT: Tensor, blocks: Sequence[Sequence[int]]) -> Tensor:
        if not self.config.drop_border:
            return labels_BT
        labels_BT, end = labels_BT.clone(), 0
        for lengths in blocks[:-1]:
            end += sum(lengths)
            labels_BT[:, end - 1] = IGNORE
        return labels_BT

    def _block_by_block(
        self, model: AutoCompressor, parts: _Parts, blocks: Sequence[Sequence[int]], prefix: int
    ) -> tuple[list[SegmentLoss], SummaryVectors]:
        summary, found, start = model.nothing(parts.rows), list[SegmentLoss](), 0
        for number, lengths in enumerate(blocks):
            span = slice(start, start + sum(lengths))
            start = span.stop
            last, again = number + 1 == len(blocks), len(lengths) - 1 if self.config.checkpoint_segments else 0
            out = model(
                parts.ids_BT[:, span],
                None if parts.mask_BT is None else parts.mask_BT[:, span],
                segment_lengths=list(lengths),
                soft_prompt=summary,
                targets_BT=parts.labels_BT[:, span],
                output_summary=not last and model.summary_length > 0,
                summary_length=prefix or None,
                checkpointed=again,
            )
            self._backward(self._learned(out.segments, parts))
            found += [_detached(each) for each in out.segments]
            summary = out.summary.detach()
        return found, summary

    def _sliding(
        self, model: AutoCompressor, parts: _Parts, blocks: Sequence[Sequence[int]], prefix: int
    ) -> tuple[list[SegmentLoss], SummaryVectors]:
        """The loss of segment j reaches, through the summaries that it reads, segments j - 1 to j - depth + 1.

        Each segment reads copies of the summaries, which are leaves: what gradient arrives at a copy is passed into the
        graph of the segment that wrote the summary, as long as that is kept.
        """
        lengths, depth = [length for block in blocks for length in block], self.config.depth
        summary, found, start = model.nothing(parts.rows), list[SegmentLoss](), 0
        graphs: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        for number, length in enumerate(lengths):
            span = slice(start, start + length)
            start = span.stop
            leaves, before = _as_leaves(summary, first=number - depth + 1, graphs=graphs)
            out = model(
                parts.ids_BT[:, span],
                None if parts.mask_BT is None else parts.mask_BT[:, span],
                soft_prompt=before,
                targets_BT=parts.labels_BT[:, span],
                output_summary=number + 1 < len(lengths) and model.summary_length > 0,
                summary_length=prefix or None,
                checkpointed=int(self.config.checkpoint_segments),
            )
            loss = self._learned(out.segments, parts)
            if loss.requires_grad:
                graphs[number] = (out.summary.vectors_BPD[:, -(prefix or 1) :], leaves)
                _clear(graphs)
                self._backward(loss, keep=True)
                for earlier in range(number - 1, number - depth, -1):
                    if earlier in graphs:
                        self._pass_on(graphs, earlier, oldest=number - depth + 1)
                graphs.pop(number - depth + 1, None)
            found += [_detached(each) for each in out.segments]
            summary = out.summary.detach()
        return found, summary

    def _pass_on(self, graphs: dict[int, tuple[Tensor, dict[int, Tensor]]], segment: int, oldest: int) -> None:
        """The gradient that later segments left at their copies of a summary, into the graph that wrote it."""
        arrived = [leaves[segment].grad for _, leaves in graphs.values() if segment in leaves]
        gradient = [each for each in arrived if each is not None]
        if gradient:
            written_BND = graphs[segment][0]
            self._backward(written_BND, torch.stack(gradient).sum(0), keep=segment > oldest)

    def _learned(self, segments: Sequence[SegmentLoss], parts: _Parts) -> Tensor:
        """What is summed over tokens: cross-entropy, and the losses of routers by the tokens that they are means of, of
        all tokens of the row: their weight beside the cross-entropy does not depend on how it is cut.
        """
        loss = torch.stack([each.loss.sum for each in segments]).sum()
        count, tokens = parts.count, parts.ids_BT.shape[1]
        if self.config.sum_blocks:
            loss = loss / torch.stack([each.loss.count for each in segments]).sum().clamp(min=1)
            count, tokens = torch.ones_like(count), sum(each.tokens for each in segments)
        routers = [each for each in segments if each.router is not None]
        for each in routers:
            assert each.router is not None and each.counts_LE is not None
            loss = loss + each.router * (each.tokens / tokens) * count
            self._counts_LE = each.counts_LE if self._counts_LE is None else self._counts_LE + each.counts_LE
        return loss

    @staticmethod
    def _backward(loss: Tensor, gradient: Tensor | None = None, keep: bool = False) -> None:
        if loss.requires_grad:
            with torch.autocast(loss.device.type, enabled=False):
                torch.autograd.backward(loss, gradient, retain_graph=keep)

    def _output(
        self,
        model: AutoCompressor,
        losses: Sequence[SegmentLoss],
        last: SummaryVectors,
        parts: _Parts,
        blocks: Sequence[Sequence[int]],
    ) -> StepOutput:
        count = torch.stack([each.loss.count for each in losses]).sum()
        total = torch.stack([each.loss.sum for each in losses]).sum()
        sums = {f"loss/segment_{n}": (each.loss.sum, each.loss.count) for n, each in enumerate(losses, 1)}
        if last.length:
            sums |= self._health(model, last)
        if self.config.sum_blocks:
            sums["loss/token"] = (total, count)
            means, start = list[Tensor](), 0
            for lengths in blocks:
                own = losses[start : start + len(lengths)]
                start += len(lengths)
                means.append(
                    torch.stack([each.loss.sum for each in own]).sum()
                    / torch.stack([each.loss.count for each in own]).sum().clamp(min=1)
                )
            total, count = torch.stack(means).sum(), torch.ones_like(count)
        return StepOutput(total, count, sums, learned=torch.is_grad_enabled())

    @torch.no_grad()
    def _health(self, model: AutoCompressor, summary: SummaryVectors) -> dict[str, tuple[Tensor, Tensor]]:
        one = torch.ones((), device=summary.vectors_BPD.device)
        newest_BND = summary.vectors_BPD[:, summary.segment_of_P == summary.segment_of_P[-1]].float()
        norm = newest_BND.norm(dim=-1).mean() / embedding_norm(model)
        sums = {"summary/norm": (norm, one)}
        if newest_BND.shape[1] > 1:
            cosine = mean_cosine(newest_BND).mean()
            sums["summary/cosine"] = (cosine, one)
            collapsed = bool(cosine > COLLAPSED)
            if collapsed and not self._collapsed:
                console.print(
                    f"Warning: the vectors of a summary are all alike (mean cosine {float(cosine):.4f}).",
                    style="yellow",
                )
            self._collapsed = collapsed
        return sums


@dataclass(frozen=True)
class _Parts:
    """A micro-batch: ids and labels, and the mask of its padding, None if there is none."""

    ids_BT: Tensor
    labels_BT: Tensor
    mask_BT: Tensor | None

    @property
    def rows(self) -> int:
        return len(self.ids_BT)

    @property
    def count(self) -> Tensor:
        """Labels."""
        return (self.labels_BT != IGNORE).sum()


def mean_cosine(vectors_BND: Tensor) -> Tensor:
    """The mean cosine of all pairs of different vectors, [B]; N at least 2."""
    unit = torch.nn.functional.normalize(vectors_BND, dim=-1)
    count = unit.shape[1]
    return (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / (count * (count - 1))


def embedding_norm(model: AutoCompressor) -> Tensor:
    """The mean norm of the rows of the table of tokens, as the blocks read them."""
    table = model.model.embedding.weight.detach()
    return table.float().norm(dim=-1).mean() * model.model.config.embedding_scale


def _detached(loss: SegmentLoss) -> SegmentLoss:
    return replace(loss, loss=replace(loss.loss, sum=loss.loss.sum.detach()), router=None)


def _as_leaves(
    summary: SummaryVectors, first: int, graphs: Mapping[int, Any]
) -> tuple[dict[int, Tensor], SummaryVectors]:
    """The vectors with those of segments from `first` on as leaves that gather gradients, by segment."""
    leaves, pieces = dict[int, Tensor](), list[Tensor]()
    for segment in summary.segment_of_P.unique().tolist():
        piece = summary.vectors_BPD[:, summary.segment_of_P == segment].detach()
        if segment >= first and segment in graphs and torch.is_grad_enabled():
            piece = leaves[segment] = piece.clone().requires_grad_()
        pieces.append(piece)
    return leaves, summary if not pieces else replace(summary, vectors_BPD=torch.cat(pieces, 1))


def _clear(graphs: Mapping[int, tuple[Tensor, dict[int, Tensor]]]) -> None:
    for _, leaves in graphs.values():
        for leaf in leaves.values():
            leaf.grad = None
