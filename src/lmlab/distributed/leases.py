"""Claims of work: of many processes, on any number of machines, each piece is done by one.

A process *leases* a piece, and a thread renews the lease for as long as the work goes on. When it dies, another process
takes the piece over. One protocol serves three stores (`lease_stores.py`): a folder that all machines see, a SQLite
file, and objects at a URL.

A lease is one record: its owner's token, and a beat that grows with every renewal. All that happens to it (taking it,
renewing it, taking it over, giving it back) is one atomic *compare and swap* of that record, which fails if anyone
else was faster. So nobody can remove or prolong a lease that is no longer theirs.

No clocks are compared between machines. Who wants a held piece remembers the record that it saw, and takes over if the
same record still stands after the lease's time by its own clock. The holder counts that time from before its last
renewal, and stops calling the lease its own when it is over; this comes first, whatever the clocks of both show.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

_log = logging.getLogger(__name__)

TIME_S = 120.0
"""How long a lease stands without a renewal: longer than a network file system or a busy machine stalls."""
_BEATS = 4  # renewals in that time: three may fail before the lease is lost


@dataclass(frozen=True)
class Record:
    """What a store keeps for a piece that is held: the owner's token, and the number of renewals."""

    owner: str
    beat: int = 0


class Store(Protocol):
    """Where leases are kept: at most one record for each name."""

    def read(self, name: str) -> Record | None:
        """The record of a name; None where there is none, or while it is being changed."""

    def swap(self, name: str, old: Record | None, new: Record | None) -> bool:
        """Put `new` in the place of `old` (None for no record) in one atomic step; False, and nothing is changed, if
        the record is another one.
        """


class Lease:
    """A piece of work that is ours; a context that gives it back.

    Attributes:
        name: of the piece.
    """

    def __init__(self, leases: Leases, name: str, record: Record, since: float) -> None:
        self._leases, self.name, self._record = leases, name, record
        self._renewed = since
        self._lost = self._released = False

    @property
    def held(self) -> bool:
        """Whether nobody else can have it. It is lost when renewals have failed for the lease's time, as when the
        process was stopped, or the store was out of reach.
        """
        ours = not (self._lost or self._released)
        return ours and _holders_clock() - self._renewed < self._leases.time_s

    def release(self) -> bool:
        """Give the piece back; False, and nothing happens, if it is no longer ours."""
        return self._leases._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._released and not self.release():
            _log.warning(
                "the lease of '%s' was lost before its work was done; another process may do it too", self.name
            )


class Leases:
    """The leases of one process in a store.

    Arguments:
        time_s: how long a lease stands without a renewal; the same for all who share a store.
        owner: a token that nobody else has; by default one that names this process, so that others on this machine
            need not wait when it has died.
    """

    def __init__(self, store: Store, time_s: float = TIME_S, owner: str | None = None) -> None:
        self.store, self.time_s = store, time_s
        self._owner, self._count = owner or owner_token(), itertools.count()
        self._held: dict[str, Lease] = {}
        self._seen: dict[str, tuple[Record, float]] = {}
        self._lock = threading.Lock()
        self._heart: threading.Thread | None = None
        self._stop = threading.Event()

    def acquire(self, name: str) -> Lease | None:
        """Take a piece; None if it is held, also by ourselves. Ask again later: a piece whose holder is gone becomes
        ours once its lease has run out before our eyes.
        """
        assert not self._stop.is_set(), "these leases are closed"
        now, since = _observers_clock(), _holders_clock()
        standing = self.store.read(name)
        if standing is not None and not self._abandoned(name, standing, now):
            return None
        # No two leases have one record, not even two of one process one after the other.
        own = Record(f"{self._owner}.{next(self._count)}")
        if not self.store.swap(name, standing, own):
            return None
        lease = Lease(self, name, own, since)
        with self._lock:
            self._seen.pop(name, None)
            self._held[name] = lease
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._heart.start()
        return lease

    def close(self) -> None:
        """Give everything back and end the thread."""
        for lease in list(self._held.values()):
            lease.release()
        self._stop.set()

    def _abandoned(self, name: str, standing: Record, now: float) -> bool:
        if is_dead(standing.owner):
            return True
        with self._lock:
            record, since = self._seen.get(name, (None, now))
            if record != standing:
                self._seen[name] = standing, _observers_clock()
                return False
        return now - since > self.time_s

    def _release(self, lease: Lease) -> bool:
        with self._lock:
            if self._held.get(lease.name) is lease:
                del self._held[lease.name]
            if lease._lost or lease._released:
                return False
            if self.store.swap(lease.name, lease._record, None):
                lease._released = True
            else:
                lease._lost = True
            return lease._released

    def _beat(self) -> None:
        """Renew what is held until the process ends, or nothing has been held for a while."""
        idle = 0
        while not self._stop.wait(self.time_s / _BEATS):
            with self._lock:
                names = list(self._held)
                idle = 0 if names else idle + 1
                if idle > _BEATS:
                    self._heart = None
                    return
            for name in names:
                self._renew(name)

    def _renew(self, name: str) -> None:
        with self._lock:  # so that a lease is not renewed while it is given back
            lease = self._held.get(name)
            if lease is None:
                return
            since, after = _holders_clock(), Record(lease._record.owner, lease._record.beat + 1)
            try:
                renewed = self.store.swap(name, lease._record, after)
            except Exception as error:  # a store out of reach; the next beat tries again, and `held` knows
                _log.warning("the lease of '%s' could not be renewed: %s", name, error)
                return
            if renewed:
                lease._record, lease._renewed = after, since
            else:
                lease._lost = True
                del self._held[name]


def _boot_clock() -> Callable[[], float]:
    """A clock that runs on while the machine sleeps, as a lease does."""
    number = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if number is None else lambda: time.clock_gettime(number)


# While a machine sleeps, a holder on it must not think that it still holds, and one who waits must not think that the
# holder on the same machine had time to renew. So their clocks differ: one counts sleep, the other does not.
_holders_clock = _boot_clock()
_observers_clock = time.monotonic


def owner_token() -> str:
    """A token that names this process on its machine, where that can be told, and that is unique in any case."""
    process = _process(os.getpid())
    return "-".join(
        [*((_machine(), str(os.getpid()), process) if process else ("unknown", "0", "0")), uuid.uuid4().hex]
    )


def is_dead(owner: str) -> bool:
    """Whether the process that a token names is known to be gone: it was on this machine, and its number is free or
    another's. False where nothing is known.
    """
    machine, _, rest = owner.partition("-")
    number, _, rest = rest.partition("-")
    started = rest.partition("-")[0]
    here = _machine()
    if not here or machine != here or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process, which may be hidden from us
        pass
    except OverflowError:  # no number of a process: somebody else's text
        return False
    return _process(int(number)) not in ("", started)


def _machine() -> str:
    """What tells this machine since its start, and this space of process numbers (a container has its own), from all
    others; empty where the system does not say.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # a container that sees the numbers of another space
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process(number: int) -> str:
    """When a process was started, in ticks since the machine's start; empty if there is none of this number."""
    try:
        # The name in parentheses may hold anything; the start is the 22nd field of all, the 20th after it.
        return Path(f"/proc/{number}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
