"""A training of a small mixture of experts by one of several processes, for the tests: `torchrun moe_worker.py
DIRECTORY SETTINGS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from lmlab.data import Loader
from lmlab.distributed import joined, world
from lmlab.models import ModelConfig, Transformer
from lmlab.train import Trainer, TrainerConfig, language_model_step_by_domain, routed

SPARSE = ModelConfig(
    vocab_size=50,
    num_layers=2,
    d_model=16,
    num_heads=2,
    max_seq_len=32,
    ffn="moe",
    moe={
        "num_experts": 4,
        "top_k": 2,
        "expert_hidden_size": 12,
        "load_balancing_loss": {"coef": 0.1},
        "bias_update_rate": 0.001,
    },
)


class Rows:
    """Arithmetic progressions; every token is learned."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sequence = (index + (1 + index % 3) * np.arange(17)) % 50
        zeros = np.zeros(16, np.int64)
        return {"input_ids": sequence[:-1], "labels": sequence[1:].copy(), "document_ids": zeros, "domain_ids": zeros}


def sparse_trainer(directory: Path, config: TrainerConfig, meta: bool = False) -> Trainer:
    place = world()
    loader = Loader(Rows(), config.batch_size, 3, place.rank, place.size)
    with torch.device("meta" if meta else "cpu"):
        model = Transformer(SPARSE)
    model = model if meta else model.initialize(0)
    step = routed(language_model_step_by_domain(["text"]), SPARSE)
    return Trainer(
        model, step, loader, config, directory, tokens_per_row=16, materialize=lambda model: model.initialize(0)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined():
        sparse_trainer(directory, meta=settings.pop("meta", False), config=TrainerConfig(**settings)).fit()
