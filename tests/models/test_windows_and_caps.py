"""Sliding windows and capped scores: every way to compute attention, and the losses, against plain formulas."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import UserError
from lmlab.models import Targets, fused_cross_entropy, score_targets, token_log_probs
from lmlab.models.attention.backends import attend
from lmlab.models.attention.rope import text_lengths
from lmlab.models.attention.visibility import Visibility, document_starts
from lmlab.models.loss import IGNORE

LENGTH, HEADS, WIDTH = 300, 4, 8
CPU = torch.device("cpu")


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, HEADS, LENGTH, WIDTH), (2, 2, LENGTH, WIDTH), (2, 2, LENGTH, WIDTH))
    return [torch.randn(shape, generator=generator).mul_(2).requires_grad_() for shape in shapes]


def plain(q, k, v, mask, soft_cap):
    k, v = (x.repeat_interleave(HEADS // 2, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * WIDTH**-0.5
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def visibilities(packed):
    """Ours with a window of 37, and the mask by its definition."""
    index = torch.arange(LENGTH)
    near = (index <= index[:, None]) & (index > index[:, None] - 37)
    if not packed:
        return Visibility(LENGTH, LENGTH).within(37, CPU), near[None, None]
    documents = torch.stack([(index >= 20).long() + (index >= 250).long(), (index >= 130).long()])
    same = documents[:, :, None] == documents[:, None]
    return Visibility(LENGTH, LENGTH, document_starts(documents)).within(37, CPU), (near & same)[:, None]


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("backend", ["sdpa", "runs", "blocked", "flex"])
def test_windows_and_caps_are_the_same_in_every_back_end(backend, packed, soft_cap):
    visibility, mask = visibilities(packed)
    q, k, v = inputs()
    expected = plain(q, k, v, mask, soft_cap)
    if backend == "flex":  # no gradients on a CPU
        found = attend(*(x.detach() for x in (q, k, v)), visibility, backend, soft_cap)
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)
        return
    out = attend(q, k, v, visibility, backend, soft_cap)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for found, right in zip(torch.autograd.grad((out * weights).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(found, right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_the_newest_token_sees_its_window_alone(soft_cap):
    q, k, v = (x.detach() for x in inputs())
    visibility = Visibility(1, LENGTH).within(37, CPU)
    mask = torch.arange(LENGTH) >= LENGTH - 37
    expected = plain(q[:, :, -1:], k, v, mask, soft_cap)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, visibility, "one query", soft_cap), expected)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_losses_with_caps_and_biases_have_the_gradients_of_the_plain_formula(biased, soft_cap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 16, generator=generator).requires_grad_()
    weight = torch.randn(40, 16, generator=generator).requires_grad_()
    bias = torch.randn(40, generator=generator).mul_(3).requires_grad_() if biased else None
    labels = torch.randint(0, 38, (3, 5), generator=generator)
    labels[0, 1] = IGNORE
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    logits = logits[..., :38]  # the other rows only pad the vocabulary
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORE)
    learned = (hidden, weight) if bias is None else (hidden, weight, bias)
    wanted = torch.autograd.grad(-log_probs.sum(), learned, retain_graph=True)
    told = {"vocab_size": 38, "soft_cap": soft_cap, "bias_V": bias}
    fused = fused_cross_entropy(hidden, weight, labels, block_size=4, **told)
    torch.testing.assert_close(fused.tokens, -log_probs.detach())
    found = token_log_probs(hidden, weight, labels, block_size=4, **told)
    torch.testing.assert_close(found, log_probs)
    for loss in (fused.sum, -found.sum()):
        for gradient, right in zip(torch.autograd.grad(loss, learned), wanted, strict=True):
            torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4)
    targets = Targets(torch.tensor([1]), torch.tensor([2]), labels[1, 2:3])
    part = None if bias is None else bias[:38].detach()
    scored = score_targets(hidden.detach(), weight[:38].detach(), targets, soft_cap=soft_cap, bias_V=part)
    torch.testing.assert_close(scored.log_probs_N, log_probs[1, 2:3].detach())


def test_lengths_are_those_of_each_row_and_document():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    assert text_lengths(positions).tolist() == [[3], [5]]
    starts = torch.tensor([[0, 0, 0, 3, 3], [0, 0, 0, 0, 0]])
    assert text_lengths(positions, starts).tolist() == [[3, 3, 3, 2, 2], [5] * 5]


def test_a_text_that_crosses_the_border_of_longrope_is_refused(make_model):
    scaling = {
        "type": "longrope",
        "factor": 4.0,
        "original_max_seq_len": 6,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    from lmlab.models import GenerationConfig, KVCache, generate

    model, ids = make_model("llama", rope_scaling=scaling), torch.arange(8)[None]
    cache = KVCache(model.config, 1, 8)
    model(ids[:, :5], cache=cache)
    with pytest.raises(UserError, match="more than 6 tokens"):
        model(ids[:, 5:], cache=cache)
    with pytest.raises(UserError, match="crosses 6 tokens"):
        generate(model, [[1, 2, 3]], GenerationConfig(max_new_tokens=5))
    assert len(generate(model, [list(range(7))], GenerationConfig(max_new_tokens=5))[0][0].ids) == 5


def test_absurd_sizes_are_refused_before_anything_is_built():
    from pydantic import ValidationError

    from lmlab.models import ModelConfig

    usual = {"vocab_size": 50, "num_layers": 2, "d_model": 32, "num_heads": 4}
    moe = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 8}
    absurd = [
        {name: 10**9} for name in ("num_layers", "d_model", "vocab_size", "num_heads", "head_dim", "d_ff", "num_labels")
    ]
    absurd += [{"ffn": "moe", "moe": moe | {name: 10**9}} for name in ("num_experts", "expert_hidden_size")]
    absurd += [{"num_layers": 4096, "ffn": "moe", "moe": moe | {"num_experts": 2**14}}]
    absurd += [{"num_layers": 4096, "d_model": 2**20, "num_heads": 16}, {"max_seq_len": 10**12}]
    for changes in absurd:
        with pytest.raises(ValidationError):
            ModelConfig(**usual | changes)
