"""Another window: bases by the published rules, what is refused, and files that are read back as they were."""

from __future__ import annotations

import pytest
import torch
import transformers

from lmlab.errors import UserError
from lmlab.models import (
    ModelConfig,
    RopeScaling,
    Transformer,
    WindowConfig,
    extended_theta,
    from_pretrained,
    save_pretrained,
    window_notice,
    with_window,
)

SMALL = ModelConfig(vocab_size=60, num_layers=4, d_model=32, num_heads=4, max_seq_len=64, rope_theta=1e4)


def test_bases_are_those_of_the_paper():
    assert extended_theta(5e5, 8192, 65536, 128, "auto") == 8e6
    assert extended_theta(8e6, 65536, 524288, 128, "auto") == 1.28e8
    assert extended_theta(5e5, 8192, 65536, 128, "auto-ntk") == pytest.approx(4.1e6, rel=0.01)
    assert extended_theta(8e6, 65536, 524288, 128, "auto-ntk") == pytest.approx(6.6e7, rel=0.01)
    assert extended_theta(1e4, 64, 64, 128, "auto") == 1e4
    assert extended_theta(1e4, 64, 128, 2, "auto-ntk") == 1e4  # one pair, which turns by 1 whatever theta is


def test_a_window_changes_positions_and_nothing_else():
    longer = with_window(SMALL, WindowConfig(max_seq_len=256))
    assert (longer.max_seq_len, longer.rope_theta) == (256, 8e4)
    same = longer.model_copy(update={"max_seq_len": 64, "rope_theta": 1e4})
    assert same == SMALL
    dropped = with_window(SMALL, WindowConfig(max_seq_len=64, without_rotation=1))
    assert dropped.rotary_layers == (False,) * 4 and dropped.rope_theta == 1e4
    some = with_window(SMALL, WindowConfig(max_seq_len=256, without_rotation=4))
    assert some.rotary_layers == (True, True, True, False) and some.rope_theta == 8e4
    yarn = RopeScaling(type="yarn", factor=4, original_max_seq_len=64)
    scaled = with_window(SMALL, WindowConfig(max_seq_len=256, rope_scaling=yarn))
    assert scaled.rope_scaling == yarn and scaled.rope_theta == 1e4


def test_a_scaling_is_not_changed_unasked():
    scaled = SMALL.model_copy(update={"rope_scaling": RopeScaling(type="linear", factor=2)})
    with pytest.raises(UserError, match="scaled already"):
        with_window(scaled, WindowConfig(max_seq_len=256))
    kept = with_window(scaled, WindowConfig(max_seq_len=256, keep_rope_scaling=True))
    assert kept.rope_scaling == scaled.rope_scaling and kept.rope_theta == 8e4
    learned = ModelConfig(vocab_size=60, num_layers=1, d_model=32, num_heads=4, positions="learned")
    with pytest.raises(UserError, match="table of 2048 learned positions"):
        with_window(learned, WindowConfig(max_seq_len=4096))


def test_a_window_with_positions_as_they_were_is_pointed_out():
    longer = with_window(SMALL, WindowConfig(max_seq_len=256, rope_theta="keep"))
    assert "window.rope_theta: auto would make it 80000" in (window_notice(SMALL, longer) or "")
    assert window_notice(SMALL, with_window(SMALL, WindowConfig(max_seq_len=256))) is None


@pytest.mark.parametrize(
    "window",
    [
        WindowConfig(max_seq_len=256),
        WindowConfig(max_seq_len=256, rope_scaling=RopeScaling(type="yarn", factor=4, original_max_seq_len=64)),
        WindowConfig(
            max_seq_len=256,
            rope_scaling=RopeScaling(
                type="longrope",
                factor=4,
                original_max_seq_len=64,
                short_factor=(1.0, 1.0, 1.0, 1.0),
                long_factor=(1.0, 1.5, 3.0, 4.0),
            ),
        ),
    ],
    ids=["theta", "yarn", "longrope"],
)
def test_an_extended_model_is_read_back_and_equals_transformers(window, tmp_path):
    model = Transformer(with_window(SMALL, window)).initialize(2).eval()
    save_pretrained(model, tmp_path)
    read = from_pretrained(tmp_path)
    assert read.config.max_seq_len == 256 and read.config.rope_theta == model.config.rope_theta
    assert read.config.rope_scaling == model.config.rope_scaling or window.rope_scaling is not None
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(200)[None] % 60
    with torch.no_grad():
        ours, again, theirs = model(ids).logits_BTV, read(ids).logits_BTV, peer(ids).logits
    assert torch.allclose(ours, again) and torch.allclose(ours, theirs, atol=1e-5)
