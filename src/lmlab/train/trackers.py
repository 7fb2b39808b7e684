"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from lmlab.errors import missing_extra
from lmlab.redaction import redact_all

TrackerName = Literal["tensorboard", "wandb"]


class Tracker(Protocol):
    """Receives the rows of `metrics.jsonl`."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Record the figures of a step."""
        ...

    def close(self) -> None:
        """Hand over what is left."""
        ...


def open_trackers(names: Sequence[TrackerName], directory: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers by name; they write below `directory`, and Weights & Biases to the project of the variable
    WANDB_PROJECT.

    Raises:
        UserError: a package is not installed.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
    }
    return [kinds[name](directory, redact_all(dict(config))) for name in names]


class _TensorBoard:
    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "Writing to TensorBoard") from None
        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _figures(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "Writing to Weights & Biases") from None
        place = directory.resolve()
        id = hashlib.sha256(str(place).encode()).hexdigest()[:16]  # a resumed run goes on with its curves
        self._run = wandb.init(
            name=f"{place.parent.name}/{place.name}", id=id, dir=str(directory), config=dict(config), resume="allow"
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(_figures(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
