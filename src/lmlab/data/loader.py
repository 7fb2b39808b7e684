"""The loader: a fixed sequence of batches, whose whole state is how many rows were read.

The order is Grain's: rows shuffled afresh in every epoch by a seed. Row number n of the sequence is the same on every machine, so a run resumes
exactly on another number of ranks: rank r of R takes rows r, r + R, ... of each global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmlab.data.packing import Row
from lmlab.errors import UserError

Batch = dict[str, Tensor]


class Rows(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class Loader:
    """Endless batches of shuffled rows.

    Arguments:
        rows: the rows of one epoch.
        batch_size: rows of a global batch, over all ranks; a multiple of `world_size`.
        seed: of the order.
        rank, world_size: which share of each batch this process takes.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise UserError(f"The batch of {batch_size} rows cannot be shared evenly by {world_size} processes.")
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self._num_rows = len(rows)
        self._sequence = _shuffled(rows, seed)
        self._next_row = 0

    def state(self) -> dict[str, int]:
        """Everything needed to go on: a small dictionary for JSON."""
        return {"next_row": self._next_row, "seed": self.seed, "num_rows": self._num_rows}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a state.

        Raises:
            UserError: the state belongs to other data or another seed.
        """
        for key, value in (("seed", self.seed), ("num_rows", self._num_rows)):
            if state[key] != value:
                raise UserError(
                    f"The loader's saved state has {key} {state[key]}, the data now has {value}.", "Restore the data, or start a new run."
                )
        self._next_row = state["next_row"]

    @property
    def epoch(self) -> float:
        """How many times the rows have been gone through."""
        return self._next_row / self._num_rows

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever; each is built while the one before is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            ahead = self._next_row
            pending = pool.submit(self._build, ahead)
            while True:
                batch = pending.result()
                pending = pool.submit(self._build, ahead + self.batch_size)
                ahead += self.batch_size
                self._next_row = ahead
                yield batch

    def _build(self, first: int) -> Batch:
        rows = [self._sequence[index] for index in range(first + self.rank, first + self.batch_size, self.world_size)]
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def _shuffled(rows: Rows, seed: int) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain's import warns about optional profilers
    import grain

    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
