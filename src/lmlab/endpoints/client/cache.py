"""Replies that are paid for once: one SQLite file, shared by as many processes as like to."""

from __future__ import annotations

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.distributed import Lease, Leases, SqliteStore
from lmlab.endpoints.protocol import Reply
from lmlab.errors import UserError
from lmlab.files import ParseError

_YEAR_9999 = 2.5e11  # in seconds since 1970: later times have no date
_SCHEMA = """
create table if not exists replies (
    key text primary key, model text not null, reply text not null, cost_usd real, at real not null
)
"""
_PAID = """
create table if not exists unusable (key text not null, model text not null, status text not null, cost_usd real,
    at real not null)
"""


class ReplyCache:
    """Replies by the key of their request.

    A reply is committed before anyone hears of it, so a killed process loses only what was still under way. Who is
    about to send a request claims its key first: a lease (`lmlab.distributed`), which is renewed for as long as the
    request takes.

    Arguments:
        path: the file; None keeps replies in memory, for as long as this object lives.
    """

    def __init__(self, path: str | Path | None) -> None:
        path = None if path is None else Path(path)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
            _write_ahead(self._database)
            self._database.execute("pragma synchronous=normal")
            self._database.execute(_SCHEMA)
            self._database.execute(_PAID)
            self._store = SqliteStore(path)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"'{path}' cannot be used as a cache of replies: {error}.", "Name another file, or move this one away."
            ) from None
        self._leases = Leases(self._store)

    def get(self, key: str) -> Reply | None:
        row = self._database.execute("select reply from replies where key = ?", (key,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def put(self, key: str, model: str, reply: Reply) -> None:
        """Keep a reply."""
        self._database.execute(
            "insert or replace into replies values (?, ?, ?, ?, ?)",
            (key, model, reply.to_json(), reply.cost_usd, time.time()),
        )

    def note_paid(self, key: str, model: str, reply: Reply) -> None:
        """Remember what a reply cost that is of no use, so that it is not kept: a refusal, a call of a tool."""
        row = (key, model, reply.status, reply.cost_usd, time.time())
        self._database.execute("insert into unusable values (?, ?, ?, ?, ?)", row)

    def claim(self, key: str) -> Lease | None:
        """The lease of a request that is now ours to send; None while it is somebody's, or once its reply is here.

        Give the lease back after the reply was put.
        """
        lease = self._leases.acquire(key)
        # Between a look for the reply and the claim, its former holder may have put it and given the lease back.
        if lease is not None and self._database.execute("select 1 from replies where key = ?", (key,)).fetchone():
            lease.release()
            return None
        return lease

    def spent(self, model: str) -> float:
        """US dollars paid for the replies of a model, also for those of no use."""
        query = "select coalesce(sum(cost_usd), 0) from {} where model = ?"
        found = (
            self._database.execute(query.format(table), (model,)).fetchone()[0] for table in ("replies", "unusable")
        )
        return float(sum(found))

    def __iter__(self) -> Iterator[tuple[str, str, Reply]]:
        """Key, model and reply of all, in the order of their coming."""
        for key, model, reply in self._database.execute("select key, model, reply from replies order by at, key"):
            yield key, model, Reply.from_json(reply)

    def __len__(self) -> int:
        return self._database.execute("select count(*) from replies").fetchone()[0]

    def close(self) -> None:
        self._leases.close()
        self._store.close()
        self._database.close()


@dataclass(frozen=True)
class Kept:
    """What a cache holds of one model: what a second run of the same requests neither sends nor pays.

    Attributes:
        replies: that are kept, by status.
        unusable: that were paid for and are not kept, by status: they are asked for again.
        prompt, cached, completion: tokens of the replies that are kept; of some of them estimated ones.
        estimated: replies whose tokens are an estimate.
        cost_usd: of the replies that are kept; None where no price is known.
        unpriced: replies without a known price.
        unusable_usd: of the others.
        first, last: when the replies came, in seconds since 1970.
        num_bytes: of the replies as they are stored.
    """

    model: str
    replies: dict[str, int]
    unusable: dict[str, int]
    prompt: int
    cached: int
    completion: int
    estimated: int
    cost_usd: float | None
    unpriced: int
    unusable_usd: float
    first: float
    last: float
    num_bytes: int


def kept_in(path: str | Path) -> list[Kept]:
    """What the file of a cache holds, by model; it is only read.

    Raises:
        UserError: it is no cache.
    """
    remedy = "Name a file of replies (replies.sqlite, OUT.cache), or a run's folder."
    if not Path(path).is_file():
        raise UserError(f"There is no file '{path}'.", remedy)
    found: dict[str, dict[str, Any]] = {}
    try:
        database = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=60)
        try:
            for model, text, cost, at in database.execute("select model, reply, cost_usd, at from replies"):
                _check_row(model, cost, at)
                reply, own = Reply.from_json(text), found.setdefault(model, _nothing_kept())
                own["replies"][reply.status] += 1
                for name in ("prompt", "cached", "completion"):
                    own[name] += getattr(reply.usage, name)
                own["estimated"] += reply.usage.estimated
                own["costs"].append(cost)
                own["times"].append(at)
                own["num_bytes"] += len(text.encode("utf-8", "surrogatepass"))
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
            query = "select model, status, cost_usd, at from unusable" if "unusable" in tables else "select 1 where 0"
            for model, status, cost, at in database.execute(query):
                _check_row(model, cost, at)
                own = found.setdefault(model, _nothing_kept())
                own["unusable"][status] += 1
                own["unusable_usd"] += cost or 0.0
                own["times"].append(at)
        finally:
            database.close()
    except (sqlite3.Error, ParseError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no cache of replies ({error}).", remedy) from None
    return [_kept(model, own) for model, own in sorted(found.items())]


def _check_row(model: Any, cost: Any, at: Any) -> None:
    """SQLite keeps any value in any column.

    Raises:
        TypeError: a name, a cost or a time is none.
    """
    is_cost = cost is None or (isinstance(cost, int | float) and math.isfinite(cost))
    if not isinstance(model, str) or not is_cost or not isinstance(at, int | float) or not 0 <= at < _YEAR_9999:
        raise TypeError(f"a row holds {model!r}, {cost!r}, {at!r}")


def _nothing_kept() -> dict[str, Any]:
    numbers = dict.fromkeys(("prompt", "cached", "completion", "estimated", "num_bytes"), 0)
    return {**numbers, "replies": Counter(), "unusable": Counter(), "costs": [], "times": [], "unusable_usd": 0.0}


def _kept(model: str, own: dict[str, Any]) -> Kept:
    costs, times = own.pop("costs"), own.pop("times")
    known = [cost for cost in costs if cost is not None]
    own |= {"replies": dict(sorted(own["replies"].items())), "unusable": dict(sorted(own["unusable"].items()))}
    cost = math.fsum(known) if known else None
    return Kept(model, **own, cost_usd=cost, unpriced=len(costs) - len(known), first=min(times), last=max(times))


def _write_ahead(database: sqlite3.Connection, patience_s: float = 60.0) -> None:
    """Turn on the write-ahead log. SQLite does not wait for others here, whatever its time-out, so this does."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            database.execute("pragma journal_mode=wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # others hold the lock for one transaction
