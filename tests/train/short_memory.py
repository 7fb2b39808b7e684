"""A training in a process whose memory is limited: `python short_memory.py DIRECTORY`."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from counting import counting_trainer

from lmlab.errors import LmlabError
from lmlab.train import TrainerConfig, language_model_step

if __name__ == "__main__":
    torch.set_num_threads(1)

    def greedy(model, batch):
        """From the fourth step on, with more than two rows at once, it needs more memory than there is."""
        rows = len(batch["input_ids"])
        if trainer.step >= 3 and rows > 2:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, resource.RLIM_INFINITY))
            torch.empty(rows * 2**28)
        return language_model_step(model, batch)

    rows = int(sys.argv[2])
    config = TrainerConfig(
        steps=6,
        batch_size=4,
        micro_batch_size=rows,
        precision="fp32",
        device="cpu",
        log_every=1,
        checkpoint_every=100,
    )
    trainer = counting_trainer(Path(sys.argv[1]), config, step_function=greedy)
    try:
        trainer.fit()
    except LmlabError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(error)
        sys.exit(error.exit_code)
