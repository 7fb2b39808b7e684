from __future__ import annotations

import pytest
import torch

from lmlab.models.internals.taps import Recorder, Taps, tap_names

KINDS = ["llama", "qwen3", "olmo2", "olmoe", "gpt2", "no_family"]


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_listening_changes_nothing_and_everything_is_seen(kind, make_model, ids):
    model = make_model(kind)
    seen = Recorder("*")
    output = model(ids, taps=seen)
    close(output.logits_BTV, model(ids).logits_BTV)
    unseen = [name for name in tap_names(2) if name not in seen.values]
    assert unseen == (
        [] if kind != "olmoe" else [f"blocks.{layer}.ffn.hidden" for layer in range(2)]
    )  # each expert has its own


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_is_what_the_names_say(kind, make_model, ids):
    model = make_model(kind)
    seen = Recorder("*")
    output = model(ids, taps=seen)
    heads, width = model.config.num_heads, model.config.head_dim
    for layer, block in enumerate(model.blocks):
        at = {
            name: seen[f"blocks.{layer}.{name}"]
            for name in (each.removeprefix("blocks.0.") for each in tap_names(1)[1:-1])
            if kind != "olmoe" or name != "ffn.hidden"
        }
        assert at["attention.query"].shape == (3, heads, 17, width)
        assert at["attention.pattern"].shape == (3, heads, 17, 17)
        close(at["attention.pattern"].sum(-1), torch.ones(3, heads, 17))
        assert not at["attention.pattern"].triu(1).any()
        close(at["middle"], at["input"] + at["attention.output"])
        close(at["output"], at["middle"] + at["ffn.output"])
        values = at["attention.value"].repeat_interleave(heads // model.config.num_kv_heads, 1)
        close(at["attention.heads"], (at["attention.pattern"] @ values).transpose(1, 2))
        if layer:
            close(at["input"], seen[f"blocks.{layer - 1}.output"])
        if "ffn.hidden" in at and model.config.norm_position == "pre":
            close(block.ffn.down(at["ffn.hidden"]), at["ffn.output"])
    close(seen["final"], output.hidden_BTD)
    close(model.final_norm(seen["blocks.1.output"]), seen["final"])


@pytest.mark.parametrize("name", [name for name in tap_names(2) if "blocks.1" not in name])
def test_a_replacement_takes_effect(name, make_model, ids):
    model = make_model("gpt2")
    before = model(ids).logits_BTV
    doubled = model(ids, taps=Taps({name: lambda x: 2 * x})).logits_BTV
    if name == "embedding":  # the stream is normalized, but what is added to it later is not doubled
        assert not torch.allclose(doubled, before, atol=1e-3)
    else:
        assert not torch.allclose(doubled, before, atol=1e-4)
    close(model(ids, taps=Taps({name: lambda x: x.clone()})).logits_BTV, before)


def test_a_head_can_be_taken_out(make_model, ids):
    model = make_model("llama")

    def without_head_1(out_BTND):
        return out_BTND * (torch.arange(4) != 1)[:, None]

    ablated = model(ids, taps=Taps({"blocks.0.attention.head_outputs": without_head_1})).logits_BTV
    with torch.no_grad():
        model.blocks[0].attention.output.weight[:, 8:16] = 0
    close(ablated, model(ids).logits_BTV)


def test_gradients_flow_to_what_was_put_in(make_model, ids):
    model = make_model()
    added = torch.zeros(32, requires_grad=True)
    loss = model(ids, labels_BT=ids, taps=Taps({"blocks.0.output": lambda x: x + added})).loss.mean
    loss.backward()
    assert added.grad is not None and added.grad.abs().max() > 0


def test_taps_and_a_cache(make_model, ids):
    from lmlab.models import KVCache

    model = make_model()
    whole, part, cache = Recorder("*.heads"), Recorder("*.heads"), KVCache(model.config, 3, 17)
    model(ids, taps=whole)
    model(ids[:, :10], cache=cache)
    model(ids[:, 10:], cache=cache, taps=part)
    for name in whole.names():
        close(part[name], whole[name][:, 10:])


def test_nobody_listens_nobody_is_called(make_model, ids, monkeypatch):
    """Without taps no name is ever made up, let alone looked up."""
    monkeypatch.setattr(Taps, "__call__", lambda *arguments: pytest.fail("a tap was called"))
    monkeypatch.setattr(Taps, "wants", lambda *arguments: pytest.fail("a tap was asked for"))
    make_model()(ids)


def test_an_unknown_name_is_refused_with_the_nearest(make_model, ids):
    with pytest.raises(ValueError, match=r"no intermediate 'blocks.0.atention.query'.*blocks.0.attention.query"):
        make_model()(ids, taps=Recorder("blocks.0.atention.query"))
    with pytest.raises(ValueError, match=r"blocks.2.output"):
        make_model()(ids, taps=Recorder("blocks.2.output"))


def test_a_replacement_of_another_shape_is_refused(make_model, ids):
    with pytest.raises(ValueError, match=r"'blocks.1.middle' holds \[3, 17, 32\]; a listener returned \[3, 17, 1\]"):
        make_model()(ids, taps=Taps({"blocks.1.middle": lambda x: x[..., :1]}))
