from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model

from lmlab.models import KVCache, ModelConfig, RopeScaling, Transformer, from_pretrained, save_pretrained
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.attention.visibility import Visibility

ALL = ["llama", "qwen2", "qwen3", "olmo2", "olmoe", "gpt2", "opt", "no_family"]


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"tie_embeddings": True}, {"d_ff": None}], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_parameter_count_is_exact(kind, changes, make_model):
    model = make_model(kind, **changes)
    assert model.config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    tables = [model.embedding.weight] + ([model.position_embedding.weight] if model.position_embedding else [])
    assert model.config.num_parameters(embedding=False) == model.config.num_parameters() - sum(
        table.numel() for table in tables
    )


def test_a_large_model_can_be_counted_without_memory():
    config = ModelConfig(
        vocab_size=128_256, num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, d_ff=14_336, tie_embeddings=False
    )
    with torch.device("meta"):
        model = Transformer(config)
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters() == 8_030_261_248
    )  # Llama 3 8B


@pytest.mark.parametrize("kind", ALL)
def test_saving_and_loading_gives_back_the_same_model(kind, make_model, ids, tmp_path):
    model = make_model(kind)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(ids).logits_BTV, model(ids).logits_BTV)


@pytest.mark.parametrize("kind", ALL)
def test_packed_documents_equal_the_same_documents_alone(kind, make_model, ids):
    model = make_model(kind)
    lengths = [5, 1, 8, 3]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(3, -1)
    packed = model(ids, document_ids_BT=documents).logits_BTV
    alone = torch.cat([model(part).logits_BTV for part in ids.split(lengths, 1)], 1)
    close(packed, alone)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mix_of_lengths_can_be_packed(data):
    """Rows of several blocks of queries, with documents of one token, of whole blocks, and across blocks; the
    loss too.
    """
    kind = data.draw(st.sampled_from(ALL))
    model = random_model(kind, max_seq_len=320)
    lengths = data.draw(
        st.lists(st.sampled_from([1, 2, 7, 64, 127, 128, 129]) | st.integers(1, 150), min_size=1, max_size=6).filter(
            lambda x: sum(x) <= 320
        )
    )
    ids = torch.randint(0, 61, (2, sum(lengths)), generator=torch.Generator().manual_seed(sum(lengths)))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed = model(ids, document_ids_BT=documents, labels_BT=ids, logits="all")
    alone = [model(part, labels_BT=part, logits="all") for part in ids.split(lengths, 1)]
    close(packed.logits_BTV, torch.cat([each.logits_BTV for each in alone], 1))
    close(packed.loss.sum, torch.stack([each.loss.sum for each in alone]).sum())


def test_gradients_of_packed_documents_are_those_of_the_documents(make_model, ids):
    lengths = [5, 1, 8, 3]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(3, -1)
    packed, alone = make_model("qwen3"), make_model("qwen3")
    packed(ids, document_ids_BT=documents, labels_BT=ids).loss.mean.backward()
    for part in ids.split(lengths, 1):
        (alone(part, labels_BT=part).loss.sum / ids.numel()).backward()
    for (name, ours), theirs in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_boundaries_may_differ_between_the_rows_of_a_batch(make_model, ids):
    model = make_model()
    documents = torch.stack([torch.arange(17) >= cut for cut in (4, 9, 17)]).long()
    packed = model(ids, document_ids_BT=documents).logits_BTV
    for row, cut in enumerate((4, 9)):
        close(packed[row, cut:], model(ids[row : row + 1, cut:]).logits_BTV[0])
    close(packed[2], model(ids[2:]).logits_BTV[0])


@pytest.mark.parametrize("kind", ALL)
def test_changing_a_later_token_never_changes_earlier_logits(kind, make_model, ids):
    model = make_model(kind)
    before = model(ids).logits_BTV
    for position in (1, 8, 16):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 61
        after = model(changed).logits_BTV
        close(after[:, :position], before[:, :position], 1e-6)
        assert not torch.allclose(after[:, position], before[:, position])


