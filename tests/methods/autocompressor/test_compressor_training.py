"""Gradients of blocks and of sliding windows, drawn segments, and a training that is cut off and goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressors import small
from torch import Tensor

from lmlab.methods.autocompressor import AutoCompressor, SegmentsConfig
from lmlab.methods.autocompressor.compressor.segmenting import equal_lengths, random_lengths
from lmlab.methods.autocompressor.config import CompressorConfig, check_trains
from lmlab.methods.autocompressor.training.step import CompressorStep
from lmlab.models import IGNORE, SegmentError


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "labels": torch.cat((ids[:, 1:], torch.full((len(ids), 1), IGNORE)), 1)}


def _gradients(compressor: AutoCompressor, ids: Tensor, **config: Any) -> tuple[float, dict[str, Tensor]]:
    compressor.zero_grad()
    step = CompressorStep(SegmentsConfig(**({"random": False} | config)))
    out = step(compressor.train(), _batch(ids))
    step.after_step(compressor)
    found = {name: each.grad.clone() for name, each in compressor.named_parameters() if each.grad is not None}
    return float(out.loss_sum), found


def _expected(compressor: AutoCompressor, ids: Tensor, lengths: list[int], window: int) -> dict[str, Tensor]:
    """The gradient when the loss of a segment reaches the summaries of the last window - 1, by separate passes: for
    each segment all before it are read again, the older ones without a graph.
    """
    compressor.zero_grad()
    starts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    labels = _batch(ids)["labels"]
    for number in range(len(lengths)):
        summary = compressor.nothing(len(ids))
        for earlier in range(number):
            span = slice(starts[earlier], starts[earlier + 1])
            with torch.set_grad_enabled(earlier > number - window):
                summary = compressor(ids[:, span], soft_prompt=summary, output_summary=True, logits=False).summary
            summary = summary if earlier > number - window else summary.detach()
        span = slice(starts[number], starts[number + 1])
        out = compressor(ids[:, span], soft_prompt=summary, targets_BT=labels[:, span])
        out.segments[0].loss.sum.backward()
    return {name: each.grad.clone() for name, each in compressor.named_parameters() if each.grad is not None}


def _close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-10) for name in a)


@pytest.mark.parametrize("kind", ["opt", "gqa", "moe"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_sliding_over_all_segments_is_full_back_propagation(kind: str, accumulate: bool, ids: Tensor) -> None:
    compressor = small(kind, accumulate=accumulate)
    loss, full = _gradients(compressor, ids, blocks=1, segments=4)
    for depth in (4, 7):
        other, sliding = _gradients(compressor, ids, blocks=2, segments=2, bptt="sliding", depth=depth)
        assert other == pytest.approx(loss) and _close(sliding, full)


@pytest.mark.parametrize("kind", ["llama", "gqa"])
@pytest.mark.parametrize("depth", [2, 3])
def test_sliding_reaches_so_many_segments_and_no_more(kind: str, depth: int, ids: Tensor) -> None:
    compressor = small(kind)
    _, found = _gradients(compressor, ids, blocks=2, segments=2, bptt="sliding", depth=depth)
    assert _close(found, _expected(compressor.train(), ids, [6, 6, 6, 6], depth))


@pytest.mark.parametrize("kind", ["llama", "gqa", "opt"])
def test_gradients_do_not_cross_the_border_of_a_block(kind: str, ids: Tensor) -> None:
    compressor = small(kind)
    _, found = _gradients(compressor, ids, blocks=2, segments=2)
    compressor.zero_grad()
    labels = _batch(ids)["labels"]
    first = compressor(ids[:, :12], segment_lengths=[6, 6], targets_BT=labels[:, :12], output_summary=True)
    second = compressor(
        ids[:, 12:], segment_lengths=[6, 6], targets_BT=labels[:, 12:], soft_prompt=first.summary.detach()
    )
    sum(each.loss.sum for out in (first, second) for each in out.segments).backward()  # type: ignore[union-attr]
    assert _close(found, {name: each.grad for name, each in compressor.named_parameters() if each.grad is not None})


@pytest.mark.parametrize("kind", ["llama", "gqa", "moe"])
@pytest.mark.parametrize("bptt", ["block", "sliding"])
def test_computing_segments_again_changes_nothing(kind: str, bptt: str, ids: Tensor) -> None:
    compressor = small(kind)
    plain = _gradients(compressor, ids, bptt=bptt)
    again = _gradients(compressor, ids, bptt=bptt, checkpoint_segments=True)
    assert again[0] == plain[0] and _close(again[1], plain[1])


def test_the_mean_is_over_all_tokens_and_the_references_sum_of_means_is_a_setting(ids: Tensor) -> None:
    compressor = small("llama")
    step = CompressorStep(SegmentsConfig(random=False, drop_border=True, sum_blocks=True))
    with torch.no_grad():
        exact = CompressorStep(SegmentsConfig(random=False))(compressor, _batch(ids))
        summed = step(compressor, _batch(ids))
    assert int(exact.count) == 2 * 23 and int(summed.count) == 1
    by_segment = [exact.sums[f"loss/segment_{number}"] for number in range(1, 5)]
    assert sum(float(total) for total, _ in by_segment) == pytest.approx(float(exact.loss_sum))
    assert int(summed.sums["loss/segment_2"][1]) == int(by_segment[1][1]) - 2  # the last of the first block
    parts = [summed.sums[f"loss/segment_{number}"] for number in range(1, 5)]
    means = [float(a[0] + b[0]) / float(a[1] + b[1]) for a, b in (parts[:2], parts[2:])]
    assert float(summed.loss_sum) == pytest.approx(sum(means))


def test_blocks_of_padding_count_nothing(ids: Tensor) -> None:
    compressor = small("opt")
    batch = _batch(ids) | {"document_ids": torch.zeros_like(ids)}
    batch["document_ids"][:, 12:] = -1
    batch["labels"][:, 11:] = IGNORE
    step = CompressorStep(SegmentsConfig(random=False))
    out = step(compressor.train(), batch)
    assert int(out.count) == 2 * 11 and torch.isfinite(out.loss_sum)
    padded = [each.grad.clone() for each in compressor.parameters() if each.grad is not None]
    assert all(bool(torch.isfinite(each).all()) for each in padded)
    compressor.zero_grad()
    CompressorStep(SegmentsConfig(random=False, blocks=1))(compressor, _batch(ids[:, :12]))
    alone = [each.grad for each in compressor.parameters() if each.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(padded, alone, strict=True))


def test_trainings_in_which_summary_tokens_learn_nothing_are_refused() -> None:
    for wrong in ({"segments": 1}, {"bptt": "sliding", "depth": 1}, {"bptt": "sliding", "blocks": 1, "segments": 1}):
        with pytest.raises(ValueError, match="no gradient"):
            check_trains(CompressorConfig(), SegmentsConfig(**wrong))


def test_drawn_segments_keep_to_their_bounds_and_reach_both_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [random_lengths(24, 16, 2, generator) for _ in range(10_000)]
    assert all(sum(each) == 24 and min(each) >= 8 and max(each) <= 16 for each in drawn)
    assert {each[0] for each in drawn} == set(range(8, 16))  # the second is never shorter than m_min + 1
    three = [random_lengths(12, 100, 3, generator) for _ in range(10_000)]
    assert all(sum(each) == 12 and min(each) >= 2 for each in three)
    assert {n for each in three for n in each} == set(range(2, 8))
    again = [random_lengths(24, 16, 2, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert again[0] == again[1]
    # the paper's: OPT with 6144 tokens in 2 x 2 segments
    lengths = [random_lengths(3072, 2048, 2, generator) for _ in range(2000)]
    assert all(1024 <= n <= 2048 for each in lengths for n in each)
    with pytest.raises(SegmentError, match="too short for 4 segments"):
        random_lengths(9, 100, 4)
    with pytest.raises(SegmentError, match="at least 3"):
        equal_lengths(2, 3)


def test_random_prefixes_of_summaries_are_read_in_training(ids: Tensor) -> None:
    compressor = small("llama", kappa=4, nested=True).train()
    lengths = set()
    for seed in range(20):
        torch.manual_seed(seed)
        compressor.zero_grad()
        CompressorStep(SegmentsConfig(), nested=True)(compressor, _batch(ids))
        gradient = compressor.summary_embedding_ND.grad
        assert gradient is not None
        used = (gradient.abs().sum(1) > 0).tolist()
        assert used == sorted(used, reverse=True)
        lengths.add(sum(used))
    assert lengths == {1, 2, 3, 4}
