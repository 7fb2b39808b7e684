from __future__ import annotations

import pytest
import torch

from lmlab.models import KVCache


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


KINDS = ["llama", "qwen3", "olmoe", "gpt2", "opt", "no_family"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_many_continuations_share_a_prefix(kind, padded, make_model, ids):
    """Row r continues prefix r // copies; the prefix is not copied, and stays as it was."""
    model, copies = make_model(kind), 3
    lengths = torch.tensor([8, 3, 5] if padded else [8, 8, 8])
    mask = torch.arange(8) >= 8 - lengths[:, None]
    prefix = KVCache(model.config, 3, 8)
    model(ids[:, :8] * mask, attention_mask_BT=mask if padded else None, cache=prefix)
    tails = torch.randint(0, 61, (3 * copies, 6), generator=torch.Generator().manual_seed(8))
    for _ in range(2):  # a prefix serves again and again
        fork = prefix.fork(copies, 6)
        logits = torch.cat([model(part, cache=fork).logits_BTV for part in tails.split([4, 1, 1], 1)], 1)
        for row in range(3 * copies):
            parent = row // copies
            whole = torch.cat((ids[parent, 8 - lengths[parent] : 8], tails[row]))[None]
            close(logits[row], model(whole).logits_BTV[0, -6:])


@pytest.mark.parametrize("kind", KINDS)
def test_continuations_of_unequal_length(kind, make_model, ids):
    model = make_model(kind)
    prefix = KVCache(model.config, 1, 8)
    model(ids[:1, :8], cache=prefix)
    lengths = [6, 2, 4]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    tails = torch.randint(0, 61, (3, 6), generator=torch.Generator().manual_seed(8))
    logits = model(tails * mask, attention_mask_BT=mask, cache=prefix.fork(3, 6)).logits_BTV
    for row, length in enumerate(lengths):
        whole = torch.cat((ids[0, :8], tails[row, :length]))[None]
        close(logits[row, :length], model(whole).logits_BTV[0, 8:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_extended_by_embeddings(kind, make_model, ids):
    model = make_model(kind)
    cache = KVCache(model.config, 3, 17)
    first = model(inputs_embeds_BTD=model.embedding(ids[:, :9]), cache=cache).logits_BTV
    second = model(ids[:, 9:12], cache=cache).logits_BTV
    third = model(inputs_embeds_BTD=model.embedding(ids[:, 12:]), cache=cache).logits_BTV
    close(torch.cat((first, second, third), 1), model(ids).logits_BTV)


def test_rows_are_kept_repeated_and_reordered(make_model, ids):
    model = make_model()
    cache = KVCache(model.config, 3, 17)
    model(ids[:, :9], cache=cache)
    cache.select([2, 0, 2])
    chosen = ids[[2, 0, 2]]
    close(model(chosen[:, 9:], cache=cache).logits_BTV, model(chosen).logits_BTV[:, 9:])


def test_a_crop_beyond_what_is_there_is_refused(make_model, ids):
    cache = KVCache(make_model().config, 3, 17)
    with pytest.raises(ValueError, match="cannot crop a cache of 0 tokens to 1"):
        cache.crop(1)


def test_a_fork_of_a_fork_and_rows_of_a_fork_are_refused(make_model, ids):
    model = make_model()
    prefix = KVCache(model.config, 3, 17)
    model(ids, cache=prefix)
    fork = prefix.fork(2, 4)
    with pytest.raises(ValueError, match="cannot be shared as one"):
        fork.fork(2, 4)
    with pytest.raises(ValueError, match="cannot be selected"):
        fork.select([0])


def test_summary_vectors_without_a_position(make_model, ids):
    """Vectors of position -1 before a text: in a learned table they get nothing added, and the text counts from 0."""
    model = make_model("opt")
    vectors = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    text = model.embedding(ids)
    positions = torch.cat((torch.full((4,), -1), torch.arange(17))).expand(3, -1)
    output = model(inputs_embeds_BTD=torch.cat((vectors, text), 1), position_ids_BT=positions).logits_BTV
    table = model.position_embedding.weight[2:19].clone()
    with torch.no_grad():
        model.position_embedding.weight.zero_()
    by_hand = model(inputs_embeds_BTD=torch.cat((vectors, text + table), 1)).logits_BTV
    close(output, by_hand)


def test_rotary_vectors_without_a_position_are_not_rotated(make_model, ids):
    from lmlab.models.internals.taps import Recorder

    model = make_model("llama")
    positions = torch.cat((torch.full((4,), -1), torch.arange(13))).expand(3, -1)
    seen, unrotated = Recorder("blocks.0.attention.key"), Recorder("blocks.0.attention.key")
    model(ids, position_ids_BT=positions, taps=seen)
    model(ids, position_ids_BT=torch.zeros_like(positions), taps=unrotated)
    close(seen["blocks.0.attention.key"][:, :, :5], unrotated["blocks.0.attention.key"][:, :, :5])
    assert not torch.allclose(
        seen["blocks.0.attention.key"][:, :, 6], unrotated["blocks.0.attention.key"][:, :, 6], atol=1e-3
    )