@pytest.mark.parametrize("kind", ALL)
def test_embeddings_in_place_of_ids_give_the_same_logits(kind, make_model, ids):
    model = make_model(kind)
    assert torch.equal(model(inputs_embeds_BTD=model.embedding(ids)).logits_BTV, model(ids).logits_BTV)


def test_neither_or_both_inputs_are_refused(make_model, ids):
    model = make_model()
    with pytest.raises(ValueError, match="either"):
        model()
    with pytest.raises(ValueError, match="either"):
        model(ids, inputs_embeds_BTD=model.embedding(ids))


def left_pad(ids, lengths):
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]
    return ids * mask, mask


@pytest.mark.parametrize("kind", ALL)
def test_left_padded_rows_equal_unpadded_rows(kind, make_model, ids):
    model = make_model(kind)
    lengths = [17, 1, 9]
    padded, mask = left_pad(ids, lengths)
    logits = model(padded, attention_mask_BT=mask).logits_BTV
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        close(logits[row, -length:], model(ids[row : row + 1, -length:]).logits_BTV[0])


@pytest.mark.parametrize(
    "pieces", [[1] * 17, [10, 1, 1, 1, 1, 1, 1, 1], [4, 5, 8]], ids=["token by token", "prompt first", "pieces"]
)
@pytest.mark.parametrize("kind", ALL)
def test_a_cached_pass_equals_the_full_pass(kind, pieces, make_model, ids):
    model = make_model(kind)
    cache = KVCache(model.config, 3, 17)
    cached = torch.cat([model(part, cache=cache).logits_BTV for part in ids.split(pieces, 1)], 1)
    close(cached, model(ids).logits_BTV)


def test_a_cached_pass_over_left_padded_rows_equals_unpadded_rows(make_model, ids):
    model = make_model()
    lengths = [17, 6, 11]
    padded, mask = left_pad(ids, lengths)
    cache = KVCache(model.config, 3, 17)
    parts = zip(padded.split([13, 2, 1, 1], 1), mask.split([13, 2, 1, 1], 1), strict=True)
    cached = torch.cat([model(part, attention_mask_BT=valid, cache=cache).logits_BTV for part, valid in parts], 1)
    for row, length in enumerate(lengths):
        close(cached[row, -length:], model(ids[row : row + 1, -length:]).logits_BTV[0])


def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_been_seen(make_model, ids):
    model = make_model()
    cache = KVCache(model.config, 3, 17)
    model(ids.flip(1)[:, :5], cache=cache)
    cache.crop(0)
    model(ids[:, :10], cache=cache)
    cache.crop(6)
    close(model(ids[:, 6:], cache=cache).logits_BTV, model(ids).logits_BTV[:, 6:])


def test_a_full_cache_refuses_more_tokens(make_model, ids):
    model = make_model()
    with pytest.raises(ValueError, match="holds 16 tokens; 17"):
        model(ids, cache=KVCache(model.config, 3, 16))


def test_explicit_positions_replace_the_default_ones(make_model, ids):
    model = make_model("gpt2")
    close(model(ids, position_ids_BT=torch.arange(17).expand(3, -1)).logits_BTV, model(ids).logits_BTV)
    assert not torch.allclose(
        model(ids, position_ids_BT=torch.arange(3, 20).expand(3, -1)).logits_BTV, model(ids).logits_BTV, atol=1e-2
    )


def test_rotary_logits_depend_on_relative_positions_only(make_model, ids):
    model = make_model("llama")
    close(model(ids, position_ids_BT=torch.arange(9, 26).expand(3, -1)).logits_BTV, model(ids).logits_BTV, 1e-4)


def test_last_logits_are_those_of_the_last_position(make_model, ids):
    model = make_model()
    close(model(ids, logits="last").logits_BTV, model(ids).logits_BTV[:, -1:])
    assert model(ids, logits="none").logits_BTV is None


