"""Bugs of long-context trainings that were reported in public against other projects, tried on lmlab. Those of rows
that several processes share are cases of `sequence_worker.py`.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.models import (
    ModelConfig,
    RopeScaling,
    Transformer,
    WindowConfig,
    from_pretrained,
    fused_cross_entropy,
    rotary_frequencies,
    save_pretrained,
    with_window,
)
from lmlab.models.attention.rope import rotary_table
from lmlab.train import language_model_step
from lmlab.train.parallelism.sequence import split_rows

SHAPE = ModelConfig(
    vocab_size=50, num_layers=2, d_model=64, num_heads=2, num_kv_heads=1, max_seq_len=256, init_std=0.3, rope_theta=1e4
)
LONGER = {
    "2 t theta": WindowConfig(max_seq_len=1024, rope_theta="auto"),
    "ntk": WindowConfig(max_seq_len=1024, rope_theta="auto-ntk"),
    "yarn": WindowConfig(max_seq_len=1024, rope_scaling=RopeScaling(type="yarn", factor=4, original_max_seq_len=256)),
    "longrope": WindowConfig(
        max_seq_len=1024,
        rope_scaling=RopeScaling(
            type="longrope",
            factor=4,
            original_max_seq_len=256,
            short_factor=(1.0,) * 16,
            long_factor=tuple(1 + 0.3 * n for n in range(16)),
        ),
    ),
}


def _packed(lengths, seed=0):
    ids = torch.randint(50, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    owners = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])[None]
    labels = ids.roll(-1, 1)
    labels[0, torch.tensor(lengths).cumsum(0) - 1] = -100
    return {"input_ids": ids, "labels": labels, "document_ids": owners}


@pytest.mark.parametrize("backend", ["sdpa", "runs", "blocked", "auto"])
def test_packing_is_as_good_as_rows_of_their_own_without_flash_attention(backend):  # TRL 3910
    model = Transformer(SHAPE).initialize(1)
    model.attention_backend = backend
    lengths = [1, 40, 7, 89, 63]
    batch = _packed(lengths)
    packed = language_model_step(model, batch)
    start, alone, count = 0, 0.0, 0
    for length in lengths:
        part = {name: value[:, start : start + length] for name, value in batch.items()}
        if length > 1:
            found = language_model_step(model, part | {"document_ids": torch.zeros_like(part["input_ids"])})
            alone, count = alone + float(found.loss_sum.detach()), count + int(found.count)
        start += length
    assert int(packed.count) == count
    assert float(packed.loss_sum.detach()) / count == pytest.approx(alone / count, abs=1e-5)


def test_labels_are_shifted_before_a_row_is_shared():  # torchtitan 4544
    batch = _packed([5, 6])
    parts = [split_rows(batch, rank, 3)[0] for rank in range(3)]
    together = torch.cat([part["labels"] for part in parts], 1)[:, :11]
    assert torch.equal(together, batch["labels"])  # borders of parts keep what follows them
    positions = torch.cat([part["position_ids"] for part in parts], 1)[0, :11]
    assert positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("key", ["rope_thetta", "rope_base", "theta"])
def test_a_misspelled_override_is_no_default(key):  # TRL 6846
    with pytest.raises(UserError, match=key):
        validate(WindowConfig, {"max_seq_len": 1024, key: 1e6}, "window")


@pytest.mark.parametrize("name", LONGER)
def test_an_override_is_what_the_saved_model_rotates_by(name, tmp_path):  # TRL 6846
    config = with_window(SHAPE, LONGER[name])
    save_pretrained(Transformer(config).initialize(0), tmp_path)
    ours = rotary_frequencies(from_pretrained(tmp_path).config)
    assert torch.equal(ours, rotary_frequencies(config))
    assert not torch.allclose(ours, rotary_frequencies(SHAPE))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    if config.rope_scaling is None:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        expected, factor = loaded.model.rotary_emb.inv_freq, 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling.type](theirs, "cpu", seq_len=1024)
    torch.testing.assert_close(ours, expected.float(), atol=1e-6, rtol=1e-6)  # dimension by dimension
    table = rotary_table(config, torch.zeros(1, 1024, dtype=torch.long), torch.float32)
    assert float(table[0][0, 0, 0, 0]) == pytest.approx(factor)


def test_positions_beyond_what_bf16_can_tell_apart_rotate_by_their_own_angles():
    config = with_window(SHAPE, WindowConfig(max_seq_len=2**19))
    places = torch.tensor([[257, 258, 400_001, 400_002, 524_287]])
    exact = places[0, :, None].double() * rotary_frequencies(config).double()
    cosines, sines = rotary_table(config, places, torch.bfloat16)
    for found, expected in ((cosines, exact.cos()), (sines, exact.sin())):
        assert float((found[0, 0].double() - expected).abs().max()) < 0.04  # of fp32 angles, and of the result's type
    assert not torch.equal(cosines[0, 0, 0], cosines[0, 0, 1])
    assert not torch.equal(cosines[0, 0, 2], cosines[0, 0, 3])


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_a_block_of_logits_without_labels_is_no_nan(block):  # the reference averages blocks: 0 times NaN
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 200, 16, generator=generator), torch.randn(30, 16, generator=generator)
    labels = torch.randint(30, (1, 200), generator=generator)
    labels[0, 64:128] = -100
    loss = fused_cross_entropy(hidden, weight, labels, block_size=block)
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T)[0], labels[0], reduction="sum")
    torch.testing.assert_close(loss.sum, expected, atol=1e-3, rtol=1e-5)
    assert int(loss.count) == 136
