"""Named pieces of work that any number of processes do together, each piece once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lmlab.distributed.leases import Leases

_POLL_S = 0.2  # between looks while others work: less asks the file system often, more waits after the last piece


def do_pieces(
    names: Sequence[str], leases: Leases, done: Callable[[str], bool], work: Callable[[str], None]
) -> list[str]:
    """Do the pieces that nobody has done and nobody holds, and come back when all are done; those that were done here.

    A piece whose holder has died is taken over.

    Arguments:
        names: the same in all processes.
        done: whether a piece is done, by whomever.
        work: does a piece; `done` is true afterwards.
    """
    own = []
    while left := [name for name in names if not done(name)]:
        took = False
        for name in left:
            if done(name) or (lease := leases.acquire(name)) is None:
                continue
            with lease:
                if not done(name):  # it was not finished between the look and the lease
                    work(name)
                    own.append(name)
                    took = True
        if not took:
            time.sleep(_POLL_S)
    return own
