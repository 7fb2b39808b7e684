"""A training in a process whose files may not grow beyond a limit: `python full_disk.py DIRECTORY BYTES BACKGROUND`."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from counting import counting_trainer

from lmlab.errors import LmlabError
from lmlab.train import TrainerConfig

if __name__ == "__main__":
    limit = int(sys.argv[2])
    config = TrainerConfig(
        steps=6,
        batch_size=4,
        precision="fp32",
        device="cpu",
        log_every=1,
        checkpoint_every=2,
        background_checkpoints=sys.argv[3] == "yes",
    )
    trainer = counting_trainer(Path(sys.argv[1]), config)
    complete = trainer._complete

    def limited(row, log, stop):
        if trainer.step == 3:
            trainer.checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        complete(row, log, stop)

    if limit:
        trainer._complete = limited
    try:
        trainer.fit()
    except LmlabError as error:
        print(error)
        sys.exit(error.exit_code)
