"""A compressor by its place, run on one text."""

from __future__ import annotations

from pathlib import Path

import torch

from lmlab.errors import UserError
from lmlab.methods.autocompressor.compressor.files import CompressorPlace
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors


def compressed(
    place: str | Path, text: str, segment: int | None = None, vectors: int | None = None
) -> tuple[AutoCompressor, SummaryVectors, int]:
    """The compressor at a place, what it makes of a text, and the text's tokens.

    Arguments:
        segment: tokens of a segment, by default the compressor's.
        vectors: of a segment, of a nested compressor.

    Raises:
        UserError: there is no compressor, or the text has no tokens.
    """
    model = AutoCompressor.load(place)
    ids = CompressorPlace.find(place).tokenizer().encode_prompt(text, "as_text") if text.strip() else []
    if not ids:
        raise UserError("The text has no tokens.", "Give one with some.")
    found = model.compress(torch.tensor([ids]), segment_lengths=segment, summary_length=vectors)
    return model, found, len(ids)
