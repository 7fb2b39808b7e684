"""The loader: a fixed sequence of batches, whose whole state is how many rows were read.

Row number n of the sequence is the same on every machine, so a run resumes exactly on another number of processes: of
each batch, process r of R takes the rows r, r + R, ...
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError

Batch = dict[str, Tensor]


class Rows(Protocol):
    """Rows by number: dictionaries of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@runtime_checkable
class Lengthened(Protocol):
    """Rows of a whole training, whose number may change before it goes on."""

    def begins_as(self, num_rows: int, count: int) -> bool:
        """Whether the first `count` rows would be the same if there were `num_rows` in all."""
        ...


class Loader:
    """Batches of rows.

    Arguments:
        rows: the rows, of one epoch if they are shuffled, else of the whole training in their order (a `Mixture`).
        batch_size: rows of a batch, over all processes; a multiple of `world_size`.
        seed: of the order.
        rank, world_size: which share of each batch this process takes.
        shuffle: go through the rows again and again, in an order drawn by Grain for each epoch; else once, as they are.
        workers: threads that build batches ahead.

    Attributes:
        num_rows: how many rows there are.
        pin_memory: build batches in memory from which a GPU copies while it computes.

    Raises:
        UserError: the batch cannot be shared evenly.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        shuffle: bool = True,
        workers: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"The batch of {batch_size} rows cannot be shared evenly by {world_size} processes.")
        self.batch_size, self.rank, self.world_size, self.seed, self.workers = (
            batch_size,
            rank,
            world_size,
            seed,
            workers,
        )
        self.num_rows, self._rows = len(rows), rows
        self.pin_memory = False
        self._sequence = _shuffled(rows, seed) if shuffle else rows
        self._limit = None if shuffle else self.num_rows
        self._next_row = 0

    def state(self) -> dict[str, int]:
        """Everything needed to go on: a small dictionary for JSON."""
        return {"next_row": self._next_row, "seed": self.seed, "num_rows": self.num_rows}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a state.

        Raises:
            UserError: the state belongs to other data or another seed.
        """
        for key, value in (("seed", self.seed), ("num_rows", self.num_rows)):
            if state[key] != value and not (key == "num_rows" and self._longer(state)):
                raise UserError(
                    f"The loader's saved state has {key} {state[key]}, the data now has {value}.",
                    "Restore the data, or start a new run.",
                )
        self._next_row = state["next_row"]

    def _longer(self, state: dict[str, int]) -> bool:
        """Whether the rows are those of the same training of another length.

        Raises:
            UserError: they are, but the rows read so far would have been others.
        """
        if self._limit is None or not isinstance(self._rows, Lengthened):
            return False
        if not self._rows.begins_as(state["num_rows"], state["next_row"]):
            raise UserError(
                f"The order of the data depends on the length of the training: with {self.num_rows} rows in place of"
                f" {state['num_rows']}, the first {state['next_row']} would have been others.",
                "Keep the length, or start a new run with --out; a shuffled mixture without phases goes on.",
            )
        return True

    @property
    def epoch(self) -> float:
        """How many times the rows have been gone through."""
        return self._next_row / self.num_rows

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, for ever if they are shuffled; they are built while those before them are used."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            ahead, pending = self._next_row, deque[Any]()
            while True:
                while len(pending) < self.workers + 1 and (
                    self._limit is None or ahead + self.batch_size <= self._limit
                ):
                    pending.append(pool.submit(self._build, ahead))
                    ahead += self.batch_size
                if not pending:
                    return
                batch = pending.popleft().result()
                self._next_row += self.batch_size
                yield batch

    def _build(self, first: int) -> Batch:
        rows = [self._sequence[index] for index in range(first + self.rank, first + self.batch_size, self.world_size)]
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        return {key: value.pin_memory() for key, value in batch.items()} if self.pin_memory else batch


def _shuffled(rows: Rows, seed: int) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain's import warns about optional profilers
    import grain

    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
