"""Optimizers against those of `torch.optim`."""

from __future__ import annotations

import copy

import torch

from lmlab.models import ModelConfig, Transformer
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
