"""Steps in which nothing is to be learned change nothing, and are few."""

from __future__ import annotations

import pytest
import torch
from counting import CountingRows, counting_trainer

from lmlab.data import Loader
from lmlab.errors import LmlabError
from lmlab.train import TrainerConfig

SETTINGS = {"batch_size": 4, "precision": "fp32", "device": "cpu", "checkpoint_every": 1, "log_every": 1}


class _Masked(CountingRows):
    """The rows from `first` on have no labels."""

    def __init__(self, first, count):
        self.empty = range(first, first + count)

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if index in self.empty:
            row["labels"][:] = -100
        return row


def _trainer(directory, rows, steps):
    trainer = counting_trainer(directory, TrainerConfig(steps=steps, **SETTINGS))
    trainer.loader = Loader(rows, 4, 3, shuffle=False)
    trainer._read = trainer.loader.state()
    return trainer


def test_a_step_without_labels_leaves_the_weights_as_they_are(tmp_path):
    trainer = _trainer(tmp_path, _Masked(4, 4), 1)
    trainer.fit()
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    longer = _trainer(tmp_path, _Masked(4, 4), 2)
    longer.plan = trainer.plan
    longer.config = trainer.config.model_copy(update={"schedule": trainer.config.schedule})
    longer.fit()
    assert longer.step == 2 and longer.empty == 1
    assert all(torch.equal(before[name], each) for name, each in longer.model.named_parameters())


def test_many_of_them_stop_the_training(tmp_path):
    with pytest.raises(LmlabError, match="By step 3, 2 steps had no token that is to be learned"):
        _trainer(tmp_path, _Masked(4, 30), 10).fit()
