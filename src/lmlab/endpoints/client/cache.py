"""Replies that are paid for once: one SQLite file, shared by as many processes as like to."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lmlab.endpoints.protocol import Reply
from lmlab.errors import UserError

_SCHEMA = """
create table if not exists replies (
    key text primary key, model text not null, reply text not null, cost_usd real, at real not null
);
create table if not exists claims (key text primary key, owner text not null, until real not null);
"""


class ReplyCache:
    """Replies by the key of their request.

    A reply is committed before anyone hears of it, so a killed process loses only what was still under way. Who is
    about to send a request claims its key first; a claim ends with the reply, with its owner's process (on one
    machine), or when its lease runs out.

    Arguments:
        path: the file; None keeps replies in memory, for as long as this object lives.
        lease_s: how long a claim holds without its owner being heard of.
    """

    def __init__(self, path: Path | None, lease_s: float = 900.0) -> None:
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._lease_s = lease_s
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
            _write_ahead(self._database)
            self._database.execute("pragma synchronous=normal")
            self._database.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"'{path}' cannot be used as a cache of replies: {error}.", "Name another file, or move this one away."
            ) from None

    def get(self, key: str) -> Reply | None:
        row = self._database.execute("select reply from replies where key = ?", (key,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def put(self, key: str, model: str, reply: Reply) -> None:
        """Keep a reply and end the claim on it, in one transaction."""
        self._database.execute("begin immediate")
        self._database.execute(
            "insert or replace into replies values (?, ?, ?, ?, ?)",
            (key, model, reply.to_json(), reply.cost_usd, time.time()),
        )
        self._database.execute("delete from claims where key = ?", (key,))
        self._database.execute("commit")

    def claim(self, key: str) -> bool:
        """Whether the request is now ours to send, also if it was already; False while another owner has it, or once
        its reply is here.
        """
        self._database.execute("begin immediate")
        try:
            if self._database.execute("select 1 from replies where key = ?", (key,)).fetchone():
                return False
            row = self._database.execute("select owner, until from claims where key = ?", (key,)).fetchone()
            if row is not None and row[0] != self._owner and row[1] > time.time() and _alive(row[0]):
                return False
            self._database.execute(
                "insert or replace into claims values (?, ?, ?)", (key, self._owner, time.time() + self._lease_s)
            )
            return True
        finally:
            self._database.execute("commit")

    def release(self, key: str) -> None:
        """Give up a claim without a reply."""
        self._database.execute("delete from claims where key = ? and owner = ?", (key, self._owner))

    def spent(self, model: str) -> float:
        """US dollars paid for the replies of a model that are kept here."""
        return self._database.execute(
            "select coalesce(sum(cost_usd), 0) from replies where model = ?", (model,)
        ).fetchone()[0]

    def __iter__(self) -> Iterator[tuple[str, str, Reply]]:
        """Key, model and reply of all, in the order of their coming."""
        for key, model, reply in self._database.execute("select key, model, reply from replies order by at, key"):
            yield key, model, Reply.from_json(reply)

    def __len__(self) -> int:
        return self._database.execute("select count(*) from replies").fetchone()[0]

    def close(self) -> None:
        self._database.close()


def _alive(owner: str) -> bool:
    host, process, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True  # of another machine only the lease tells
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
            time.sleep(0.02)
