"""What ends a training from inside, in sentences: memory that does not suffice, figures that are not finite."""

from __future__ import annotations

import torch
from torch import nn

from lmlab.distributed import World
from lmlab.errors import LmlabError
from lmlab.hardware import memory_bytes
from lmlab.models import Transformer
from lmlab.models.lora.adapt import adapters
from lmlab.progress import with_unit
from lmlab.train.config import TrainerConfig
from lmlab.train.cost import estimate

LESS_MEMORY = (
    "Lower trainer.micro_batch_size (the result is the same), or set trainer.recompute_blocks to 1; then run the same"
    " command again: it goes on from the newest checkpoint."
)


def memory_on_paper(
    model: nn.Module,
    config: TrainerConfig,
    world: World,
    device: torch.device,
    dtype: torch.dtype,
    tokens_per_step: int | None,
) -> str:
    """What the training needs by the estimate, and what there is; empty where the estimate does not apply."""
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
    of = f" of {with_unit(there, 'B')}" if there else ""
    if not isinstance(model, Transformer) or tokens_per_step is None or adapters(model):
        return ""
    needs = estimate(model.config, tokens_per_step // config.batch_size, config, world, dtype)
    return f" On paper it needs {with_unit(needs.memory, 'B')}{of}, {with_unit(needs.activations, 'B')} of it for them."


def not_finite(step: int, loss: float, norm: float, newest: int, rows: tuple[int, int]) -> LmlabError:
    """The error of a loss or gradient that is not finite.

    Arguments:
        newest: the step of the newest checkpoint, 0 if there is none.
        rows: the first and the last of the step, in the order of the training.
    """
    intact = f"The checkpoint of step {newest} is intact. " if newest else ""
    return LmlabError(
        f"The loss or gradient is not finite at step {step} (rows {rows[0]:,} to {rows[1]:,}, loss {loss}, gradient"
        f" norm {norm}); training stopped.",
        f"{intact}Lower the learning rate, raise the warm-up, or use precision fp32.",
    )


def no_labels(step: int, empty: int) -> LmlabError:
    """The error of too many steps in which no token is to be learned."""
    return LmlabError(
        f"By step {step}, {empty} steps had no token that is to be learned; training stopped.",
        "See what the data's masks leave: lmlab data peek, or lmlab data inspect.",
    )
