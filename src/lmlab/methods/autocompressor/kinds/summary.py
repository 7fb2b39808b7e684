"""Summary vectors (Chevalier et al. 2023) and their replacement (RMT, Bulatov et al. 2022) as kinds of compression, by
the method's own code.

Shapes: B texts, T tokens of a text, N summary vectors of a segment, D model width.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.kinds.base import register, slots_for
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.trained import Trained, VectorsConfig
from lmlab.models import Memory, Piece, Transformer


class SummaryConfig(VectorsConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        segment: tokens of a segment, each of which is summarized behind the summaries before it.
    """

    segment: PositiveInt = 512


@register("summary")
class Summary(Trained):
    """Causal summary tokens; the vectors of all segments accumulate."""

    accumulates: ClassVar[bool] = True
    Config = SummaryConfig

    def __init__(
        self,
        model: Transformer,
        config: KindConfig,
        tokenizer: Tokenizer | None = None,
        *,
        trained: AutoCompressor | None = None,
    ) -> None:
        super().__init__(model, config, tokenizer)
        assert isinstance(config, SummaryConfig)
        if trained is None:
            kappa = slots_for(config.segment, config.ratio)
            trained = AutoCompressor.from_base(
                model,
                kappa,
                self.accumulates,
                "mean",
                noise=config.init_std,
                seed=config.seed,
                vector_scale=config.vector_scale,
            )
        if trained.config.position_budget is not None:
            raise UserError("A compressor with rope_positions text_only gives no memory: its vectors have a budget.")
        self.change(vector_scale=trained.config.vector_scale)
        self._compressor = [trained]  # in a list: its model is this one, and stands in the state once
        self.table_ND = trained.summary_embedding_ND

    @classmethod
    def of(cls, trained: AutoCompressor, segment: int) -> Summary:
        """A compressor that the method has trained, for segments of so many tokens."""
        kappa = max(1, trained.summary_length)
        kind = Summary if trained.config.accumulate else RMT
        config = SummaryConfig(ratio=max(1.0, segment / kappa), segment=segment)
        return kind(trained.model, config, trained=trained)

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        assert isinstance(self.config, SummaryConfig)
        compressor = self._compressor[0]
        wanted, kappa = slots_for(self.config.segment, ratio), compressor.summary_length
        if wanted != kappa and not (compressor.config.nested and wanted < kappa):
            raise UserError(
                f"A ratio of {ratio:g} asks for {wanted} vectors of a segment of {self.config.segment} tokens; the"
                f" compressor writes {kappa}, and was not trained to write fewer.",
                f"Ask for a ratio of {self.config.segment / kappa:g}, or train with nested vectors.",
            )
        found = compressor(
            ids_BT,
            segment_lengths=min(self.config.segment, ids_BT.shape[1]),
            output_summary=True,
            summary_length=None if wanted == kappa else wanted,
            logits=False,
        ).summary
        return Memory(pieces=(Piece(found.vectors_BPD, found.valid_BP),), positions=found.positions)


@register("rmt")
class RMT(Summary):
    """Summary tokens whose vectors replace those of the segment before."""

    accumulates = False
