"""Kinds of compression: what keeps everything changes nothing, what keeps something keeps what its formula says."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import FEATURES, random_model

from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import create, kinds, slots_for
from lmlab.methods.autocompressor.kinds.expected import expected_attention
from lmlab.models import Memory, load_memory, read_rows, save_memory
from lmlab.models.internals.taps import Recorder

PRUNES = [name for name in kinds() if name.startswith("prune:")]
FREE = [name for name, kind in kinds().items() if not (kind.learns or kind.trains_each)]


def ids_of(rows, length, seed=0):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def model():
    return random_model("llama", max_seq_len=128)


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("name", [*PRUNES, "full", "prune:snap+prune:norm"])
@torch.no_grad()
def test_what_keeps_everything_is_the_full_context(name, kind):
    model, context, text = random_model(kind), ids_of(2, 12), ids_of(2, 5, seed=1)
    memory = create(name, model, ratio=1).compress(context)
    close(model(text, memory=memory).logits_BTV, model(torch.cat((context, text), 1)).logits_BTV[:, 12:])
    assert memory.ratio == 1 and memory.next_position.tolist() == [12, 12]


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_kvpress_264_a_context_of_one_or_two_tokens_keeps_something(name, length, model):
    """A floor of the kept share emptied the cache, and the answers were not-a-number without an error."""
    memory = create(name, model, ratio=50).compress(ids_of(1, length))
    assert model(ids_of(1, 3), memory=memory).logits_BTV.isfinite().all()
    if name != "none":
        assert memory.slots_B.tolist() == [1 if name == "truncate" else length]  # sinks are kept


@pytest.mark.parametrize("name", PRUNES)
@torch.no_grad()
def test_sinks_are_always_kept_and_positions_go_on_from_the_whole_text(name, model):
    memory = create(name, model, ratio=4).compress(ids_of(1, 64))
    assert memory.slots_B.tolist() == [16] and memory.next_position.tolist() == [64]
    for head in memory.rows.positions_LBKM[:, 0].flatten(0, 1):
        assert {0, 1, 2, 3} <= set(head.tolist())


@torch.no_grad()
def test_kvpress_146_ratios_of_composed_kinds_multiply(model):
    """Two presses of 50 % each leave a quarter, as measured, not nothing and not a half."""
    memory = create("prune:norm+prune:recent", model, ratio=4, sinks=0).compress(ids_of(1, 64))
    assert memory.slots_B.tolist() == [16] and memory.ratio == 4
    norms = read_rows(model, ids_of(1, 64)).keys_LBKMH[:, 0].norm(dim=-1)
    for layer in range(2):
        for head in range(2):
            first = norms[layer, head].topk(32, largest=False).indices.sort().values
            assert memory.rows.positions_LBKM[layer, 0, head].tolist() == first[-16:].tolist()
    with pytest.raises(UserError, match="cannot follow another kind"):
        create("prune:norm+truncate", model)


@torch.no_grad()
def test_a_composed_kind_keeps_what_its_ratio_says_and_learns_where_a_part_does(model):
    memory = create("full+prune:norm", model, ratio=4, sinks=0).compress(ids_of(1, 64))
    assert memory.ratio == 4  # what keeps everything takes no share of it
    assert create("anchor_kv+prune:norm", model).learns and create("cartridge+prune:norm", model).trains_each
    assert not create("prune:snap+prune:norm", model).learns


@torch.no_grad()
def test_kvzip_shares_its_budget_over_the_heads_of_a_layer_or_of_the_model(model):
    for share in ("layer", "model"):
        rows = create("prune:kvzip", model, ratio=4, share=share).compress(ids_of(1, 64)).rows
        counts = rows.counts_LBK()[:, 0]
        assert counts.sum().item() == 4 * 16 and counts.unique().numel() > 1
        if share == "layer":
            assert counts.sum(-1).tolist() == [32, 32]
    even = create("prune:kvzip", model, ratio=4, share="head").compress(ids_of(1, 64)).rows.counts_LBK()
    assert even.unique().tolist() == [16]


@torch.no_grad()
def test_kvzip_scores_are_the_most_attention_while_the_text_is_repeated(model):
    ids = ids_of(1, 20)
    compressor = create("prune:kvzip", model, chunk=7)
    found = compressor.scores(read_rows(model, ids), ids, None)
    expected = torch.zeros(2, 2, 20)
    for start in range(0, 20, 7):
        seen = Recorder("blocks.*.attention.pattern")
        model(torch.cat((ids, ids[:, start : start + 7]), 1), taps=seen)
        for layer in range(2):
            pattern = seen[f"blocks.{layer}.attention.pattern"][0, :, 20:, :20]
            expected[layer] = torch.maximum(expected[layer], pattern.amax(1).unflatten(0, (2, 2)).amax(1))
    close(found, expected)


@torch.no_grad()
def test_snap_scores_are_the_mean_attention_of_the_last_queries_or_of_the_query(model):
    ids, query = ids_of(1, 20), ids_of(1, 5, seed=3)
    compressor = create("prune:snap", model, window=6)
    rows = read_rows(model, ids)
    for text, found, first in (
        (ids, compressor.scores(rows, ids, None), 14),
        (torch.cat((ids, query), 1), compressor.scores(rows, ids, query), 20),
    ):
        seen = Recorder("blocks.*.attention.pattern")
        model(text, taps=seen)
        for layer in range(2):
            pattern = seen[f"blocks.{layer}.attention.pattern"][0, :, first:, :20]
            close(found[layer], pattern.mean(1).unflatten(0, (2, 2)).mean(1))


def test_expected_attention_is_what_drawn_queries_attend_on_average():
    """For normal queries E exp(q.k / sqrt H) = exp(m.k / sqrt H + k'Sk / 2H)."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 400_000, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, 4, generator=generator, dtype=torch.float64
    ) * 0.5 + torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
    keys = torch.randn(1, 6, 4, generator=generator, dtype=torch.float64) * 0.5
    drawn = (queries @ keys.transpose(1, 2) / math.sqrt(4)).exp().mean(1)
    close(expected_attention(queries, keys, None).exp(), drawn / drawn.sum(-1, keepdim=True), 5e-3)


