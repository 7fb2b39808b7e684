"""Trains in child processes that are killed at random moments, half of them while a checkpoint is written, until one
finishes.

`killed.py DIRECTORY SETTINGS NUM_KILLS SEED`

The children are forked from this process, which has imported everything and computed nothing, so that each lives for a
fraction of a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from counting import counting_trainer

from lmlab.train import TrainerConfig


def train(directory: Path, settings: dict) -> None:
    torch.set_num_threads(1)
    counting_trainer(directory, TrainerConfig(**settings)).fit()


def _is_writing(directory: Path) -> bool:
    return any(directory.glob("checkpoints/.step-*"))


def main(directory: Path, settings: dict, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    moments = {"in a checkpoint": 0, "elsewhere": 0}
    while True:
        child = os.fork()
        if child == 0:
            train(directory, settings)
            os._exit(0)
        if kills > 0:
            time.sleep(draw.uniform(0.15, 0.6))
            while kills % 2 and not _is_writing(directory) and os.waitpid(child, os.WNOHANG)[0] == 0:
                pass
            half_written = _is_writing(directory)
            os.kill(child, signal.SIGKILL)
            moments["in a checkpoint" if half_written else "elsewhere"] += 1
            kills -= 1
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
    print(json.dumps(moments))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
