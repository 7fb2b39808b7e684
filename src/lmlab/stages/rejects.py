"""What stages that read records have in common: a limit on those that cannot be used, and a fixed part that is held out."""

from __future__ import annotations

import hashlib

from lmlab.data import Reject
from lmlab.errors import UserError

_ENOUGH = 1000


def check_rejects(rejected: int, read: int, limit: float, first: Reject, final: bool = True) -> None:
    """Stop when too many records cannot be used; before the end only once there are enough of them to tell.

    Raises:
        UserError: more than the share `limit`.
    """
    if rejected > limit * read and (final or read >= _ENOUGH):
        raise UserError(
            f"{rejected:,} of {read:,} records cannot be used; the first is {first.where}: {first.reason}.",
            "Mend the records, or raise max_reject_fraction.",
        )


def is_heldout(number: int, fraction: float, seed: int) -> bool:
    """Whether record `number` is held out: a draw that depends on nothing else."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8])
    return drawn < fraction * 2**64
