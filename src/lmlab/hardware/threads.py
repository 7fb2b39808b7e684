"""How many threads compute, by what else the machine is doing.

A parallel region ends when its last thread does. Where another process holds one of the cores, that thread is not
scheduled and the others wait for it. While they wait they spin, which takes the core from those that they wait for:
two threads do a fraction of the work of one. So who computes looks around now and then, and where threads stand in the
queue of the scheduler, one of two things changes until cores are free again.

The commands `generate`, `chat` and `serve` give threads up. Sums depend on the number of threads in their last digits,
so training, evaluation and recipes, which promise results to the last bit, keep the number that they begin with; their
threads sleep while they wait (`Patience`). The environment variable `LMLAB_THREADS`, which processes that are started
inherit, says otherwise: `adaptive` lets the number change everywhere, `fixed` nowhere, and a number sets it.

On systems other than Linux, which do not tell how long a thread waited, nothing changes.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from lmlab.errors import UserError
from lmlab.hardware.groups import limits
from lmlab.hardware.ways import look_up

VARIABLE = "LMLAB_THREADS"
_log = logging.getLogger(__name__)
_LOOK_EVERY = 0.25  # seconds: long enough for a scheduler's turns to even out, short enough for an answer of a second
TOO_LONG = 0.45  # threads that wait for a core on average: about the share of the time in which all wait for one
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


@dataclass(frozen=True)
class Rates:
    """What happened between two looks, in cores.

    Attributes:
        ran, waited: what threads of this process ran, and stood ready without a core.
        idle: what cores had nothing of its rank to do.
        now: seconds of a clock.
        first: whether the first look lies before there was anything to compute.
    """

    ran: float
    waited: float
    idle: float
    now: float
    first: bool


class Watch:
    """Looks around now and then, and decides by what has happened.

    Arguments:
        look: reads the counters; None where the system has none.
        since: an earlier look, from before there was anything to compute.
    """

    def __init__(self, look: Callable[[], Look | None] | None = None, since: Look | None = None) -> None:
        self._look = look or _look
        self._first = since is not None
        self._last = since or self._look()
        self._hold, self._changed = _FIRST_HOLD, -math.inf

    def beat(self) -> None:
        """Look around, if it is time to. Called between steps by the thread that computes: a clock is read, and four
        times a second some files.
        """
        if self._last is None or time.monotonic() - self._last.time < _LOOK_EVERY:
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
        self.decide(Rates(ran, waited, idle, found.time, first))

    def decide(self, rates: Rates) -> None:
        """Change something, or nothing."""
        raise NotImplementedError

    def _note_crowd(self, now: float) -> None:
        """Threads wait for a core at `now`: the next try of going back is later, if the last one was a mistake."""
        self._hold = min(2 * self._hold, _LONGEST_HOLD) if now - self._changed < _SETTLED else _FIRST_HOLD


class Governor(Watch):
    """Chooses the number of threads of one computing thread.

    Arguments:
        most: how many there are at best.
        apply: sets a number.
        since: with the first beat after it, there are no more threads than cores were free meanwhile.
    """

    def __init__(
        self,
        most: int,
        look: Callable[[], Look | None] | None = None,
        apply: Callable[[int], None] | None = None,
        since: Look | None = None,
    ) -> None:
        super().__init__(look, since)
        self.most = self.threads = most
        self._apply = apply or torch.set_num_threads

    def decide(self, rates: Rates) -> None:
        """Give up threads that wait, and take them back."""
        free = max(1, math.floor(rates.ran + rates.idle + 1 - _FREE))
        if rates.first and free < self.threads:
            self._set(free, rates.now)
        elif self.threads > 1 and rates.waited > TOO_LONG:
            # what they got of the cores is what as many threads get that never wait
            fewer = max(1, min(self.threads - 1, math.floor(rates.ran + 0.1)))
            self._note_crowd(rates.now)
            self._set(fewer, rates.now)
        elif self.threads < self.most and rates.now - self._changed > self._hold:
            more = min(self.most - self.threads, math.floor(rates.idle + 1 - _FREE))
            if more > 0 and rates.waited <= TOO_LONG:
                self._set(self.threads + more, rates.now)

    def _set(self, threads: int, now: float) -> None:
        self.threads, self._changed = threads, now
        self._apply(threads)


class Patience(Watch):
    """Chooses how threads wait for each other where their number stays: they spin, or sleep.

    Sleeping and waking cost half of the time where nothing else runs, and beside busy processes a tenth of what
    spinning costs. Nothing is computed in another way.

    Arguments:
        cores: how many this process may use.
        apply: makes threads sleep while they wait, or spin again.
    """

    def __init__(
        self,
        cores: int,
        apply: Callable[[bool], None],
        look: Callable[[], Look | None] | None = None,
        since: Look | None = None,
    ) -> None:
        super().__init__(look, since)
        self.sleeps = False
        self._cores, self._apply = cores, apply

    def __del__(self) -> None:
        # its thread has ended: nobody else would ask for spinning threads again
        if getattr(self, "sleeps", False):
            self._apply(False)

    def decide(self, rates: Rates) -> None:
        """Sleep where threads stand in the queue, and spin where nobody else wants the cores."""
        others = self._cores - rates.ran - rates.idle
        if not self.sleeps:
            if rates.waited > TOO_LONG or (rates.first and others > TOO_LONG):
                self._note_crowd(rates.now)
                self._set(True, rates.now)
        elif others < 1 - _FREE and rates.now - self._changed > self._hold:
            self._set(False, rates.now)

    def _set(self, sleeps: bool, now: float) -> None:
        self.sleeps, self._changed = sleeps, now
        self._apply(sleeps)


class SleepingThreads:
    """Makes the threads of GNU's OpenMP, by which PyTorch computes on Linux, sleep while they wait for each other.

    That library lets them spin for some milliseconds first, unless it has more threads than there are cores: then for
    a microsecond (`gomp_throttled_spin_count_var`). Nothing but the environment of a new process sets these times. So
    whoever wants others to sleep keeps a thread with a team of its own that does nothing, as large as all cores and one
    more; it goes when its keeper does.
    """

    def __init__(self) -> None:
        self._libraries: list[ctypes.CDLL] | None = None
        self._users, self._lock = 0, threading.Lock()
        self._end = threading.Event()

    @property
    def possible(self) -> bool:
        """Whether that library is at hand."""
        if self._libraries is None:
            self._libraries = _openmp()
        return bool(self._libraries)

    def __call__(self, sleep: bool) -> None:
        """Begin or end, for one of those who want it."""
        if not self.possible:
            return
        with self._lock:
            before, self._users = self._users, self._users + (1 if sleep else -1)
            if not before and self._users:
                self._end = threading.Event()
                threading.Thread(target=self._keep, args=(self._end,), name="lmlab-patience", daemon=True).start()
            elif before and not self._users:
                self._end.set()

    def _keep(self, end: threading.Event) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        for library in self._libraries or ():
            library.GOMP_parallel(nothing, None, ctypes.c_uint((os.cpu_count() or 1) + 1), ctypes.c_uint(0))
        end.wait()


def _openmp() -> list[ctypes.CDLL]:
    """The copies of GNU's OpenMP that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}):
        try:
            library = ctypes.CDLL(path)
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
        except (OSError, AttributeError):  # a file that was replaced, or a library of the same name
            continue
        found.append(library)
    return found


