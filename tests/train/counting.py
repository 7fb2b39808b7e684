"""A small model that learns to count: what the tests of the loop train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from lmlab.data import Loader
from lmlab.distributed import world
from lmlab.models import ModelConfig, Transformer
from lmlab.train import Trainer, TrainerConfig, language_model_step_by_domain

COUNTING = ModelConfig(vocab_size=50, num_layers=2, d_model=16, num_heads=2, max_seq_len=32)


class CountingRows:
    """Rows of arithmetic progressions modulo the vocabulary, of two domains: easy to learn."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sequence = (index + (1 + index % 3) * np.arange(17)) % 50
        labels = sequence[1:].copy()
        labels[: index % 5] = -100
        return {
            "input_ids": sequence[:-1],
            "labels": labels,
            "document_ids": np.zeros(16, np.int64),
            "domain_ids": np.full(16, index % 2),
        }


def counting_trainer(
    directory: Path,
    config: TrainerConfig,
    meta: bool = False,
    step_function: Any = None,
    model: Any = None,
    **options: Any,
) -> Trainer:
    """A trainer of this process's share; with `meta` the weights are filled after they were spread."""
    loader = Loader(CountingRows(), config.batch_size, 3, *config.parallel.data_place(world()))
    if model is None:
        with torch.device("meta" if meta else "cpu"):
            model = Transformer(COUNTING)
        model = model if meta else model.initialize(0)
    step_function = step_function or language_model_step_by_domain(["even", "odd"])
    options = {"tokens_per_row": 16, "materialize": lambda model: model.initialize(0), **options}
    return Trainer(model, step_function, loader, config, directory, **options)


def keep_gradients(trainer: Trainer, directory: Path) -> None:
    """Have the trainer write the gradients of its first step, put together from all processes, to `gradients.pt`."""
    clip = trainer._clip

    def clip_and_keep(count: float) -> float:
        norm = clip(count)
        if trainer.step == 0:
            gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
            whole = {
                name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in gradients.items()
            }
            if world().is_main:
                torch.save({name: each.cpu().clone() for name, each in whole.items()}, directory / "gradients.pt")
        return norm

    trainer._clip = clip_and_keep  # type: ignore[method-assign]
