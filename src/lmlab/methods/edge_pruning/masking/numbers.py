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
    """Rows that only say which example they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example": np.int64(index)}


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
        loader = Loader(Numbers(count), batch, seed, 0, 1)
        Trainer(numbers, step, loader, trainer, directory or Path(temporary)).fit()