sleeping_threads = SleepingThreads()
_adapts: bool | None = None  # None as long as nobody has said
_baseline: Look | None = None  # from before the model was read: what the machine does beside this process
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
        if wish > (most := _quota()):  # obeyed: sums of a run from another machine are the same with as many threads
            _log.warning(
                "%s asks for %d threads, and there %s: they will wait for each other.",
                VARIABLE,
                wish,
                "is one core" if most == 1 else f"are {most} cores",
            )
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (most := _quota()):
        torch.set_num_threads(most)
    look_up()
    _baseline = _look()


def beat() -> None:
    """Between two steps of whatever computes, in the thread that does."""
    global _adapts
    if _adapts is None:
        _adapts = _wish() == "adaptive"
    watch: Watch | None = getattr(_local, "watch", None)
    if watch is None:
        threads = torch.get_num_threads()
        still = Patience(_cores(), sleeping_threads, since=_baseline)
        watch = Governor(threads, since=_baseline) if _adapts else still
        _local.watch, _local.alone = watch, threads == 1
    if not _local.alone:  # one thread waits for nobody
        watch.beat()


class Waiting:
    """How much of the time threads of this process stood ready without a core, since this was made. More than
    `TOO_LONG`, and what it computes takes a time of chance.
    """

    def __init__(self) -> None:
        self._since = _look()

    def share(self) -> float:
        """In threads; 0 where the system does not tell."""
        now = _look()
        if self._since is None or now is None or now.time <= self._since.time:
            return 0.0
        return (now.waited - self._since.waited) / (now.time - self._since.time)


