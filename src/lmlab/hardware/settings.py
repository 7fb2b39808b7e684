"""The setting that says where a model runs; no torch here, so that help is instant."""

from __future__ import annotations

from typing import Annotated

from lmlab.config import NO_INFLUENCE, Config


class OnDevice(Config):
    """Where a model runs.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
    """

    device: Annotated[str, NO_INFLUENCE] = "auto"