def test_the_loss_is_the_cross_entropy_of_the_labels(make_model, ids):
    model = make_model()
    labels = ids.roll(-1, 1)
    labels[:, ::4] = -100
    loss = model(ids, labels_BT=labels).loss
    close(loss.mean, torch.nn.functional.cross_entropy(model(ids).logits_BTV.flatten(0, 1), labels.flatten()))
    assert loss.count == (labels != -100).sum()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_key_and_value_inputs_default_to_the_query_input(kind, make_model):
    attention = make_model(kind).blocks[0].attention
    x, other = torch.randn(2, 2, 7, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    context = AttentionContext(Visibility(x.shape[1], x.shape[1]))
    expected = attention(x, context)
    close(attention(x, context, key=x, value=x), expected)
    for inputs in ({"key": other}, {"value": other}):
        assert not torch.allclose(attention(x, context, **inputs), expected, atol=1e-3)


def test_the_output_of_attention_is_linear_in_the_value_input(make_model):
    attention = make_model().blocks[0].attention
    x, a, b = torch.randn(3, 2, 7, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    context = AttentionContext(Visibility(x.shape[1], x.shape[1]))
    close(
        attention(x, context, value=2 * a + b),
        2 * attention(x, context, value=a) + attention(x, context, value=b),
        1e-4,
    )


@pytest.mark.parametrize("kind", ALL)
def test_initialization_depends_on_the_seed_alone(kind, make_model):
    first, again, other = (make_model(kind, seed=9).initialize(seed) for seed in (3, 3, 4))
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_initial_values_are_as_documented(make_model):
    model = make_model("gpt2", d_model=256, d_ff=1024).initialize(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            expected = 0.02 / 2 if name.endswith(("attention.output.weight", "ffn.down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_a_model_built_on_the_meta_device_can_be_initialized(make_model):
    config = make_model().config
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device="cpu").initialize(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), Transformer(config).initialize(3).parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads"),
        ({"d_model": 33}, "d_model 33 is not a multiple of num_heads 4"),
        ({"head_dim": 7}, "even head_dim"),
        ({"norm_bias": True}, "rmsnorm has no bias"),
    ],
)
def test_impossible_configurations_are_refused(changes, message, make_model):
    with pytest.raises(ValueError, match=message):
        make_model("llama", **changes)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_the_vocabulary_never_get_probability(tied, make_model, ids, tmp_path):
    model = make_model(vocab_multiple=64, tie_embeddings=tied)
    assert model.embedding.weight.shape == (64, 32)
    assert model(ids).logits_BTV.shape == (3, 17, 61)
    with torch.no_grad():
        (model.embedding if tied else model.head).weight[61:] = 100.0
    loss = model(ids, labels_BT=ids).loss.mean
    close(loss, torch.nn.functional.cross_entropy(model(ids).logits_BTV.flatten(0, 1), ids.flatten()))
    loss.backward()
    gradient = (model.embedding if tied else model.head).weight.grad
    assert not gradient[61:].any() and gradient[:61].any()
    save_pretrained(model, tmp_path)
    close(from_pretrained(tmp_path)(ids).logits_BTV, model(ids).logits_BTV)


@pytest.mark.parametrize(("output_init", "scale"), [("same", 1.0), ("depth_scaled", 0.5), ("zero", 0.0)])
@pytest.mark.parametrize("init", ["normal", "truncated_normal"])
@pytest.mark.parametrize("kind", ["llama", "olmoe"])
def test_schemes_of_initialization(init, output_init, scale, kind, ids):
    sizes = {"vocab_size": 61, "num_layers": 2, "d_model": 128, "num_heads": 4, "d_ff": 512}
    moe = {"ffn": "moe", "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 256}} if kind == "olmoe" else {}
    model = Transformer(ModelConfig(**sizes, **moe, init=init, init_std=0.03, output_init=output_init)).initialize(0)
    shortened = 0.9866 if init == "truncated_normal" else 1.0  # the standard deviation of a normal cut at 3
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            continue
        writes = name.endswith(("attention.output.weight", "ffn.down.weight", "experts.down"))
        assert parameter.std().item() == pytest.approx(
            0.03 * shortened * (scale if writes else 1.0), rel=0.1 if parameter.numel() < 1000 else 0.04
        ), name
        if init == "truncated_normal":
            assert parameter.abs().max() <= 0.09
    if output_init == "zero":  # every layer starts as the identity
        close(model(ids).hidden_BTD, model.final_norm(model.embedding(ids)))


def test_the_initialization_of_olmo_1_goes_by_width_and_depth():
    sizes = {"vocab_size": 61, "num_layers": 3, "d_model": 128, "num_heads": 4, "ffn": "moe", "tie_embeddings": False}
    model = Transformer(
        ModelConfig(**sizes, moe={"num_experts": 4, "top_k": 2, "expert_hidden_size": 256}, init="mitchell")
    ).initialize(0)
    wide, inner, cut = 128**-0.5, 256**-0.5, 0.9866
    expected = {
        "embedding.weight": wide,
        "head.weight": wide,
        "blocks.2.attention.query.weight": wide,
        "blocks.2.ffn.experts.gate_up": wide,
        "blocks.0.attention.output.weight": wide / 2**0.5,
        "blocks.2.attention.output.weight": wide / 6**0.5,
        "blocks.0.ffn.experts.down": inner / 2**0.5,
        "blocks.1.ffn.experts.down": inner / 2,
    }
    for name, std in expected.items():
        drawn = model.get_parameter(name)
        assert drawn.std().item() == pytest.approx(std * cut, rel=0.04), name
        assert drawn.abs().max() <= 3 * std


def test_the_base_of_rotary_positions_changes_at_run_time(make_model, ids):
    model, other = make_model("llama"), make_model("llama", rope_theta=500.0)
    before = model(ids).logits_BTV
    model.set_rope(theta=500.0)
    close(model(ids).logits_BTV, other(ids).logits_BTV)
    assert not torch.allclose(model(ids).logits_BTV, before, atol=1e-3)
    model.set_rope(scaling=RopeScaling(type="linear", factor=2.0))
    close(
        model(ids).logits_BTV,
        make_model("llama", rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})(ids).logits_BTV,
    )
    with pytest.raises(ValueError, match="learned positions has no rotary"):
        make_model("gpt2").set_rope(theta=500.0)


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_of_a_tied_table_is_that_of_both_its_uses(kind, make_model, ids):
    fused, plain = make_model(kind, tie_embeddings=True), make_model(kind, tie_embeddings=True)
    fused(ids, labels_BT=ids).loss.mean.backward()
    torch.nn.functional.cross_entropy(plain(ids).logits_BTV.flatten(0, 1), ids.flatten()).backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_losses_of_two_passes_can_be_added(make_model, ids):
    """The head's gradient waits for the lookup of its own pass, whatever the order of the backward passes."""
    together, apart = make_model(), make_model()
    (together(ids, labels_BT=ids).loss.mean + 2 * together(ids.flip(1), labels_BT=ids).loss.mean).backward()
    apart(ids, labels_BT=ids).loss.mean.backward()
    (2 * apart(ids.flip(1), labels_BT=ids).loss.mean).backward()
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", ["llama", "olmo2", "olmoe", "gpt2"])
def test_gradients_agree_with_finite_differences(kind, make_model, ids):
    model = make_model(kind).double()
    embedded = model.embedding(ids[:1, :5]).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(inputs_embeds_BTD=x).logits_BTV, (embedded,), fast_mode=True)
    direction = torch.randn(embedded.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    above, loss, below = (
        model(inputs_embeds_BTD=embedded + step * direction, labels_BT=ids[:1, :5], z_loss=0.1).loss.sum
        for step in (1e-6, 0, -1e-6)
    )
    (gradient,) = torch.autograd.grad(loss, embedded)
    close((gradient * direction).sum(), (above - below) / 2e-6)
