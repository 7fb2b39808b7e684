"""What could not be used: counted by reason, listed in a file, and told in one sentence."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lmlab.data.documents import Reject
from lmlab.errors import UserError
from lmlab.files import atomic_file
from lmlab.words import counted

_ENOUGH_TO_JUDGE = 1000  # records: of fewer, a bad first stretch of a good file would pass for too many
_TOLD = 3  # reasons in the sentence; the others are counted together


class Rejects:
    """Writes the rejects of one piece of work to a file, one JSON object a line, and stops it when they are too many.

    Arguments:
        path: the file; it appears when the work is done. None counts only, as all but one of several processes do.
        limit: the share of all records that may be unfit. Records of other splits, crafted ones, and damage that is
            kept on purpose do not count.

    Attributes:
        unfit: how many are unfit.
        first: the first of them.
    """

    def __init__(self, path: str | Path | None, limit: float) -> None:
        self.unfit = 0
        self.first: Reject | None = None
        self._limit = limit
        self._context: AbstractContextManager[IO[str] | None] = (
            nullcontext() if path is None else atomic_file(Path(path), "w")
        )
        self._reasons: Counter[str] = Counter()
        self._damaged: list[str] = []
        self._other_splits = self._crafted = 0

    def __enter__(self) -> Rejects:
        self._file = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)

    def add(self, reject: Reject) -> None:
        """Count and write one."""
        row = {"where": reject.where, "reason": reject.reason}
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=True) + "\n")
        if reject.kind == "split":
            self._other_splits += 1
        elif reject.kind == "redteam":
            self._crafted += 1
        elif reject.kind == "damage":
            self._damaged.append(f"{reject.where}: {reject.reason}")
        else:
            self.unfit += 1
            self.first = self.first or reject
            self._reasons[reject.reason.partition(" (")[0]] += 1

    def too_many(self, fit: int, final: bool = False) -> bool:
        """Whether too many are unfit; before the end only once there are enough to tell.

        Arguments:
            fit: records that could be used so far.
        """
        read = fit + self.unfit
        return self.unfit > self._limit * read and (final or read >= _ENOUGH_TO_JUDGE)

    def check(self, fit: int, remedy: str) -> None:
        """Stop when too many are unfit. Call it when the file is written, which lists them.

        Raises:
            UserError: more than the limit.
        """
        if self.first is not None and self.too_many(fit, final=True):
            raise UserError(
                f"{self.unfit:,} of {fit + self.unfit:,} records cannot be used; the first is {self.first.where}:"
                f" {self.first.reason}.",
                remedy,
            )

    def account(self) -> dict[str, Any]:
        """What a stage stores of them: `rejects` (unfit records), `reject_reasons`, `damaged`, `other_splits`, and
        `redteam` where there are some (records that say they were crafted to attack a model).
        """
        return {
            **({"redteam": self._crafted} if self._crafted else {}),
            "rejects": self.unfit,
            "reject_reasons": dict(self._reasons.most_common()),
            "damaged": self._damaged,
            "other_splits": self._other_splits,
        }


def rejects_summary(account: dict[str, Any]) -> str:
    """A sentence on what is set aside, from what `Rejects.account` gave; empty if nothing is."""
    sentences = []
    if account.get("rejects"):
        reasons = list(account.get("reject_reasons", {}).items())
        told = [f"{count:,} {reason}" for reason, count in reasons[:_TOLD]]
        if rest := sum(count for _, count in reasons[_TOLD:]):
            told.append(f"{rest:,} for other reasons")
        sentences.append(f"{counted(account['rejects'], 'records')} set aside ({', '.join(told)}; see rejects.jsonl).")
    if account.get("damaged"):
        more = f" and {len(account['damaged']) - 1:,} more" if len(account["damaged"]) > 1 else ""
        sentences.append(f"DAMAGED, and only in part used: {account['damaged'][0]}{more}.")
    if account.get("redteam"):
        sentences.append(f"{account['redteam']:,} records that were crafted for an attack left out (redteam: keep).")
    if account.get("other_splits"):
        sentences.append(f"{counted(account['other_splits'], 'records')} of other splits left out.")
    return " ".join(sentences)
