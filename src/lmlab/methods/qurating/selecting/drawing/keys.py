"""Keyed noise: a row's Gumbel variable depends on its id and the seed alone, so that selections do not depend on order,
shards or workers.

Ids are hashed to 64 bits, mixed with the seed by splitmix64 (Steele et al. 2014), and the 53 highest bits make a number
between 0 and 1, never either.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError

U64 = NDArray[np.uint64]
Floats = NDArray[np.float64]
_MASK = 2**64 - 1  # of 64 bits


def mix(x: U64) -> U64:
    """Splitmix64 of each element."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)  # constants of Steele, Lea and Flood 2014
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_ids(ids: Any) -> U64:
    """The 64 bits of each id: a non-negative integer itself; of a text the first 8 bytes, little-endian, of BLAKE2b
    (digest of 8) of its UTF-8.

    Raises:
        UserError: an id is negative, missing, or neither an integer nor text.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        if ids.dtype.kind == "i" and len(ids) and ids.min() < 0:
            raise UserError(f"The row id {int(ids.min())} is negative.", "Ids are non-negative integers or texts.")
        return ids.astype(np.uint64)
    values = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return np.fromiter((_hash(value) for value in values), np.uint64, len(values))


def _hash(value: Any) -> int:
    if isinstance(value, str):
        return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little")
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) <= _MASK:
        return int(value)
    raise UserError(
        f"The row id {value!r} is neither a non-negative integer nor text.", "Name another column of ids, or none."
    )


def uniforms(id64: U64, seed: int) -> Floats:
    """A number strictly between 0 and 1 for each hashed id."""
    seeded = mix(np.array([seed & _MASK], np.uint64))
    return ((mix(mix(id64) ^ seeded) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbels(id64: U64, seed: int) -> Floats:
    """A standard Gumbel variable for each hashed id: -log(-log u)."""
    return -np.log(-np.log(uniforms(id64, seed)))


def keyed_uniform(ids: Sequence[int | str] | ArrayLike, seed: int) -> Floats:
    """`uniforms` of ids as they are."""
    return uniforms(hash_ids(ids), seed)


def keyed_gumbel(ids: Sequence[int | str] | ArrayLike, seed: int) -> Floats:
    """`gumbels` of ids as they are: the noise that Gumbel top-k adds to logits."""
    return gumbels(hash_ids(ids), seed)
