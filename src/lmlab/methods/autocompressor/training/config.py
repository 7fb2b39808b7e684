"""Settings of the stages `compress_train` and `compress_ppl`."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.methods.autocompressor.config import (
    CompressorConfig,
    OtherLines,
    PplConfig,
    SegmentsConfig,
    SummaryInit,
    check_trains,
)
from lmlab.runs import DocumentsInput, ModelInput, TokensInput
from lmlab.stages.parts.adapters import Adapters, check_adapters
from lmlab.train import TrainerConfig


class CompressTrainConfig(Config):
    """A model that learns to compress.

    Attributes:
        tokens: tokenized training text.
        heldout_tokens: tokenized held-out text, whose loss by segment is logged.
        heldout_rows: rows of it, spread over the whole.
        start: the model: a directory, a stage or a run; one that compresses already is trained further.
        seq_len: tokens of a row, T.
        packing: how documents become rows: single has one document, or piece of one, in a row.
        compressor: what the compressor is.
        segments: how rows are cut, and how far gradients go back.
        summary_init: what the summary tokens begin as: the embedding of the end mark (eos), normal noise of 0.02, the
            mean of all embeddings, or embeddings of tokens that are drawn (vocab).
        init_noise: standard deviation of what is added to eos and mean, so that the tokens differ.
        lora: train low-rank adapters in place of all weights; the summary tokens are trained either way.
        trainer: the loop.
    """

    tokens: TokensInput
    heldout_tokens: TokensInput | None = None
    heldout_rows: PositiveInt = 32
    start: ModelInput
    seq_len: PositiveInt
    packing: Literal["single", "concat", "best_fit"] = "single"
    compressor: CompressorConfig = CompressorConfig()
    segments: SegmentsConfig = SegmentsConfig()
    summary_init: SummaryInit = "eos"
    init_noise: NonNegativeFloat = 0.02
    lora: Adapters | None = None
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> CompressTrainConfig:
        check_adapters(self.lora, self.start)
        check_trains(self.compressor, self.segments)
        return self


class CompressPplConfig(PplConfig, OtherLines):
    """A measurement of a compressor on documents.

    Attributes:
        compressor: what is measured.
        documents: the texts.
        split: of them, where a stage collected them: heldout or train.
    """

    compressor: ModelInput
    documents: DocumentsInput
    split: Literal["heldout", "train"] = "heldout"
