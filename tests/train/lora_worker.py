"""A training of adapters by one of several processes, for the tests: `torchrun lora_worker.py DIRECTORY SETTINGS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from counting import COUNTING, counting_trainer

from lmlab.distributed import joined
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora
from lmlab.train import TrainerConfig, whole_tensors

MOE = ModelConfig(
    **(
        COUNTING.model_dump()
        | {"ffn": "moe", "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16}, "tie_embeddings": True}
    )
)


def adapter_trainer(directory: Path, config: TrainerConfig, targets: tuple[str, ...]):
    """A trainer of the adapters of a small mixture of experts."""
    model = Transformer(MOE).initialize(0)
    add_lora(model, LoRAConfig(rank=4, targets=targets), seed=1)
    return counting_trainer(directory, config, model=model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    targets = tuple(settings.pop("targets"))
    with joined() as world:
        trainer = adapter_trainer(directory, TrainerConfig(**settings), targets)
        trainer.fit()
        trained = whole_tensors(trainer.model)
        if world.is_main:
            torch.save(trained, directory / "trained.pt")
