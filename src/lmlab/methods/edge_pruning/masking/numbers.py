"""Examples as the training loop sees them, and trainings of few numbers on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lmlab.data import Loader
from lmlab.methods.edge_pruning.config import OptimalConfig, RankingConfig
from lmlab.train import OptimizerConfig, ScheduleConfig, StepFunction, Trainer, TrainerConfig


class Numbers:
    """Rows of a whole training that only say which example they are; each epoch has an order of its own.

    It is drawn here because the loader's shuffle is made for many rows: it walks through 65,536 places until one is
    among the rows, which takes 0.8 ms for a row of 48, and for a batch longer than a step on a small model.

    Arguments:
        count: of the examples.
        total: rows of the training.
        seed: of the order.
    """

    def __init__(self, count: int, total: int, seed: int) -> None:
        self.count, self.total, self.seed = count, total, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return {"example": self._order[place]}


def loader_of(count: int, steps: int, batch: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
    """So many steps on batches of so many examples, by their numbers."""
    return Loader(Numbers(count, steps * batch, seed), batch, seed, rank, world_size, shuffle=False)


def fit_on_examples(
    numbers: nn.Module,
    step: StepFunction,
    count: int,
    config: OptimalConfig | RankingConfig,
    device: torch.device,
    seed: int,
    *,
    final_fraction: float,
    directory: Path | None = None,
    **settings: Any,
) -> None:
    """Train what a step function learns from examples, which it is given by their numbers.

    Arguments:
        count: of the examples.
        final_fraction: of the learning rate, at the end.
        directory: keeps metrics and checkpoints; None for one that goes again.
        settings: further ones of the trainer.
    """
    batch = min(config.batch_size, count)
    rows = config.micro_batch_size and max(
        n for n in range(1, min(config.micro_batch_size, batch) + 1) if batch % n == 0
    )
    trainer = TrainerConfig(
        steps=config.steps,
        batch_size=batch,
        micro_batch_size=rows,
        optimizer=OptimizerConfig(learning_rate=config.learning_rate, weight_decay=0, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.02, final_fraction=final_fraction),
        precision="fp32",
        device=str(device),
        **settings,
    )
    with tempfile.TemporaryDirectory() as temporary:
        loader = loader_of(count, config.steps, batch, seed)
        Trainer(numbers, step, loader, trainer, directory or Path(temporary)).fit()
