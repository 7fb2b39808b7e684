"""Optimizers against those of `torch.optim`."""

from __future__ import annotations

import copy

import pytest
import torch

from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer, known_fingerprint, weights_state
from lmlab.train import OptimizerConfig, Optimizers


def test_rmsprop_takes_the_steps_of_torch_and_its_state_comes_back():
    model = Transformer(ModelConfig(vocab_size=20, num_layers=1, d_model=8, num_heads=2)).initialize(0)
    other = copy.deepcopy(model)
    ours = Optimizers(model, OptimizerConfig(name="rmsprop", learning_rate=1e-2, weight_decay=0, betas=(0.9, 0.99)))
    theirs = torch.optim.RMSprop(other.parameters(), lr=1e-2, alpha=0.99, eps=1e-8)
    ids = torch.arange(12).view(2, 6)
    for number in range(4):
        for each, optimizer in ((model, ours), (other, theirs)):
            each(ids, labels_BT=ids).loss.mean.backward()
            optimizer.step()
            each.zero_grad()
        if number == 1:  # as a resumed training does
            state = {name: tensor.clone() for name, tensor in ours.state_tensors().items()}
            ours = Optimizers(
                model, OptimizerConfig(name="rmsprop", learning_rate=1e-2, weight_decay=0, betas=(0.9, 0.99))
            )
            ours.load_state_tensors(state)
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_what_fused_kernels_read_comes_back_to_the_device_of_the_parameter():
    model = Transformer(ModelConfig(vocab_size=20, num_layers=1, d_model=8, num_heads=2)).initialize(0)
    ours, ids = Optimizers(model, OptimizerConfig()), torch.arange(12).view(2, 6)
    model(ids, labels_BT=ids).loss.mean.backward()
    ours.step()
    elsewhere = Optimizers(copy.deepcopy(model).to("meta"), OptimizerConfig())  # a device that is not the checkpoint's
    elsewhere.load_state_tensors(ours.state_tensors())
    counts = [value for name, value in elsewhere.state_tensors().items() if name.endswith(".step")]
    assert counts and all(count.device.type == "meta" for count in counts)


@pytest.mark.parametrize("changes", [{}, {"num_labels": 3}, {"tie_embeddings": False, "positions": "learned"}])
def test_muon_trains_the_matrices_of_blocks_and_no_other(changes):
    model = Transformer(ModelConfig(vocab_size=20, num_layers=2, d_model=8, num_heads=2, **changes)).initialize(0)
    optimizers = Optimizers(model, OptimizerConfig(name="muon"))
    ids = torch.arange(12).view(2, 6)
    output = model(ids) if "num_labels" in changes else model(ids, labels_BT=ids)
    (output.scores_BC.sum() if "num_labels" in changes else output.loss.mean).backward()
    optimizers.step()
    by_muon = {key.removesuffix(".momentum_buffer") for key in optimizers.state_tensors() if "momentum" in key}
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert by_muon == {name for name in matrices if name.startswith("blocks.")}
    assert matrices - by_muon >= {"score.weight" if "num_labels" in changes else "embedding.weight"}


def test_muon_without_a_matrix_to_train_is_refused():
    with pytest.raises(UserError, match="AdamW would train everything"):
        Optimizers(torch.nn.Linear(3, 4), OptimizerConfig(name="muon"))


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_whoever_knows_the_weights_sees_that_a_step_has_changed_them(name):
    model = Transformer(ModelConfig(vocab_size=20, num_layers=1, d_model=8, num_heads=2)).initialize(0)
    optimizers = Optimizers(model, OptimizerConfig(name=name, learning_rate=1e-2))
    before, known = weights_state(model), known_fingerprint(model)
    ids = torch.arange(12).view(2, 6)
    model(ids, labels_BT=ids).loss.mean.backward()
    assert weights_state(model) == before and known_fingerprint(model) == known
    optimizers.step()
    assert weights_state(model) != before and known_fingerprint(model) != known
