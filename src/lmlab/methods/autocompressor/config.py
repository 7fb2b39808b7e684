"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from lmlab.config import Config

SummaryInit = Literal["eos", "noise", "mean", "vocab"]
RopePositions = Literal["contiguous", "text_only"]


class CompressorConfig(Config):
    """What belongs to a compressor beside the weights of its model.

    Attributes:
        summary_length: kappa, the summary vectors of a segment; 0 compresses nothing.
        accumulate: a segment reads the vectors of all earlier ones (AutoCompressor); without, those of the last alone
            (RMT, Bulatov et al. 2022).
        rope_positions: of models with rotary positions: contiguous counts summary vectors, text and summary tokens in
            order; text_only keeps position_budget positions for summary vectors, however many there are, so that text
            always begins at the same one.
        position_budget: positions that text_only keeps.
        nested: trained with random prefixes of each summary, so that fewer vectors may be asked for than
            summary_length.
        trained_segments: most segments of a text in training; None if that is not known.
        summary_init: what the summary tokens began as.
    """

    summary_length: NonNegativeInt = 50
    accumulate: bool = True
    rope_positions: RopePositions = "contiguous"
    position_budget: PositiveInt | None = None
    nested: bool = False
    trained_segments: PositiveInt | None = None
    summary_init: str | None = None

    @model_validator(mode="after")
    def _check(self) -> CompressorConfig:
        if self.rope_positions == "text_only" and self.position_budget is None:
            raise ValueError("rope_positions text_only needs position_budget.")
        if self.rope_positions == "contiguous" and self.position_budget is not None:
            raise ValueError("position_budget belongs to rope_positions text_only.")
        return self


class SegmentsConfig(Config):
    """How a row of a training is cut, and how far gradients go back.

    Attributes:
        blocks: equal parts of a row, s; gradients do not cross their borders (training_substeps).
        segments: segments of each block, k (segments_per_substep).
        random: draw the lengths of segments while training, as section 3.2 of the paper; without, all are equal.
        lengths: those of the segments of each block, in place of equal or random ones.
        bptt: block cuts gradients at the borders of blocks; sliding lets each segment's loss reach the summaries of the
            last `depth` - 1 segments, wherever they stand.
        depth: segments that a gradient passes through with bptt sliding, its own included.
        checkpoint_segments: keep nothing of a segment but its input for the backward pass, but for the last of a block.
        sum_blocks: add up the means of blocks, as the reference does, in place of the mean over all tokens.
        drop_border: do not learn the first token after a block, as the reference does.
    """

    blocks: PositiveInt = 2
    segments: PositiveInt = 2
    random: bool = True
    lengths: tuple[PositiveInt, ...] | None = None
    bptt: Literal["block", "sliding"] = "block"
    depth: PositiveInt = 2
    checkpoint_segments: bool = False
    sum_blocks: bool = False
    drop_border: bool = False

    @property
    def total(self) -> int:
        """Segments of a row."""
        return self.blocks * self.segments

    @model_validator(mode="after")
    def _check(self) -> SegmentsConfig:
        if self.lengths is not None and len(self.lengths) != self.segments:
            raise ValueError(f"lengths has {len(self.lengths)} entries for {self.segments} segments.")
        if self.bptt == "sliding" and (self.sum_blocks or self.drop_border):
            raise ValueError("sum_blocks and drop_border belong to bptt block.")
        return self


def check_trains(compressor: CompressorConfig, segments: SegmentsConfig) -> None:
    """Refuse a training in which nothing would reach the summary tokens.

    Raises:
        ValueError: no summary is read where its gradient is kept.
    """
    if compressor.summary_length == 0:
        return
    if segments.bptt == "block" and segments.segments < 2:
        raise ValueError(
            "segments.segments 1: with bptt block a summary is read in the segment after it alone, so that summary"
            " tokens would get no gradient; give at least 2, or bptt sliding."
        )
    if segments.bptt == "sliding" and (segments.depth < 2 or segments.total < 2):
        raise ValueError("bptt sliding needs a depth and segments of at least 2, or summary tokens get no gradient.")


class EncodeConfig(Config):
    """How documents become rows of a store.

    Attributes:
        segment: tokens of a segment; by default as many as the window allows.
        independent: compress every segment by itself, as passages that are retrieved one by one.
        dtype: how vectors are stored; int8 has a scale for each vector.
        block: documents of a part of the store, what a killed encoding loses at most.
        batch: segments that are read together.
        workers: processes.
        backend: processes here, or ray.
        gpus: GPUs of each worker, on Ray.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    segment: PositiveInt | None = None
    independent: bool = False
    dtype: Literal["fp32", "fp16", "int8"] = "fp16"
    block: PositiveInt = 64
    batch: PositiveInt = 16
    workers: PositiveInt = 1
    backend: Literal["processes", "ray"] = "processes"
    gpus: NonNegativeFloat = 0
    device: str = "auto"
