"""How texts are cut into segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from lmlab.models import ModelConfig, SegmentError


def lengths_of(total: int, segment_lengths: int | Sequence[int] | None, limit: int) -> list[int]:
    """The lengths of the segments of a text.

    Arguments:
        total: its tokens.
        segment_lengths: all of them; or one for all, with the rest in the last; or None for as long ones as the window
            allows, which is `limit`.

    Raises:
        SegmentError: they do not add up to the text, one is empty, or the text is.
    """
    if total < 1:
        raise SegmentError("The text is empty: there is nothing to compress.")
    if segment_lengths is None:
        segment_lengths = limit
    given = [segment_lengths] if isinstance(segment_lengths, (int, float)) else list(segment_lengths)
    if not all(isinstance(each, str) or math.isfinite(each) for each in given) or any(int(n) != n for n in given):
        raise SegmentError(f"Segments have whole numbers of tokens, not {', '.join(map(str, given))}.")
    if isinstance(segment_lengths, (int, float)):
        segment_lengths = int(segment_lengths)
        if segment_lengths < 1:
            raise SegmentError(f"A segment of {segment_lengths} tokens is empty.", "Give at least 1.")
        full, rest = divmod(total, segment_lengths)
        return [segment_lengths] * full + [rest] * (rest > 0)
    lengths = [int(length) for length in given]
    if any(length < 1 for length in lengths):
        raise SegmentError(f"Segment {1 + min(i for i, n in enumerate(lengths) if n < 1)} of {lengths} is empty.")
    if sum(lengths) != total:
        raise SegmentError(f"The segments {lengths} have {sum(lengths)} tokens together, and the text {total}.")
    return lengths


def longest_segment(
    config: ModelConfig, summary_length: int, total: int, before: int, budget: int | None, accumulate: bool = True
) -> int:
    """The longest segments that the model's window allows for a text: with rotary positions it must hold the vectors
    before the last segment, the segment, and its summary tokens.

    Arguments:
        total: tokens of the text.
        before: vectors that stand before it already.
        budget: positions for vectors, however many there are; None for as many as there are.
        accumulate: vectors stay; without, those of one segment at most stand before a later one.

    Raises:
        SegmentError: the window cannot hold so many vectors.
    """
    window, kappa = config.max_seq_len, summary_length
    if config.positions != "rotary":
        return window
    if budget is not None:
        most = window - budget - kappa
        if most < 1:
            raise SegmentError(f"A window of {window} has no room beside {budget} positions for vectors.")
        return most
    if not accumulate:
        held = before if total <= window - before - kappa else max(before, kappa)
        if (most := window - held - kappa) < 1:
            raise SegmentError(f"A window of {window} has no room beside {held} vectors and {kappa} summary tokens.")
        return most
    count = 1
    while (most := window - before - kappa * count) > 0:
        if most * count >= total:
            return most
        count += 1
    raise SegmentError(
        f"A text of {total} tokens cannot be compressed to {kappa} vectors a segment within the window of {window}.",
        "Compress a shorter text, or use a model that replaces vectors (accumulate: false).",
    )


def shortest(length: int, window: int, segments: int) -> int:
    """m_min, the fewest tokens of a segment such that none of `segments` exceeds the window."""
    return max(-(-(length - window) // (segments - 1)), 2)


def random_lengths(length: int, window: int, segments: int, generator: torch.Generator | None = None) -> list[int]:
    """Lengths of the segments of a block, drawn uniformly (Chevalier et al. 2023, section 3.2): all within
    [m_min, window], and `length` together.

    Raises:
        SegmentError: the block is too short for so many.
    """
    if segments == 1:
        if length > window:
            raise SegmentError(f"A block of {length} tokens exceeds the window of {window}.", "Take more segments.")
        return [length]
    least = shortest(length, window, segments)
    free = length - segments * least
    if free < segments - 1:
        raise SegmentError(
            f"A block of {length} tokens is too short for {segments} segments of at least {least}: it needs"
            f" {segments * least + segments - 1}.",
            "Take longer rows, or fewer segments.",
        )
    breaks = torch.randperm(free, generator=generator)[: segments - 1].sort().values.tolist()
    borders = [0, *breaks, free]
    return [stop - start + least for start, stop in pairwise(borders)]


def block_borders(length: int, blocks: int) -> list[int]:
    """Where the blocks of a row begin and the last one ends: floor(linspace(0, length, blocks + 1))."""
    return [length * number // blocks for number in range(blocks + 1)]


def equal_lengths(length: int, segments: int) -> list[int]:
    """Equal segments, but for what does not divide.

    Raises:
        SegmentError: there are more segments than tokens.
    """
    if length < segments:
        raise SegmentError(f"{length} tokens cannot be cut into {segments} segments; at least {segments} are needed.")
    borders = block_borders(length, segments)
    return [stop - start for start, stop in pairwise(borders)]
