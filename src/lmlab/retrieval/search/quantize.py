"""Vectors as small codes, bit for bit those of sentence-transformers: int8 by ranges that are measured once, one bit a
dimension by its sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError

Codes = NDArray[np.int8] | NDArray[np.uint8]
Precision = Literal["int8", "uint8", "binary", "ubinary"]
_LEVELS = 255  # steps between the ends of a range, in 8 bits


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each dimension, [2, H], by which codes are made. Values outside are clipped."""

    bounds: NDArray[np.float32]

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Ranges:
        """The ranges of a sample.

        Raises:
            UserError: it has fewer than two vectors.
        """
        if len(vectors) < 2:
            raise UserError(f"Ranges cannot be told from {len(vectors)} vectors.", "Give at least two, or a sample.")
        return cls(np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32))

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """The middle of each code's step."""
        steps = self._steps
        levels = codes.astype(np.float32) + (128 if codes.dtype == np.int8 else 0)
        return (self.bounds[0] + (levels + 0.5) * steps).astype(np.float32)

    @property
    def _steps(self) -> NDArray[np.float32]:
        steps = (self.bounds[1] - self.bounds[0]) / _LEVELS
        return np.where(steps == 0, 1, steps).astype(np.float32)


def quantize(vectors: NDArray[np.float32], precision: Precision, ranges: Ranges | None = None) -> Codes:
    """Codes of vectors, [N, H] or, of one bit a dimension, [N, H / 8].

    Arguments:
        ranges: of int8 and uint8, by default those of the vectors themselves.
    """
    if precision in ("binary", "ubinary"):
        bits: NDArray[np.uint8] = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    ranges = ranges or Ranges.of(vectors)
    levels = np.clip(np.floor((vectors - ranges.bounds[0]) / ranges._steps), 0, _LEVELS)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
