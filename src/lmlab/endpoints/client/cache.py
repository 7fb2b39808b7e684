"""Replies that are paid for once: one SQLite file, shared by as many processes as like to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from lmlab.distributed import Lease, Leases, SqliteStore
from lmlab.endpoints.protocol import Reply
from lmlab.errors import UserError

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
