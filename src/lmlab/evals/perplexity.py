"""Bits per byte: comparable between tokenizers, and with compressors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab.data import Tokenizer
from lmlab.evals.scoring import Window, log_likelihoods
from lmlab.models import Transformer


@dataclass(frozen=True)
class Measurement:
    """A figure with its standard error, None where it has none, and the number of units it rests on."""

    value: float
    standard_error: float | None
    count: int


def document_bits(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], window: int, label: str = "perplexity") -> list[float]:
    """The bits that the model needs for each text, documents apart.

    Windows of `window` tokens slide by half their length; every token is scored once, with at least half a window of context where the document
    has it.
    The begin mark is given, the end mark is not scored, so that the bits are those of the text's bytes.
    """
    windows: list[Window] = []
    owners: list[int] = []
    stride = max(1, window // 2)
    for number, ids in enumerate(tokenizer.encode_batch(texts)):
        ids = [tokenizer.bos_id, *ids]
        done = 1
        while done < len(ids):
            end = min(len(ids), window + 1) if done == 1 else min(len(ids), done + stride)
            windows.append(Window(ids[max(0, end - window - 1) : end], end - done))
            owners.append(number)
            done = end
    bits = [0.0] * len(texts)
    for owner, value in zip(owners, log_likelihoods(model, windows, label=label), strict=True):
        bits[owner] -= value / math.log(2)
    return bits


def bits_per_byte(bits: Sequence[float] | NDArray[np.float64], sizes: Sequence[int]) -> Measurement:
    """Total bits over total bytes, with the standard error of a ratio estimator over documents (Cochran 1977, section 6.4)."""
    b, n = np.asarray(bits, float), np.asarray(sizes, float)
    value = b.sum() / n.sum()
    error = math.sqrt(len(b) / (len(b) - 1) * ((b - value * n) ** 2).sum()) / n.sum() if len(b) > 1 else None
    return Measurement(float(value), error, len(b))
