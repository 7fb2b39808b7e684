"""What ends a training from outside, in sentences: memory and disks that are full."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmlab.errors import UserError, says_no_memory
from lmlab.files import read_json, write_json
from lmlab.progress import console

_EVENTS = Path("/sys/fs/cgroup/memory.events")
_RUNNING = "running.json"
_NO_SPACE = ("No space left on device", "File too large", "Disk quota exceeded", "os error 28", "os error 27")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, was refused."""
    return isinstance(error, torch.OutOfMemoryError) or says_no_memory(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that a file could not grow."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL) or any(text in str(each) for text in _NO_SPACE)
        for each in _causes(error, set())
    )


def _causes(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """The error and those that it comes from; PyTorch's checkpointing keeps those of all processes by rank."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    failures: Any = getattr(error, "failures", None)
    inner = [each[0] if isinstance(each, tuple) else each for each in (failures or {}).values()]
    for each in (error.__cause__, error.__context__, *inner):
        if isinstance(each, BaseException):
            yield from _causes(each, seen)


class KillWatch:
    """Tells, at the next attempt, that the last one was killed for lack of memory: nobody can say so at the time.

    Arguments:
        directory: where a file stands while training runs.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _RUNNING

    def begin(self, advice: str) -> None:
        """Look at what the last attempt left, and leave a trace of this one.

        Arguments:
            advice: which settings lower what is needed.
        """
        now = _kills()
        if now is not None and self._path.exists():
            try:
                before = read_json(self._path)["kills"]
            except (UserError, KeyError, TypeError):  # it was torn by the kill
                before = now
            if isinstance(before, int) and now > before:
                console.print(
                    f"The last attempt ended without a word, and the system has killed {now - before} of this group's"
                    f" processes for lack of memory since. {advice}",
                    style="yellow",
                )
        if now is not None:
            write_json(self._path, {"kills": now})

    def end(self) -> None:
        """It ended by itself, well or not."""
        self._path.unlink(missing_ok=True)


def _kills() -> int | None:
    """How often the control group of this process had a process killed; None where that is not told."""
    try:
        rows = dict(line.split() for line in _EVENTS.read_text("utf-8").splitlines())
        return int(rows["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
