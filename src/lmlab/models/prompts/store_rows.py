"""What a store of summary vectors notes of all its rows and of each, and how rows are written.

Shapes: R rows, N vectors of a row, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from lmlab.config import Config

RowType = Literal["fp32", "fp16", "int8"]


class StoreMeta(Config):
    """What all rows of a store have in common.

    Attributes:
        model: fingerprint of the weights that read the vectors.
        compressor: fingerprint of all that wrote them.
        tokenizer: fingerprint of the tokenizer of the texts.
        summary_length: kappa, vectors of a row.
        width: of a vector.
        dtype: how rows are stored; int8 has a scale for each vector.
        segment: tokens of a segment.
        independent: every segment was compressed by itself; without, after those before it.
        positions, budget: as in `SoftPrompt`.
        attention: the way attention was computed.
        source: what was compressed.
    """

    model: str
    compressor: str
    tokenizer: str | None = None
    summary_length: PositiveInt
    width: PositiveInt
    dtype: RowType = "fp16"
    segment: PositiveInt | None = None
    independent: bool = False
    positions: bool = True
    budget: PositiveInt | None = None
    attention: str = "auto"
    source: str | None = None

    @model_validator(mode="after")
    def _check(self) -> StoreMeta:
        if self.budget is not None and not self.positions:
            raise ValueError("budget belongs to vectors with positions.")
        return self


class StoreRow(Config):
    """What is known of a row.

    Attributes:
        id: of the text.
        segment: its number in the text.
        tokens: that it stands for.
        text: SHA-256 of the text.
        model, compressor: fingerprints of the weights that read and wrote it.
    """

    id: str
    segment: NonNegativeInt
    tokens: NonNegativeInt
    text: str
    model: str
    compressor: str


def packed(vectors_RND: Tensor, dtype: RowType) -> dict[str, Tensor]:
    """Rows as they are stored."""
    if dtype == "int8":
        scale_RN = vectors_RND.abs().amax(-1).clamp(min=1e-12) / 127
        return {"vectors": (vectors_RND / scale_RN[..., None]).round().to(torch.int8), "scales": scale_RN}
    return {"vectors": vectors_RND.to(torch.float16 if dtype == "fp16" else torch.float32).contiguous()}


def unpacked(tensors: Mapping[str, Tensor]) -> Tensor:
    """Stored rows in fp32."""
    vectors_RND = tensors["vectors"].float()
    return vectors_RND * tensors["scales"][..., None] if "scales" in tensors else vectors_RND
