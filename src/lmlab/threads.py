"""How many threads compute, by what else the machine is doing.

A parallel region ends when its last thread does. Where another process holds one of the cores, that thread is not
scheduled, the others wait for it, and two threads do a fraction of the work of one. So who writes texts looks around
now and then: threads that stand in the queue of the scheduler are given up, and taken back when cores are free again.

Sums depend on the number of threads in their last digits. So it changes only where nothing is promised to the last bit:
in the commands `generate`, `chat` and `serve`. Training, evaluation and recipes keep the number that they begin with.
The environment variable `LMLAB_THREADS`, which processes that are started inherit, says otherwise: `adaptive` for
everything, `fixed` for nothing, or a number.

On systems other than Linux, which do not tell how long a thread waited, the number stays.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lmlab.errors import UserError
from lmlab.progress import console

VARIABLE = "LMLAB_THREADS"
_LOOK_EVERY = 0.25  # seconds: long enough for a scheduler's turns to even out, short enough for an answer of a second
_TOO_LONG = 0.45  # threads that wait for a core on average: about the share of the time in which all wait for one
_FREE = 0.8  # of a core must have been idle for a thread to be added
_FIRST_HOLD, _LONGEST_HOLD = 2.0, 60.0  # seconds after threads were given up until some are tried again
_SETTLED = 10.0  # seconds: threads that are given up again within them were a mistake, and the next try waits longer


@dataclass(frozen=True)
class Look:
    """What counters of the system stood at.

    Attributes:
        time: seconds of a clock.
        ran, waited: seconds that threads of this process ran, and stood ready without a core.
        idle: seconds in which cores that it may use had nothing of its rank to do.
    """

    time: float
    ran: float
    waited: float
    idle: float


class Governor:
    """Chooses the number of threads of one computing thread.

    Arguments:
        most: how many there are at best.
        look: reads the counters; None where the system has none.
        apply: sets a number.
        since: an earlier look, from before there was anything to compute: with the first beat after it, there are no
            more threads than cores were free meanwhile.
    """

    def __init__(
        self,
        most: int,
        look: Callable[[], Look | None] | None = None,
        apply: Callable[[int], None] | None = None,
        since: Look | None = None,
    ) -> None:
        self.most = self.threads = most
        self._look, self._apply = look or _look, apply or torch.set_num_threads
        self._first = since is not None
        self._last = since or self._look()
        self._hold, self._changed = _FIRST_HOLD, -math.inf

    def beat(self) -> None:
        """Look around, if it is time to. Called between steps by the thread that computes: a clock is read, and four
        times a second some files.
        """
        if self._last is None or self.most == 1 or time.monotonic() - self._last.time < _LOOK_EVERY:
            return
        found = self._look()
        if found is not None:
            self.consider(found)

    def consider(self, found: Look) -> None:
        """Decide by what has happened since the last look."""
        last, self._last = self._last, found
        if last is None or found.time <= last.time:
            return
        seconds = found.time - last.time
        ran, waited, idle = (
            (after - before) / seconds
            for after, before in ((found.ran, last.ran), (found.waited, last.waited), (found.idle, last.idle))
        )
        first, self._first = self._first, False
        free = max(1, math.floor(ran + idle + 1 - _FREE))
        if first and free < self.threads:
            self._set(free, found.time)
        elif self.threads > 1 and waited > _TOO_LONG:
            # what they got of the cores is what as many threads get that never wait
            fewer = max(1, min(self.threads - 1, math.floor(ran + 0.1)))
            self._hold = min(2 * self._hold, _LONGEST_HOLD) if found.time - self._changed < _SETTLED else _FIRST_HOLD
            self._set(fewer, found.time)
        elif self.threads < self.most and found.time - self._changed > self._hold:
            more = min(self.most - self.threads, math.floor(idle + 1 - _FREE))
            if more > 0 and waited <= _TOO_LONG:
                self._set(self.threads + more, found.time)

    def _set(self, threads: int, now: float) -> None:
        self.threads, self._changed = threads, now
        self._apply(threads)


_adapts: bool | None = None  # None as long as nobody has said
_baseline: Look | None = None  # from before the model was read: what the machine does beside this process
_told = False
_local = threading.local()  # a number of threads belongs to the thread that asks for work


def adapt() -> None:
    """Let the number of threads follow the machine from now on, in every thread that computes; for commands that write
    texts. Without effect where `LMLAB_THREADS` says so.

    Raises:
        UserError: `LMLAB_THREADS` is none of the words, and no number.
    """
    global _adapts, _baseline
    _adapts = _wish() in (None, "adaptive")
    _baseline = _look()


def settle() -> None:
    """Begin: obey `LMLAB_THREADS`, and take no more threads than the processes of a container may use at a time. Called
    by every command that computes, before it does.

    Raises:
        UserError: `LMLAB_THREADS` is none of the words, and no number.
    """
    global _baseline
    wish = _wish()
    if isinstance(wish, int):
        torch.set_num_threads(wish)
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (most := _quota()):
        torch.set_num_threads(most)
    _baseline = _look()


def beat(*, long_work: bool = False) -> None:
    """Between two steps of whatever computes, in the thread that does.

    Arguments:
        long_work: where the number of threads stays, say once that fewer would do more.
    """
    global _adapts, _told
    if _adapts is None:
        _adapts = _wish() == "adaptive"
    governor: Governor | None = getattr(_local, "governor", None)
    if governor is None:
        governor = Governor(torch.get_num_threads(), apply=None if _adapts else lambda threads: None, since=_baseline)
        _local.governor = governor
    governor.beat()
    if long_work and governor.threads < governor.most and not (_adapts or _told or _wish() == "fixed"):
        _told = True
        console.print(
            f"The machine is busy, and {governor.most} threads wait for each other. With {VARIABLE}=adaptive there are"
            " fewer at such times; the last digits of results then depend on what else runs.",
            style="yellow",
        )


def _wish() -> int | str | None:
    """What the environment asks for."""
    word = os.environ.get(VARIABLE, "").strip()
    if word in ("", "adaptive", "fixed"):
        return word or None
    if word.isascii() and word.isdigit() and 1 <= int(word) <= 1024:
        return int(word)
    raise UserError(f"{VARIABLE} is '{word}'.", "Use adaptive, fixed, or a number of threads.")


def _quota() -> int:
    """How many cores the control group of this process gives at a time, at least one; all where it says nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            words = Path(path).read_text(encoding="ascii").split()
            if path.endswith("_us"):
                words.append(Path(path).with_name("cpu.cfs_period_us").read_text(encoding="ascii").strip())
            if words[0] not in ("max", "-1"):
                return max(1, min(cores, math.ceil(int(words[0]) / int(words[1]))))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return cores


def _look() -> Look | None:
    try:
        ran = waited = 0
        for task in os.scandir("/proc/self/task"):
            try:
                words = Path(task.path, "schedstat").read_text(encoding="ascii").split()
            except OSError:  # it has just ended
                continue
            ran, waited = ran + int(words[0]), waited + int(words[1])
        if not ran:  # a sandbox has no such file, and some kernels do not count: who looks has run
            return None
        return Look(time.monotonic(), ran * 1e-9, waited * 1e-9, _idle_seconds())
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _idle_seconds() -> float:
    """Of the cores that this process may use. What runs there with less right than this process counts as idle."""
    mine, known, ticks = os.sched_getaffinity(0), 0, 0
    ordinary = os.getpriority(os.PRIO_PROCESS, 0) <= 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if words[0].startswith("cpu") and words[0][3:].isdigit() and int(words[0][3:]) in mine:
                known += 1
                ticks += int(words[4]) + int(words[5]) + (int(words[2]) if ordinary else 0)
    if known < len(mine):  # containers may number cores in their own way, so that nothing is said of some
        raise ValueError("cores are missing from /proc/stat")
    return ticks / os.sysconf("SC_CLK_TCK")
