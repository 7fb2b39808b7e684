from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.hardware import ways
from lmlab.models import KVCache
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.attention.backends import attend
from lmlab.models.attention.visibility import Visibility, document_starts


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@st.composite
def cases(draw):
    """Queries, keys and values in which rows are cut into documents, or continue what stands in a cache."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 300))
    earlier = draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shape = (
        (batch, kv_heads * group, length, 8),
        (batch, kv_heads, earlier + length, 8),
        (batch, kv_heads, earlier + length, 8),
    )
    qkv = [torch.randn(each, generator=generator) for each in shape]
    starts = None
    if draw(st.booleans()):
        documents = (
            torch.rand(batch, earlier + length, generator=generator) < draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
        ).cumsum(1)
        starts = document_starts(documents)[:, earlier:]
    return qkv, Visibility(length, earlier + length, starts)


def with_gradients(qkv, visibility, backend):
    qkv = [each.clone().requires_grad_() for each in qkv]
    out = attend(*qkv, visibility, backend)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return out.detach(), torch.autograd.grad((out * weights).sum(), qkv)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(["fused", "mixed", "blocks"]))
def test_every_way_of_a_cpu_gives_the_numbers_of_the_dense_mask(case, way):
    qkv, visibility = case
    with ways.using({question: way for question in ways.QUESTIONS if question.startswith("attention")}):
        out, gradients = with_gradients(qkv, visibility, "runs")
    expected, expected_gradients = with_gradients(qkv, visibility, "sdpa")
    close(out, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        close(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_the_newest_query_alone_gives_the_numbers_of_the_dense_mask(case):
    (q, k, v), visibility = case
    starts = None if visibility.starts_BT is None else visibility.starts_BT[:, -1:]
    newest = Visibility(1, visibility.num_keys, starts)
    with torch.no_grad():
        close(attend(q[:, :, -1:], k, v, newest, "one query"), attend(q, k, v, visibility, "sdpa")[:, -1:])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=8, deadline=None)
@given(cases())
def test_flex_attention_gives_the_numbers_of_the_dense_mask(case):
    (q, k, v), visibility = case
    length = visibility.num_queries
    if visibility.num_keys == length:
        close(attend(q, k, v, visibility, "flex"), attend(q, k, v, visibility, "sdpa"))
    else:
        with pytest.raises(ValueError, match="'flex' does not handle"):
            attend(q, k, v, visibility, "flex")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_documents_on_a_gpu_give_the_numbers_of_the_dense_mask(backend):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 256, 64, generator=generator).cuda().bfloat16()
    k, v = (torch.randn(2, 2, 256, 64, generator=generator).cuda().bfloat16() for _ in range(2))
    documents = (torch.rand(2, 256, generator=generator) < 0.02).cumsum(1).cuda()
    for starts in (None, document_starts(documents)):
        (out, gradients), (expected, expected_gradients) = (
            with_gradients([q, k, v], Visibility(256, 256, starts), name) for name in (backend, "sdpa")
        )
        for ours, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
            close(ours.float(), theirs.float(), 3e-2)


@pytest.mark.parametrize("backend", ["runs", "blocked", "flex", "varlen"])
def test_a_back_end_refuses_what_it_cannot_compute(backend):
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match=f"'{backend}' does not handle padding"):
        attend(q, q, q, Visibility(4, 4, mask_BTS=torch.ones(1, 1, 4, 4, dtype=torch.bool)), backend)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "gpt2"])
def test_one_input_for_each_head_gives_what_one_for_all_gives(kind, make_model):
    """The same input for every head changes nothing, and each head reads its own input only."""
    model = make_model(kind)
    attention, heads, kv_heads = model.blocks[1].attention, model.config.num_heads, model.config.num_kv_heads
    x, other = torch.randn(2, 2, 7, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    context = AttentionContext(Visibility(7, 7))
    each = {"query": heads, "key": kv_heads, "value": kv_heads}
    spread = {name: x[:, :, None].expand(-1, -1, count, -1) for name, count in each.items()}
    expected = attention.heads(x, context)
    close(attention.heads(context=context, **spread), expected)
    if kind == "olmo2":  # its norm runs over all heads, so they are not independent
        return
    for name, count in each.items():
        changed = spread[name].clone()
        changed[:, :, 1] = other
        out = attention.heads(context=context, **(spread | {name: changed}))
        touched = torch.arange(heads) // (heads // count) == 1
        close(out[:, :, ~touched], expected[:, :, ~touched])
        assert (out[:, 1:, touched] - expected[:, 1:, touched]).abs().amax((1, 3)).min() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_outputs_of_the_heads_sum_to_the_output(kind, make_model):
    attention = make_model(kind).blocks[0].attention
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    context = AttentionContext(Visibility(7, 7))
    total = attention.head_outputs(attention.heads(x, context)).sum(2)
    if attention.output.bias is not None:
        total = total + attention.output.bias
    close(total, attention(x, context))


def test_a_wrong_number_of_inputs_is_refused(make_model):
    attention = make_model().blocks[0].attention
    with pytest.raises(ValueError, match="one input for each of 4 heads, got 3"):
        attention.heads(torch.randn(1, 2, 3, 32), AttentionContext(Visibility(2, 2)))


@pytest.mark.parametrize("backend", ["sdpa", "runs", "blocked", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_back_end_of_a_model_can_be_chosen(backend, make_model, ids):
    model = make_model()
    expected = model(ids).logits_BTV
    model.attention_backend = backend
    with torch.no_grad():
        close(model(ids).logits_BTV, expected)
    if backend == "flex":
        with pytest.raises(ValueError, match="'flex' does not handle gradients on a CPU"):
            model(ids)
        with pytest.raises(ValueError, match="'flex' does not handle padding between tokens"):
            model(ids, attention_mask_BT=torch.arange(17).expand(3, -1) != 5)
    elif backend == "sdpa":
        cache = KVCache(model.config, 3, 17)
        model(ids[:, :9], cache=cache)
        close(model(ids[:, 9:], cache=cache).logits_BTV, expected[:, 9:])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("count", [2, 9, 16])
def test_a_few_tokens_behind_a_cache_see_what_more_would(count, window):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 40, 8, generator=generator) for heads in (4, 2, 2))
    seen = Visibility(count, 40)
    if window is not None:
        seen = seen.within(window, q.device)
    with torch.no_grad():
        few = attend(q[:, :, -count:], k, v, seen)
        expected = attend(q[:, :, -count:], k, v, seen, "blocked")
    torch.testing.assert_close(few, expected, rtol=1e-5, atol=1e-5)