@torch.no_grad()
def test_expected_rotations_are_the_mean_of_those_to_come(model):
    """A key far from the text's queries is met by queries of the next positions, rotated one by one and averaged."""
    from lmlab.methods.autocompressor.kinds.expected import _rotations
    from lmlab.models.attention.rope import apply_rotary, rotary_table

    table, mean = _rotations(model.config, 0, 10, 32, torch.device("cpu"))
    query = torch.randn(8)
    places = torch.arange(10, 42)[None]
    rotated = apply_rotary(query.expand(1, 1, 32, 8).contiguous(), rotary_table(model.config, places, torch.float32))
    close(mean @ query, rotated[0, 0].mean(0))
    cos, sin = table
    seen = Recorder("blocks.0.attention.query")
    model(ids_of(1, 10), taps=seen)
    back = apply_rotary(seen["blocks.0.attention.query"], (cos, -sin))
    close(
        apply_rotary(back, rotary_table(model.config, torch.arange(10)[None], torch.float32)),
        seen["blocks.0.attention.query"],
    )


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_padding_and_batches_change_no_memory(name, model, tmp_path):
    texts, text = [ids_of(1, length, seed=length) for length in (24, 9)], ids_of(1, 4, seed=5)
    padded = torch.zeros(2, 24, dtype=torch.long)
    mask = torch.zeros(2, 24, dtype=torch.long)
    padded[0], mask[0] = texts[0], 1
    padded[1, 15:], mask[1, 15:] = texts[1], 1
    compressor = create(name, model, ratio=3)
    together = compressor.compress(padded, mask)
    logits = model(text.expand(2, -1), memory=together).logits_BTV
    for row, each in enumerate(texts):
        alone = compressor.compress(each)
        close(logits[row : row + 1], model(text, memory=alone).logits_BTV, 1e-4)
        assert together.source_hash[row] == alone.source_hash[0]
    assert together.about["compressor"] == name and "cpu, float32" in together.about["kernel"]
    save_memory(together, tmp_path / "m.safetensors", model)
    read = load_memory(tmp_path / "m.safetensors", model)
    assert torch.equal(model(text.expand(2, -1), memory=read).logits_BTV, logits)


@torch.no_grad()
def test_random_is_the_same_for_a_seed_and_another_for_another(model):
    first, again, other = (
        create("prune:random", model, ratio=4, seed=seed).compress(ids_of(1, 40)).rows.positions_LBKM
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_slots_are_rounded_up_and_never_none():
    assert [slots_for(512, ratio) for ratio in (1, 2, 4, 8, 16, 3)] == [512, 256, 128, 64, 32, 171]
    assert [slots_for(tokens, 100, 4) for tokens in (1, 2, 5, 1000)] == [1, 2, 4, 10]


def test_unknown_kinds_impossible_settings_and_empty_texts_are_refused(model):
    with pytest.raises(UserError, match="no kind of compression 'prune:snip'"):
        create("prune:snip", model)
    with pytest.raises(UserError, match="ratio"):
        create("prune:snap", model, ratio=0.5)
    compressor = create("prune:norm", model)
    with pytest.raises(UserError, match="Text 1 has no tokens"):
        compressor.compress(ids_of(2, 4), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))
    for texts, mask, query, said in (
        (ids_of(1, 4)[:0], None, None, "ids \\[B, T\\]"),
        (ids_of(1, 4).float(), None, None, "float32"),
        (ids_of(2, 4), torch.ones(2, 3), None, "mask has the shape"),
        (ids_of(2, 4), torch.ones(3, 4), None, "mask has the shape"),
        (ids_of(2, 4), None, ids_of(3, 4), "1 or 2, Q"),
        (ids_of(2, 4), None, ids_of(1, 4)[:0], "1 or 2, Q"),
        (ids_of(2, 4), None, ids_of(1, 4)[0], "1 or 2, Q"),
        (ids_of(2, 4), None, torch.tensor([[61]]), "query has ids beyond"),
    ):
        with pytest.raises(UserError, match=said):
            compressor.compress(texts, mask, query)
    with pytest.raises(UserError, match="129 tokens; the model reads 128"):
        compressor.compress(ids_of(1, 129))
    with pytest.raises(UserError, match="vocabulary of 61"):
        compressor.compress(torch.tensor([[61]]))
    with pytest.raises(UserError, match="table has 48 positions"):
        create("prune:kvzip", random_model("gpt2")).compress(ids_of(1, 40))


@torch.no_grad()
def test_a_memory_for_other_weights_is_refused(model):
    memory = create("prune:snap", model).compress(ids_of(1, 30))
    assert isinstance(memory, Memory)
    with pytest.raises(UserError, match="other weights"):
        random_model("llama", seed=9, max_seq_len=128)(ids_of(1, 3), memory=memory)


@torch.no_grad()
def test_compression_leaves_the_model_in_its_mode(model):
    compressor = create("prune:norm", model)
    for mode in (False, True, False):
        model.train(mode)
        compressor.compress(ids_of(1, 12))
        assert model.training == mode and model.block(0).training == mode
