"""A training by one of several processes, for the tests: `torchrun worker.py DIRECTORY SETTINGS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from counting import counting_trainer, keep_gradients

from lmlab.distributed import joined
from lmlab.models import Transformer
from lmlab.train import TrainerConfig

if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined() as world:
        meta = settings.pop("meta", False)
        trainer = counting_trainer(directory, TrainerConfig(**settings), meta=meta)
        keep_gradients(trainer, directory)
        summary = trainer.fit()
        assert isinstance(trainer.model, Transformer)
        if world.is_main:
            (directory / "summary.json").write_text(json.dumps(summary))
