"""The compressor computes what the reference computes, and what follows from the paper's definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressors import by_formula, small
from small_models import random_model
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.methods.autocompressor.compressor.extend import tile_positions
from lmlab.methods.autocompressor.compressor.files import fingerprint
from lmlab.methods.autocompressor.store.encode import cut_of
from lmlab.models import SegmentError, SoftPrompt
from lmlab.models.attention.backends import Backend

_IDS = ((7 * torch.arange(24) + 3) % 37)[None]
_SEGMENTS = [8, 6, 10]
_BACKENDS: tuple[Backend, ...] = ("sdpa", "runs", "blocked")
# figures of the reference's code in fp64 (its Llama variant as the same mixin over the class of transformers)
_ORACLES: dict[str, dict[str, Any]] = {
    "opt": {
        "loss": 3.95023650,
        "sum": 2.982477,
        "abs": 128.605496,
        "first": [-0.884002, 0.314791, -0.149855, -1.162307],
        "logits": [-0.282501, -1.143965, -0.181960, 1.070088],
        "one": 3.99625823,
        "gradient": 0.00667211,
    },
    "llama": {
        "loss": 3.66118503,
        "sum": 1.435461,
        "first": [1.362150, -0.241621, -0.916382, 0.203783],
        "logits": [0.047721, 0.414335, 0.120503, -0.365409],
        "one": 3.64354448,
    },
}


@pytest.mark.parametrize("kind", _ORACLES)
def test_accumulated_summaries_are_those_of_the_reference(kind: str) -> None:
    oracle, compressor = _ORACLES[kind], by_formula(kind)
    out = compressor(_IDS, segment_lengths=_SEGMENTS, labels=_IDS, output_summary=True, logits=True)
    vectors = out.summary.vectors_BPD
    assert out.loss is not None and out.logits_BTV is not None
    assert vectors.shape == (1, 9, 16)
    assert out.loss.item() == pytest.approx(oracle["loss"], abs=1e-5)
    assert vectors.sum().item() == pytest.approx(oracle["sum"], abs=1e-5)
    assert vectors[0, 0, :4].tolist() == pytest.approx(oracle["first"], abs=1e-5)
    assert out.logits_BTV[0, -1, :4].tolist() == pytest.approx(oracle["logits"], abs=1e-5)
    assert compressor(_IDS, labels=_IDS).loss.item() == pytest.approx(oracle["one"], abs=1e-5)
    if "abs" in oracle:
        assert vectors.abs().sum().item() == pytest.approx(oracle["abs"], abs=1e-5)
    if "gradient" in oracle:
        out.loss.backward()
        assert compressor.summary_embedding_ND.grad is not None
        assert compressor.summary_embedding_ND.grad.norm().item() == pytest.approx(oracle["gradient"], abs=1e-7)


def test_token_embeddings_as_a_soft_prompt_are_the_plain_prefix() -> None:
    for kind in ("llama", "gqa", "moe"):
        compressor, ids = small(kind), _IDS
        plain = compressor(ids).logits_BTV
        prompt = compressor.model.embed(ids[:, :9])
        assert plain is not None
        assert torch.allclose(compressor(ids[:, 9:], soft_prompt=prompt).logits_BTV, plain[:, 9:], atol=1e-12)


def test_passing_summaries_on_by_hand_is_reading_in_segments(each: AutoCompressor, ids: Tensor) -> None:
    whole = each(ids, segment_lengths=_SEGMENTS, output_summary=True)
    first = each.compress(ids[:, :8], segment_lengths=[8])
    second = each.compress(ids[:, 8:14], segment_lengths=[6], soft_prompt=first)
    last = each(ids[:, 14:], soft_prompt=second, output_summary=True)
    assert torch.allclose(last.summary.vectors_BPD, whole.summary.vectors_BPD, atol=1e-12)
    assert torch.allclose(last.logits_BTV, whole.logits_BTV[:, 14:], atol=1e-12)
    assert last.summary.segment_of_P.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert last.summary.tokens_B.tolist() == [24, 24]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(each: AutoCompressor, ids: Tensor, side: str) -> None:
    """Rows of 17 and 24 tokens together, in segments of which the first or the last of the shorter row is padding."""
    pad = torch.zeros(1, 7, dtype=torch.long)
    short = ids[:1, :17]
    row = torch.cat((pad, short) if side == "left" else (short, pad), 1)
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, slice(0, 7) if side == "left" else slice(17, 24)] = False
    cut = [7, 8, 9] if side == "left" else [8, 9, 7]
    both = each(torch.cat((row, ids[1:])), mask, segment_lengths=cut, output_summary=True)
    alone = each(short, segment_lengths=[8, 9], output_summary=True)
    other = each(ids[1:], segment_lengths=cut, output_summary=True)
    shown = slice(7, 24) if side == "left" else slice(0, 17)
    assert torch.allclose(both.logits_BTV[:1, shown], alone.logits_BTV, atol=1e-12)
    assert torch.allclose(both.logits_BTV[1:], other.logits_BTV, atol=1e-12)
    assert torch.allclose(both.summary.row(0).vectors_BPD, alone.summary.vectors_BPD, atol=1e-12)
    assert torch.allclose(both.summary.row(1).vectors_BPD, other.summary.vectors_BPD, atol=1e-12)
    # what follows a summary of which a part is padding is as after one without
    after = each(ids[:, :5], soft_prompt=both.summary).logits_BTV
    assert torch.allclose(after[:1], each(ids[:1, :5], soft_prompt=alone.summary).logits_BTV, atol=1e-12)


def test_without_summary_tokens_one_segment_is_the_model_itself(each: AutoCompressor, ids: Tensor) -> None:
    plain = AutoCompressor(each.model, each.config.model_copy(update={"summary_length": 0}))
    labels = torch.cat((ids[:, 1:], torch.full((2, 1), -100)), 1)
    loss = each.model(ids, labels_BT=labels).loss
    assert torch.equal(plain(ids, labels=ids).loss, loss.sum / loss.count)


def test_of_two_segments_replacing_is_accumulating(each: AutoCompressor, ids: Tensor) -> None:
    replaced = AutoCompressor(each.model, each.config.model_copy(update={"accumulate": False}))
    replaced.load_state_dict(each.state_dict())
    for cut, equal in (([10, 14], True), (_SEGMENTS, False)):
        a, b = (compressor(ids, segment_lengths=cut).logits_BTV for compressor in (each, replaced.eval()))
        assert torch.equal(a, b) == equal


def test_first_vectors_of_a_summary_do_not_depend_on_later_ones(ids: Tensor) -> None:
    for kind in ("opt", "llama"):
        whole, part = small(kind, nested=True), small(kind, nested=True)
        vectors = whole.compress(ids, segment_lengths=[24]).vectors_BPD
        assert torch.allclose(
            part.compress(ids, segment_lengths=[24], summary_length=2).vectors_BPD, vectors[:, :2], atol=1e-12
        )


def test_scaled_vectors_are_final_states_times_the_scale(ids: Tensor) -> None:
    plain, scaled = small("llama"), small("llama", vector_scale=0.25)
    first = plain.compress(ids, segment_lengths=24).vectors_BPD
    assert torch.equal(scaled.compress(ids, segment_lengths=24).vectors_BPD, 0.25 * first)
    # what stands behind them reads them as they are
    behind = scaled.compress(ids, segment_lengths=12)
    by_hand = plain.compress(ids[:, 12:], soft_prompt=0.25 * plain.compress(ids[:, :12]).vectors_BPD)
    assert torch.allclose(behind.vectors_BPD[:, 3:], 0.25 * by_hand.vectors_BPD[:, 3:], atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmoe"])
def test_a_scale_that_follows_from_the_weights_makes_vectors_as_long_as_embeddings(kind: str, tmp_path: Path) -> None:
    model = random_model(kind)
    with torch.no_grad():
        model.embedding.weight *= 0.05
    made = AutoCompressor.from_base(model, 4, init="vocab", vector_scale="embedding")
    scale = made.config.vector_scale
    assert isinstance(scale, float) and 0 < scale < 0.5
    length = made.compress(torch.arange(40)[None]).vectors_BPD.norm(dim=-1).mean()
    assert float(length) == pytest.approx(float(model.embedding.weight.detach().norm(dim=1).mean()), rel=0.2)
    made.save(tmp_path / "made")
    assert AutoCompressor.load(tmp_path / "made").config.vector_scale == scale


def test_a_scale_is_part_of_what_stored_vectors_depend_on() -> None:
    one, other = small("llama"), small("llama", vector_scale=0.5)
    assert fingerprint(one) != fingerprint(other)


def test_text_only_positions_put_the_text_behind_the_budget(ids: Tensor) -> None:
    compressor = small("llama", rope_positions="text_only", position_budget=12)
    first = compressor.compress(ids, segment_lengths=[8, 8, 8])
    assert first.length == 9
    positions = torch.cat((torch.arange(9) % 12, 12 + torch.arange(24)))[None].expand(2, -1)
    embeds = torch.cat((first.vectors_BPD, compressor.model.embed(ids)), 1)
    expected = compressor.model(inputs_embeds_BTD=embeds, position_ids_BT=positions).logits_BTV[:, 9:]
    assert torch.allclose(compressor(ids, soft_prompt=first).logits_BTV, expected, atol=1e-12)


def test_autocompressors_12_vectors_of_one_kernel_are_read_alike_by_another(ids: Tensor) -> None:
    """Trained with one kernel of attention and read with another, there was a gap of quality."""
    for kind in ("opt", "gqa", "moe"):
        compressor = small(kind).float()
        vectors = compressor.compress(ids, segment_lengths=[9, 15]).vectors_BPD
        found = []
        for backend in _BACKENDS:
            compressor.model.attention_backend = backend
            again = compressor.compress(ids, segment_lengths=[9, 15]).vectors_BPD
            assert torch.allclose(again, vectors, atol=1e-4)
            found.append(compressor(ids, soft_prompt=vectors).logits_BTV)
        assert all(torch.allclose(each, found[0], atol=1e-4) for each in found[1:])


def test_autocompressors_17_many_more_segments_than_were_trained_are_said(
    ids: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    compressor = small("llama", kappa=1, trained_segments=2)
    compressor.compress(ids, segment_lengths=6)
    assert not caplog.records
    compressor.compress(ids, segment_lengths=4)
    assert "6 segments" in caplog.text


def test_a_repeated_table_of_positions_gives_the_window_again(ids: Tensor) -> None:
    model = small("opt").model
    longer = tile_positions(model, 80)
    assert longer.config.max_seq_len == 80
    plain, again = model(ids).logits_BTV, longer(ids).logits_BTV
    assert torch.equal(plain, again)
    places = torch.arange(32, 32 + ids.shape[1])[None]
    assert torch.equal(longer(ids, position_ids_BT=places).logits_BTV, plain)
    for wrong, said in ((small("llama").model, "no table"), (longer, "not longer")):
        with pytest.raises(UserError, match=said):
            tile_positions(wrong, 80)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [([8, 6, 11], "have 25 tokens together, and the text 24"), ([0, 24], "Segment 1 of"), (0, "is empty")],
)
def test_segments_that_do_not_fit_are_refused(lengths: Any, said: str) -> None:
    with pytest.raises(SegmentError, match=said):
        small()(_IDS, segment_lengths=lengths)


def test_a_window_that_is_too_short_is_said_with_its_numbers() -> None:
    with pytest.raises(SegmentError, match="table of 32 positions"):
        small("opt")(_IDS.repeat(1, 2))
    with pytest.raises(SegmentError, match=r"40 vectors before the text, 24 tokens and 3 summary tokens are 67"):
        small("llama")(_IDS, soft_prompt=torch.zeros(1, 40, 16, dtype=torch.float64), output_summary=True)


def test_soft_prompts_that_do_not_fit_are_refused() -> None:
    compressor = small()
    for wrong in (torch.zeros(1, 3, 17), torch.zeros(3, 3, 16), torch.full((1, 3, 16), torch.nan)):
        with pytest.raises(Exception, match="soft prompt"):
            compressor(_IDS.repeat(2, 1), soft_prompt=wrong.double())
    broadcast = compressor(_IDS.repeat(2, 1), soft_prompt=SoftPrompt(torch.zeros(1, 3, 16).double()))
    # kernels of some processors treat the rows of a product differently, to the last bits
    torch.testing.assert_close(broadcast.logits_BTV[0], broadcast.logits_BTV[1], atol=1e-5, rtol=1e-5)


def test_a_budget_of_positions_is_what_vectors_take_of_the_window() -> None:
    compressor = small("llama", rope_positions="text_only", position_budget=6)
    text = torch.randint(0, 37, (1, 600), generator=torch.Generator().manual_seed(0))
    summary = compressor.compress(text)  # 11 segments of 55 tokens, as long as 64 - 6 - 3 positions allow
    assert summary.length == 33
    many = torch.cat((summary.vectors_BPD,) * 2, 1)
    positions = torch.cat((torch.arange(66) % 6, 6 + torch.arange(58)))[None]
    embeds = torch.cat((many, compressor.model.embed(text[:, :58])), 1)
    expected = compressor.model(inputs_embeds_BTD=embeds, position_ids_BT=positions).logits_BTV[:, 66:]
    assert torch.allclose(compressor(text[:, :58], soft_prompt=many).logits_BTV, expected, atol=1e-12)
    with pytest.raises(SegmentError, match="6 vectors before the text, 59 tokens and 0 summary tokens are 65"):
        compressor(text[:, :59], soft_prompt=many)
    for soft_prompt in (many, many[:, :2]):  # few vectors leave the text where it is
        assert len(compressor.generate(text[:, :50], soft_prompt=soft_prompt, max_new_tokens=8)[0][0].completion.ids)
        with pytest.raises(UserError, match="behind a soft prompt of 6 positions; with 9 new ones"):
            compressor.generate(text[:, :50], soft_prompt=soft_prompt, max_new_tokens=9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": torch.tensor([[1, 37]])}, "vocabulary of 37"),
        ({"input_ids": torch.tensor([[1, -1]])}, "vocabulary of 37"),
        ({"input_ids": torch.tensor([[1.0, 2.0]])}, "are token ids"),
        ({"input_ids": torch.tensor([1, 2])}, r"not \[2\]"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "at least one row"),
        ({"attention_mask": torch.ones(1, 23)}, r"attention_mask has the shape \[1, 23\], and the text \[1, 24\]"),
        ({"labels": _IDS[:, 1:]}, "labels has the shape"),
        ({"labels": _IDS + 20}, "labels has token ids"),
        ({"input_ids": _IDS > 3}, "are token ids"),
        ({"segment_lengths": 2.5}, "whole numbers of tokens, not 2.5"),
        ({"segment_lengths": float("nan")}, "whole numbers of tokens, not nan"),
        ({"segment_lengths": [float("inf"), 4]}, "whole numbers of tokens, not inf, 4"),
        ({"segment_lengths": [12.5, 11.5]}, "whole numbers of tokens, not 12.5, 11.5"),
        ({"soft_prompt": SoftPrompt(torch.ones(1, 3, 16), valid_BP=torch.ones(1, 2, dtype=torch.bool))}, "mask is"),
    ],
)
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_what_is_no_batch_of_texts_is_refused(kind: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        small(kind)(**({"input_ids": _IDS} | given))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"summary_length": -1}, "the settings of the compressor: summary_length"),
        ({"rope_positions": "text_only"}, "text_only needs position_budget"),
        ({"rope_positoins": "text_only"}, "unknown key 'rope_positoins'"),
        ({"init": "eos", "eos_id": 37}, "end mark 37 is beyond the model's vocabulary of 37"),
        ({"init": "eos", "eos_id": -1}, "end mark -1 is beyond"),
        ({"init": "ones"}, "cannot begin as 'ones'"),
        ({"noise": float("nan")}, "noise of summary tokens is a finite number"),
    ],
)
def test_a_beginning_that_is_impossible_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AutoCompressor.from_base(small().model, **({"summary_length": 3, "init": "mean"} | settings))


def test_replaced_vectors_take_the_place_of_one_segment_whatever_the_length_of_the_text() -> None:
    """The window of 64 holds three vectors, 58 tokens and three summary tokens."""
    compressor = small("llama", accumulate=False)
    text = torch.randint(0, 37, (1, 2000), generator=torch.Generator().manual_seed(0))
    found = compressor.compress(text)
    assert found.length == 3 and found.segments == 35
    assert torch.equal(found.vectors_BPD, compressor.compress(text, segment_lengths=58).vectors_BPD)
    assert compressor.compress(text[:, :61]).segments == 1  # nothing stands before a first segment
    assert compressor.compress(text[:, :62]).segments == 2
    cut = cut_of(compressor, 2000, None, False)
    assert cut == [58] * 34 + [28] and cut_of(compressor, 2000, None, True) == [61] * 32 + [48]
    behind = compressor.compress(text[:, :60], soft_prompt=torch.zeros(1, 20, 16, dtype=torch.float64))
    assert behind.segment_of_P.tolist() == [2, 2, 2]  # what was given is the first of three: 41 tokens fit behind it
    with pytest.raises(SegmentError, match="no room beside 61 vectors and 3 summary tokens"):
        compressor.compress(text, soft_prompt=torch.zeros(1, 61, 16, dtype=torch.float64))


@pytest.mark.parametrize("every", [None, 2])
def test_generation_refuses_ids_and_masks_that_are_none(every: int | None) -> None:
    for prompts, mask in (([[1, 2, 99]], None), ([[1], [-1]], None), (_IDS, torch.ones(1, 5))):
        with pytest.raises(UserError, match=r"beyond the model's vocabulary|attention_mask has the shape"):
            small().generate(prompts, mask, max_new_tokens=2, compress_every=every)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_place_in_sliding_windows(side: str) -> None:
    """A window counts slots: padding between text and summary tokens would push the text out of it."""
    model = random_model("llama", attention=("sliding", "full"), sliding_window=6)
    each = AutoCompressor.from_base(model, summary_length=3, init="noise")
    ids = torch.randint(1, 61, (1, 7), generator=torch.Generator().manual_seed(3))
    alone = each.compress(ids, segment_lengths=[6, 1]).vectors_BPD
    pad = torch.zeros(1, 5, dtype=ids.dtype)
    padded = torch.cat((pad, ids) if side == "left" else (ids, pad), 1)
    mask = padded != 0
    lengths = [11, 1] if side == "left" else [6, 6]
    found = each.compress(padded, attention_mask=mask, segment_lengths=lengths).vectors_BPD
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
