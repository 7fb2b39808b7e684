"""One builder at a time in a folder: by a lock of the operating system here, by a lease at a URL."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from lmlab.distributed import TIME_S, Lease, Leases, NoAtomicCreateError, UrlStore
from lmlab.errors import UserError
from lmlab.files import is_url

_LOOKS = 24  # in the time of a lease, while another builds


@contextlib.contextmanager
def alone(location: str, time_s: float = TIME_S) -> Iterator[None]:
    """Wait for other builders in a folder.

    At a URL the lock is a lease below `.leases`, which a builder that died loses after `time_s` seconds. Who was cut
    off from the store for that long may find another at work: what both write is then still told apart by its digests.
    A store whose file system cannot create an object once (`UrlStore`) has no lock.
    """
    if not is_url(location):
        from filelock import FileLock

        Path(location).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(location) / ".lock"):
            yield
        return
    with (
        contextlib.closing(Leases(UrlStore(f"{location.rstrip('/')}/.leases"), time_s)) as leases,
        _wait_for(leases, location) or contextlib.nullcontext(),
    ):
        yield


def _wait_for(leases: Leases, location: str) -> Lease | None:
    """The lease, once it is free; None where the file system keeps none."""
    while True:
        try:
            lease = leases.acquire("builder")
        except NoAtomicCreateError:
            return None
        except OSError as error:
            raise UserError(f"'{location}' cannot be written: {error}.") from None
        if lease is not None:
            return lease
        time.sleep(min(1.0, leases.time_s / _LOOKS))
