"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from lmlab.config import Config, Flag, names_in
from lmlab.hardware.settings import OnDevice
from lmlab.runs import ModelInput
from lmlab.words import counted

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
        vector_scale: by what final hidden states are multiplied to become vectors. The paper's method has 1: where a
            model's final states are much longer than its embeddings (SmolLM2: 15 times), vectors then begin as inputs
            unlike any that it knows. `embedding`, for a fresh compressor, stands for the factor that makes them as
            long as its embeddings; what is saved is the number.
    """

    summary_length: NonNegativeInt = 50
    accumulate: Annotated[bool, Flag(("--accumulate/--replace",))] = True
    rope_positions: RopePositions = "contiguous"
    position_budget: PositiveInt | None = None
    nested: bool = False
    trained_segments: PositiveInt | None = None
    summary_init: str | None = None
    vector_scale: PositiveFloat | Literal["embedding"] = 1.0

    @model_validator(mode="after")
    def _check(self) -> CompressorConfig:
        if self.rope_positions == "text_only" and self.position_budget is None:
            raise ValueError("rope_positions text_only needs position_budget.")
        if self.rope_positions == "contiguous" and self.position_budget is not None:
            raise ValueError("position_budget belongs to rope_positions text_only.")
        return self

    def positions_behind(self, segments: int) -> int:
        """Positions that vectors take before the text of a segment that stands behind so many others, of a model whose
        vectors have positions.
        """
        read = segments if self.accumulate else min(segments, 1)
        return self.position_budget if self.position_budget and read else read * self.summary_length


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
            raise ValueError(f"lengths has {counted(len(self.lengths), 'entries')} for {self.segments} segments.")
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


class EncodeConfig(OnDevice):
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
    """

    segment: PositiveInt | None = None
    independent: bool = False
    dtype: Literal["fp32", "fp16", "int8"] = "fp16"
    block: PositiveInt = 64
    batch: PositiveInt = 16
    workers: PositiveInt = 1
    backend: Literal["processes", "ray"] = "processes"
    gpus: NonNegativeFloat = 0


class PplConfig(OnDevice):
    """Perplexity of a text after compressed context.

    Attributes:
        context: tokens before the text that are compressed; several give several points.
        target: tokens of the text that is predicted.
        segment: tokens of a compressed segment.
        baseline: lines beside summaries: shuffled (another document's vectors), truncate (as many plain tokens as there
            are vectors), full (all plain, where the window holds them), rmt, base.
        texts: most documents.
    """

    context: tuple[NonNegativeInt, ...] = (0, 512, 1024)
    target: PositiveInt = 512
    segment: PositiveInt = 512
    baseline: tuple[Literal["shuffled", "truncate", "full", "rmt", "base"], ...] = ("shuffled", "truncate", "full")
    texts: PositiveInt = 100

    @field_validator("baseline", mode="before")
    @classmethod
    def _baseline(cls, value: Any) -> Any:
        return names_in(value)

    @model_validator(mode="after")
    def _check(self) -> PplConfig:
        if not self.context or max(self.context) == 0:
            raise ValueError("context needs at least one number above 0.")
        return self


class OtherLines(Config):
    """Models whose perplexity is measured beside that of a compressor.

    Attributes:
        rmt: a compressor that replaces vectors, for the line rmt.
        base: a plain model, for the line base: it reads what its window holds.
    """

    rmt: ModelInput | None = None
    base: ModelInput | None = None


class IclConfig(OnDevice):
    """Accuracy with demonstrations in the context.

    Attributes:
        soft: demonstrations of each segment that is compressed, as 30,30,30.
        soft_tokens: in place of their numbers, tokens of each segment, filled with whole demonstrations, as 750,750.
        plain: demonstrations that are read as they are, behind the vectors.
        plain_tokens: in place of their number, as many as fit so many tokens.
        seeds: draws of demonstrations.
        calibrate: subtract the loss of the same answer to an emptied item; by default as the paper does for the task.
        balance: as many demonstrations of each label; by default as the paper does for the task.
        limit: most tests.
        parity: of multirc, the reference's template, which puts the answer's word in the candidate's place too.
    """

    soft: tuple[PositiveInt, ...] = ()
    soft_tokens: tuple[PositiveInt, ...] = ()
    plain: NonNegativeInt = 0
    plain_tokens: PositiveInt | None = None
    seeds: PositiveInt = 7
    calibrate: bool | None = None
    balance: bool | None = None
    limit: PositiveInt | None = None
    parity: bool = False

    @model_validator(mode="after")
    def _check(self) -> IclConfig:
        if self.soft and self.soft_tokens:
            raise ValueError("give either soft or soft_tokens.")
        if self.plain and self.plain_tokens:
            raise ValueError("give either plain or plain_tokens.")
        return self


class RagConfig(OnDevice):
    """Summaries of retrieved passages before a text.

    Attributes:
        k: numbers of passages.
        context: tokens before the continuation, by which passages are found.
        continuation: tokens that are predicted.
        lines: replug and soft_replug weigh one pass a passage; fused reads all summaries at once, by their distance;
            fused_as_retrieved by rank; fused_random reads others; fused_passages plain text.
        retriever: bm25, or an encoder, such as minilm or a directory.
        texts: most texts.
        seed: of random passages.
    """

    k: tuple[PositiveInt, ...] = (1, 3, 5, 10)
    context: PositiveInt = 128
    continuation: PositiveInt = 128
    lines: tuple[
        Literal["replug", "soft_replug", "fused", "fused_as_retrieved", "fused_random", "fused_passages"], ...
    ] = ("replug", "soft_replug", "fused", "fused_as_retrieved", "fused_random", "fused_passages")
    retriever: str = "bm25"
    texts: PositiveInt = 200
    seed: NonNegativeInt = 0

    @field_validator("lines", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return names_in(value)


class RerankConfig(OnDevice):
    """Passages in a new order, by how probable a question is after their summaries.

    Attributes:
        split: of the collection.
        candidates: passages of the first stage that are ranked anew.
        k: recall is counted among so many first ones.
        plain: rank by the passages' text too.
        questions: most questions.
    """

    split: str = "test"
    candidates: PositiveInt = 100
    k: PositiveInt = 20
    plain: bool = False
    questions: PositiveInt | None = None
