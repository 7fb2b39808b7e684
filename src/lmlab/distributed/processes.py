"""The processes of one job: who they are, and how they speak to each other.

`torchrun` starts a job's processes and tells each its rank by the environment. Everything here also holds for one
process, where it costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lmlab.errors import UserError

_PATIENCE = timedelta(days=2)  # the others wait while one process prepares data

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the job.

    Attributes:
        rank, size: number of this process, and of all.
        local_rank, local_size: the same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the job's files and speaks to the user."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size


_imagined: ContextVar[World | None] = ContextVar("imagined", default=None)


def world() -> World:
    """What the launcher said of this process, or what is being imagined (`imagine`).

    Raises:
        UserError: the environment is half set.
    """
    if (imagined := _imagined.get()) is not None:
        return imagined
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return World()
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise UserError(f"WORLD_SIZE is set, but {error} is not.", "Start several processes with torchrun.") from None
    return World(rank, size, local_rank, local_size)


@contextmanager
def imagine(found: World) -> Iterator[None]:
    """Plan for other processes than there are."""
    token = _imagined.set(found)
    try:
        yield
    finally:
        _imagined.reset(token)


@contextmanager
def joined() -> Iterator[World]:
    """Join the other processes of the job; leave them at the end. With one process nothing happens."""
    found = world()
    if found.size == 1 or dist.is_initialized():
        yield found
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(found.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield found
    finally:
        control_group.cache_clear()
        dist.destroy_process_group()


@lru_cache
def control_group(purpose: str = "control") -> Any:
    """A group of all processes over the network of the CPUs, for small messages and long waits; None for one process.

    All processes must ask for the same purposes in the same order.
    """
    return dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None


def from_main(value: T) -> T:
    """The main process's value, in all processes."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=control_group())
    return values[0]


def from_all(value: T, purpose: str = "control") -> list[T]:
    """The values of all processes, by rank, in all processes."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=control_group(purpose))
    return values


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if dist.is_initialized():
        dist.barrier(group=control_group())


def sum_over_all(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum over all processes, in all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
