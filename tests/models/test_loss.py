from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lmlab.models import IGNORE, Targets, fused_cross_entropy, score_targets


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 7, 16, generator=generator)
    weight = torch.randn(29, 16, generator=generator)
    labels = torch.randint(0, 29, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.3] = IGNORE
    return hidden, weight, labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("block_size", [1, 4, 5, 21, 1000, None])
def test_value_and_gradients_equal_those_of_torch(parts, block_size):
    hidden, weight, labels = parts
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = fused_cross_entropy(hidden, weight, labels, block_size=block_size)
    expected = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(loss.sum, expected, atol=1e-5, rtol=1e-5)
    assert loss.count == (labels != IGNORE).sum()
    for ours, theirs in zip(
        gradients(3 * loss.mean, hidden, weight), gradients(3 * expected / loss.count, hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_is_given_when_only_one_input_needs_it(parts, which):
    tensors = list(parts[:2])
    tensors[which].requires_grad_()
    (ours,) = gradients(fused_cross_entropy(*tensors, parts[2], block_size=4).sum, tensors[which])
    (theirs,) = gradients(
        F.cross_entropy((tensors[0] @ tensors[1].T).flatten(0, 1), parts[2].flatten(), reduction="sum"), tensors[which]
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_tied_matrix_receives_both_of_its_gradients(parts):
    _, weight, labels = parts
    weight.requires_grad_()
    inputs = torch.arange(21).view(3, 7)
    (ours,) = gradients(fused_cross_entropy(F.embedding(inputs, weight), weight, labels, block_size=6).sum, weight)
    (theirs,) = gradients(
        F.cross_entropy((F.embedding(inputs, weight) @ weight.T).flatten(0, 1), labels.flatten(), reduction="sum"),
        weight,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_large_logits_do_not_overflow(parts):
    hidden, weight, labels = parts
    loss = fused_cross_entropy(hidden * 1e3, weight, labels)
    expected = F.cross_entropy((hidden * 1e3 @ weight.T).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss.sum, expected)


def test_nothing_to_predict_is_no_loss_and_no_gradient(parts):
    hidden, weight, labels = parts
    hidden.requires_grad_()
    loss = fused_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE), block_size=4)
    assert loss.sum == 0
    assert loss.count == 0
    assert loss.mean == 0
    assert not gradients(loss.mean, hidden)[0].any()


@pytest.mark.parametrize("block_size", [1, 4, 21, None])
def test_targets_are_scored_by_the_log_softmax_at_their_place(parts, block_size):
    hidden, weight, _ = parts
    log_probs = (hidden @ weight.T).log_softmax(-1)
    rows, positions = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([3, 0, 0, 6, 1])  # one place twice, with two labels
    labels = torch.tensor([5, 1, 2, 0, int(log_probs[0, 1].argmax())])
    found = score_targets(hidden, weight, Targets(rows, positions, labels), block_size=block_size)
    torch.testing.assert_close(found.log_probs_N, log_probs[rows, positions, labels], atol=1e-5, rtol=1e-5)
    assert found.greedy_N.tolist() == (log_probs[rows, positions].argmax(-1) == labels).tolist()
    assert found.greedy_N[-1]


def test_no_targets_give_no_scores(parts):
    hidden, weight, _ = parts
    nothing = torch.zeros(0, dtype=torch.long)
    assert score_targets(hidden, weight, Targets(nothing, nothing, nothing)).log_probs_N.shape == (0,)


@pytest.mark.parametrize("block_size", [1, 4, 5, 21, None])
@pytest.mark.parametrize("vocab_size", [None, 23])
def test_z_loss_and_a_padded_vocabulary(parts, block_size, vocab_size):
    hidden, weight, labels = parts
    labels = torch.where(labels == IGNORE, IGNORE, labels % 23)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = fused_cross_entropy(hidden, weight, labels, z_loss=0.1, vocab_size=vocab_size, block_size=block_size)
    logits = (hidden @ weight[:vocab_size].T).flatten(0, 1)
    kept = labels.flatten() != IGNORE
    z = 0.1 * (logits.logsumexp(-1).square() * kept).sum()
    expected = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum") + z
    torch.testing.assert_close(loss.sum, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.z_loss, z.detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        gradients(loss.mean, hidden, weight), gradients(expected / kept.sum(), hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_logits_of_a_batch_never_exist_at_once(monkeypatch):
    """With a vocabulary of 32,768 and 4,096 tokens they would take 512 MiB; no product of the loss is near that."""
    from lmlab.models import loss as module

    sizes, product = [], module.mm
    monkeypatch.setattr(module, "mm", lambda a, b: sizes.append(len(a) * b.shape[1] * 4) or product(a, b))
    hidden, weight = torch.zeros(4096, 8, requires_grad=True), torch.zeros(32_768, 8, requires_grad=True)
    fused_cross_entropy(hidden, weight, torch.zeros(4096, dtype=torch.long)).sum.backward()
    assert max(sizes) <= 512 * 32_768 * 4


def test_a_second_backward_pass_is_refused(parts):
    hidden, weight, labels = parts
    loss = fused_cross_entropy(hidden.requires_grad_(), weight, labels).sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be had once"):
        loss.backward()
