"""Generation behind vectors, and with a text that is compressed as it grows, equals reading everything again."""

from __future__ import annotations

import pytest
import torch
from compressors import small
from torch import Tensor

from lmlab.methods.autocompressor import AutoCompressor, SummaryVectors
from lmlab.models import SegmentError


def _by_hand(
    compressor: AutoCompressor, prompt: list[int], new: int, every: int | None, before: SummaryVectors | None
) -> list[int]:
    """Greedy, without a cache: the whole text is read again for each token."""
    ids = list(prompt)
    for _ in range(new):
        out = compressor(torch.tensor([ids]), segment_lengths=every, soft_prompt=before, logits=True)
        assert out.logits_BTV is not None
        ids.append(int(out.logits_BTV[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("every", [None, 5])
def test_cached_generation_is_reading_everything_again(
    each: AutoCompressor, ids: Tensor, every: int | None, behind: bool
) -> None:
    """Prompts of one token, of a full segment, of more than two, and of a few, in one batch."""
    before = each.compress(ids[:1], segment_lengths=[8, 9, 7]) if behind else None
    prompts = [[4], [1, 2, 3, 4, 5], list(range(11)), [7, 8, 9]]
    found = each.generate(prompts, soft_prompt=before, compress_every=every, max_new_tokens=9, temperature=0)
    for prompt, (made,) in zip(prompts, found, strict=True):
        assert made.completion.ids == _by_hand(each, prompt, 9, every, before)
        text = len(prompt) + 8  # the last token was not read
        assert made.compressions == (0 if every is None else text // every), prompt
        held = 0 if before is None else before.length
        assert made.summary.length == held + 3 * made.compressions
    if every is not None:
        text_ids = torch.tensor([prompts[2] + found[2][0].completion.ids])[:, : 3 * 5]
        expected = each.compress(text_ids, segment_lengths=5, soft_prompt=before).vectors_BPD
        assert torch.allclose(found[2][0].summary.vectors_BPD, expected, atol=1e-10)


def test_replaced_and_scaled_vectors_and_kept_positions_are_generated_with_too(ids: Tensor) -> None:
    for compressor in (
        small("opt", accumulate=False),
        small("llama", rope_positions="text_only", position_budget=20),
        small("llama", vector_scale=0.3),
    ):
        prompts = [[4, 6], [1, 2, 3, 4, 5, 6, 7]]
        found = compressor.generate(prompts, compress_every=4, max_new_tokens=8, temperature=0)
        for prompt, (made,) in zip(prompts, found, strict=True):
            assert made.completion.ids == _by_hand(compressor, prompt, 8, 4, None)


def test_padded_prompts_and_samples_are_those_of_lists(ids: Tensor) -> None:
    compressor = small("gqa")
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, :20] = False
    settings = {"max_new_tokens": 6, "num_samples": 3, "seed": 5, "compress_every": 7}
    padded = compressor.generate(ids, mask, **settings)
    listed = compressor.generate([ids[0, 20:].tolist(), ids[1].tolist()], **settings)
    assert [[s.completion.ids for s in row] for row in padded] == [[s.completion.ids for s in row] for row in listed]
    assert len({tuple(s.completion.ids) for s in padded[0]}) > 1
    alone = compressor.generate([ids[1].tolist()], **settings)
    assert [s.completion.ids for s in alone[0]] == [s.completion.ids for s in listed[1]]


def test_texts_that_need_more_vectors_than_the_window_holds_are_refused_at_once() -> None:
    with pytest.raises(SegmentError, match="needs 75 positions for vectors"):
        small("llama").generate([[1, 2]], compress_every=2, max_new_tokens=50)
    with pytest.raises(SegmentError, match="table of 32"):
        small("opt").generate([[1, 2]], compress_every=40, max_new_tokens=3)