def _wish() -> int | str | None:
    """What the environment asks for."""
    word = os.environ.get(VARIABLE, "").strip()
    if word in ("", "adaptive", "fixed"):
        return word or None
    if word.isascii() and word.isdigit() and 1 <= int(word) <= 1024:
        return int(word)
    raise UserError(f"{VARIABLE} is '{word}'.", "Use adaptive, fixed, or a number of threads.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> int:
    """How many cores the control groups of this process give at a time, at least one; all where they say nothing."""
    shares = [each.split() for each in limits("cpu", "cpu.max", "cpu.cfs_quota_us")]
    periods = limits("cpu", "cpu.max", "cpu.cfs_period_us")
    most = _cores()
    for words, period in zip(shares, periods, strict=False):  # of version 1 the period stands in a file of its own
        try:
            share, each = int(words[0]), int(words[1] if len(words) > 1 else period)
        except (ValueError, IndexError):  # "max"
            continue
        if share > 0 and each > 0:
            most = min(most, math.ceil(share / each))
    return max(1, most)


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
    rank = os.getpriority(os.PRIO_PROCESS, 0)
    ordinary = rank <= 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if words[0].startswith("cpu") and words[0][3:].isdigit() and int(words[0][3:]) in mine:
                known += 1
                ticks += int(words[4]) + int(words[5]) + (int(words[2]) if ordinary else 0)
    if known < len(mine):  # containers may number cores in their own way, so that nothing is said of some
        raise ValueError("cores are missing from /proc/stat")
    if rank < 0:  # the system tells the time of positive values apart, and of no others
        ticks += _lower.ticks(rank, mine)
    return ticks / os.sysconf("SC_CLK_TCK")


class Lower:
    """Counts what processes run whose `nice` is larger than a negative one, and not positive.

    Their own counts end with them, and those of a process that was given another priority or moved to another core
    belong elsewhere: so what they ran from one look to the next is added up.

    Arguments:
        processes: folder of the system with a folder for each.
    """

    def __init__(self, processes: str | Path = "/proc") -> None:
        self._processes, self._lock = processes, threading.Lock()
        self._seen: dict[str, int] | None = None
        self._ticks = 0

    def ticks(self, rank: int, cores: Set[int]) -> int:
        """Ticks of the clock since the first call, which gives 0. What a process ran last, after the look before its
        end, is missing.

        Arguments:
            rank: the negative `nice`.
            cores: those that count; of a process that on which its first thread ran last.
        """
        with self._lock:
            seen = dict[str, int]()
            for place in os.scandir(self._processes):
                if not place.name.isdigit():
                    continue
                try:
                    told = Path(place.path, "stat").read_text(encoding="utf-8", errors="replace")
                except OSError:  # it has just ended
                    continue
                words = told.rpartition(")")[2].split()
                ran = seen[place.name] = int(words[11]) + int(words[12])
                if self._seen is not None and rank < int(words[16]) <= 0 and int(words[36]) in cores:
                    self._ticks += max(0, ran - self._seen.get(place.name, 0))  # less: the number was given anew
            self._seen = seen
            return self._ticks


_lower = Lower()
