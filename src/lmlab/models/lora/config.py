"""The settings of low-rank adapters."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lmlab.config import Config
from lmlab.models.config import ModelConfig


class LoRAConfig(Config):
    """Which layers get adapters, and of what kind."""

    rank: PositiveInt = Field(default=16, description="r, the width of the thin matrices")
    alpha: PositiveFloat = Field(default=32.0, description="the adapters' output is scaled by alpha / r")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="probability of dropping an input of an adapter while training"
    )
    targets: tuple[str, ...] | None = Field(
        default=None,
        description=(
            "ends of the names of what gets adapters: linear layers of the blocks (query, ffn.down,"
            " blocks.3.attention.output), experts (experts, or experts.gate_up and experts.down alone), and embedding;"
            " by default every projection of the attention and of the dense feed-forward networks"
        ),
    )
    layers: tuple[NonNegativeInt, ...] | None = Field(
        default=None, description="numbers of the blocks that get adapters, by default all"
    )
    rank_stabilized: bool = Field(
        default=False, description="scale by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023)"
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="hold the frozen linear layers of the blocks in 4 or 8 bits a number (QLoRA, Dettmers et al. 2023),"
        " by bitsandbytes; experts, embeddings and head stay whole",
    )
    train_fully: tuple[str, ...] = Field(
        default=(),
        description="ends of the names of modules that are trained themselves and saved with the adapters, as score",
    )

    @property
    def adapts_embedding(self) -> bool:
        """Whether the embedding gets an adapter: where it is the output matrix too, folding in gives the output one of
        its own.
        """
        return self.targets is not None and "embedding" in self.targets

    def folded(self, model: ModelConfig) -> ModelConfig:
        """The shape of a model after its adapters were folded in."""
        unties = self.adapts_embedding and model.tie_embeddings and model.num_labels is None
        return model.model_copy(update={"tie_embeddings": False}) if unties else model

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
