"""Settings that commands share which load models or start runs; no torch here, so that help is instant."""

from __future__ import annotations

from typing import Annotated

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from lmlab.config import NO_INFLUENCE, Config, Flag, Precision
from lmlab.hardware.settings import OnDevice


class Loading(OnDevice):
    """Where a model runs, and in which precision.

    Attributes:
        precision: of the weights: fp32, bf16, auto (the faster of both here), or on a CPU int8 or int4, which write
            faster and slightly other texts.
    """

    precision: Precision = "fp32"


class Drawn(Config):
    """What chance decides.

    Attributes:
        seed: of everything that is drawn.
    """

    seed: NonNegativeInt = 0


class AtOnce(Config):
    """How many runs go on at the same time.

    Attributes:
        workers: runs at once, by default one a core.
        gpus: GPUs of each run, for Ray and Slurm.
    """

    workers: Annotated[PositiveInt | None, NO_INFLUENCE, Flag(("--workers", "-w"))] = None
    gpus: Annotated[NonNegativeFloat, NO_INFLUENCE] = 0
