"""Leases with real processes, in a folder, a SQLite file and at a URL: nobody holds what another holds, whatever dies,
stops or has the wrong time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.spec import AbstractFileSystem

from lmlab.distributed import FolderStore, Leases, NoAtomicCreateError, Record, SqliteStore, Store, UrlStore
from lmlab.distributed.leases import is_dead, owner_token

SHORT_S = 0.6
_STORES = {"folder": FolderStore, "sqlite": SqliteStore, "url": UrlStore}


def place_of(kind: str, folder: Path) -> str:
    return f"file://{folder}/leases" if kind == "url" else str(folder / "leases")


@pytest.fixture(params=list(_STORES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return lambda: _STORES[request.param](place_of(request.param, tmp_path))


@pytest.fixture
def run(make: Callable[[], Store], tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that has `leases` of the same store; it says "ready" when its first lines are done."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, before: str = "", owner: str | None = None) -> subprocess.Popen[str]:
        kind = next(name for name, store in _STORES.items() if isinstance(make(), store))
        lines = [
            before,
            "import os, sys, time, fcntl",
            "from pathlib import Path",
            f"from lmlab.distributed import Leases, {_STORES[kind].__name__} as Kept",
            f"leases = Leases(Kept({place_of(kind, tmp_path)!r}), {SHORT_S}, {owner!r})",
            code,
        ]
        command = [sys.executable, "-c", "\n".join(lines)]
        # A pipe that stays open: where tests run without input, a process that waits for some would go on at once.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


HOLD = "lease = leases.acquire('piece')\nprint('ready' if lease else 'busy', flush=True)\n"


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_for(leases: Leases, name: str, limit_s: float = 10.0) -> float:
    """Ask until the piece is ours; returns how long it took."""
    start = time.monotonic()
    while (lease := leases.acquire(name)) is None:
        assert time.monotonic() - start < limit_s, "never became free"
        time.sleep(0.02)
    assert lease.held
    return time.monotonic() - start


def test_a_piece_is_for_one_until_it_is_given_back(make: Callable[[], Store]) -> None:
    one, two = Leases(make()), Leases(make())
    lease = one.acquire("a piece/of..work")
    assert lease is not None and lease.held
    assert two.acquire("a piece/of..work") is None and one.acquire("a piece/of..work") is None
    assert two.acquire("another") is not None
    assert lease.release() and not lease.held and not lease.release()
    with two.acquire("a piece/of..work") as again:  # type: ignore[union-attr]
        assert again.held
    assert one.store.read("a piece/of..work") is None


def test_a_swap_needs_the_very_record(make: Callable[[], Store]) -> None:
    store, other = make(), make()
    assert store.swap("x", None, Record("me")) and not other.swap("x", None, Record("you"))
    assert not other.swap("x", Record("me", 1), Record("you")) and not other.swap("x", Record("you"), None)
    assert store.swap("x", Record("me"), Record("me", 1)) and other.read("x") == Record("me", 1)
    assert other.swap("x", Record("me", 1), None) and store.read("x") is None


def test_a_long_piece_stays_its_holders(make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]]) -> None:
    code = HOLD + f"time.sleep({4 * SHORT_S})\nprint(lease.held and lease.release(), flush=True)\ntime.sleep(30)"
    holder = run(code, owner="elsewhere")
    assert said(holder) == "ready"
    leases = Leases(make(), SHORT_S)
    # Asked for all the time; before leases were renewed it would have been had after one lease's time.
    assert wait_for(leases, "piece") > 3 * SHORT_S
    assert said(holder) == "True", "it was given back, and not taken away"


def test_the_piece_of_a_killed_process_of_another_machine_is_had_after_the_leases_time(
    make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = run(HOLD + "time.sleep(60)", owner="elsewhere")
    assert said(holder) == "ready"
    holder.kill()
    holder.wait()
    leases = Leases(make(), SHORT_S)
    assert SHORT_S <= wait_for(leases, "piece") < 3 * SHORT_S


def test_that_of_a_killed_process_of_this_machine_is_had_at_once(
    make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = run(HOLD + "time.sleep(60)")
    leases = Leases(make(), 100.0)
    assert said(holder) == "ready" and leases.acquire("piece") is None
    holder.kill()
    holder.wait()
    assert leases.acquire("piece") is not None


def test_who_was_stopped_loses_the_piece_knows_it_and_cannot_give_back_the_next_ones(
    make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = run(HOLD + "sys.stdin.read()\nprint(lease.held, lease.release(), flush=True)\ntime.sleep(30)")
    assert said(holder) == "ready"
    os.kill(holder.pid, signal.SIGSTOP)
    leases = Leases(make(), SHORT_S)
    assert wait_for(leases, "piece") >= SHORT_S, "a living process keeps it for the lease's time"
    standing = leases.store.read("piece")
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.stdin is not None
    holder.stdin.close()
    assert said(holder) == "False False"
    now = leases.store.read("piece")
    assert standing is not None and now is not None and now.owner == standing.owner


@pytest.mark.parametrize("hours", [-5, 5])
def test_wrong_clocks_do_no_harm(
    hours: int, make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    wrong = f"import time\nreal = time.time\ntime.time = lambda: real() + {hours * 3600}"
    holder = run(HOLD + "time.sleep(60)", before=wrong, owner="elsewhere")
    assert said(holder) == "ready"
    leases, until = Leases(make(), SHORT_S), time.monotonic() + 3 * SHORT_S
    while time.monotonic() < until:
        for path in [tmp_path / "leases", *(tmp_path / "leases").rglob("*")]:
            with contextlib.suppress(FileNotFoundError):  # renewed in between
                os.utime(path, (time.time() + hours * 3600,) * 2)
        assert leases.acquire("piece") is None
        time.sleep(0.02)
    holder.kill()
    assert wait_for(leases, "piece") < 3 * SHORT_S


WITNESS = """
lock = open({path!r}, "w")
print("ready", flush=True)
end, had = time.monotonic() + {seconds}, 0
while time.monotonic() < end:
    lease = leases.acquire("piece")
    if lease is None:
        time.sleep(0.001)
        continue
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error if another process is inside
    time.sleep(0.004)
    fcntl.flock(lock, fcntl.LOCK_UN)
    had += lease.release()
print(had, flush=True)
"""


def test_two_processes_never_hold_one_piece(
    make: Callable[[], Store], run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The kernel's own lock is the witness; some processes are killed, wherever they are."""
    code = WITNESS.format(path=str(tmp_path / "witness"), seconds=4.0)
    workers = [run(code) for _ in range(4)]
    victims = [run(code) for _ in range(3)]
    assert [said(each) for each in workers + victims] == ["ready"] * 7
    for victim in victims:
        time.sleep(0.8)
        victim.kill()
        victim.wait()
    counts = [int(said(each) or -1) for each in workers]
    # nothing promises that everyone has a turn: on a crowded machine one process may find the piece held every time
    assert min(counts) >= 0 and sum(count > 0 for count in counts) >= 2 and sum(counts) > 50
    assert [each.wait() for each in workers] == [0] * 4


def test_what_cannot_be_renewed_is_no_longer_held(tmp_path: Path) -> None:
    """A store out of reach: another process might be told that the lease ran out."""
    leases = Leases(SqliteStore(tmp_path / "leases", wait_s=0.01), SHORT_S)
    lease = leases.acquire("piece")
    assert lease is not None and lease.held
    with contextlib.closing(sqlite3.connect(tmp_path / "leases", isolation_level=None)) as other:
        other.execute("begin exclusive")
        time.sleep(1.5 * SHORT_S)
        assert not lease.held
        other.execute("rollback")
    time.sleep(SHORT_S)
    assert lease.held and lease.release(), "nobody has taken it in between"


def test_leases_that_are_closed_are_given_back(make: Callable[[], Store]) -> None:
    leases = Leases(make())
    assert leases.acquire("one") and leases.acquire("two")
    leases.close()
    other = Leases(make())
    assert other.acquire("one") and other.acquire("two")


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    leases = Leases(FolderStore(tmp_path))
    for name in ("one", "two", "one"):
        with leases.acquire(name):  # type: ignore[union-attr]
            assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_url_keeps_few_objects_for_a_name(s3: Any, tmp_path: Path) -> None:
    s3.mkdir("leases")
    store = UrlStore("s3://leases/of")
    leases = Leases(store)
    for _ in range(12):
        with leases.acquire("one"):  # type: ignore[union-attr]
            assert Leases(UrlStore("s3://leases/of")).acquire("one") is None
    assert len(s3.find("leases")) == 16 and store.read("one") is None


def test_at_a_url_who_read_long_ago_wins_nothing(tmp_path: Path) -> None:
    """Numbers that were created and removed since can be created again, and must not count."""
    location = f"memory://{tmp_path.name}"
    store, late = UrlStore(location), UrlStore(location)
    assert store.swap("one", None, Record("me"))
    read = late._standing("one")
    late._standing = lambda name: read  # type: ignore[method-assign]
    for beat in range(2):
        assert store.swap("one", Record("me", beat), Record("me", beat + 1))
    assert not late.swap("one", Record("me"), Record("you")) and store.read("one") == Record("me", 2)
    assert store.swap("one", Record("me", 2), None) and not late.swap("one", Record("me"), Record("you"))
    assert store.read("one") is None


def test_a_file_system_that_looks_and_then_writes_keeps_no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's general way of creating an object is to look whether there is one, and to write over what came since."""
    store = UrlStore("memory://leases-of-a-poor-system")
    monkeypatch.setattr(type(store._system), "pipe_file", AbstractFileSystem.pipe_file)
    with pytest.raises(NoAtomicCreateError):
        store.swap("piece", None, Record("me"))


def test_a_store_that_writes_over_what_is_there_keeps_no_leases(tmp_path: Path) -> None:
    """Older file systems take the condition and say nothing, and so do some servers: two would hold one piece."""
    store = UrlStore(f"memory://{tmp_path.name}")
    write = store._system.pipe_file

    class Careless(type(store._system)):  # type: ignore[misc]
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            write(path, value)

    store._system = Careless(skip_instance_cache=True)
    with pytest.raises(NoAtomicCreateError):
        Leases(store).acquire("one")
    assert store.read("one") is None


def test_what_names_no_process_here_is_not_known_to_be_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that none can have; and where `/proc` shows another space of numbers, as in a container that was given
    its host's, nothing is known at all.
    """
    machine = owner_token().partition("-")[0]
    assert is_dead(f"{machine}-{2**22 + 1}-1-x") and not is_dead(f"{machine}-{10**30}-1-x")
    monkeypatch.setattr(os, "readlink", lambda path: "1234567")
    assert not is_dead(f"{machine}-{2**22 + 1}-1-x") and owner_token().startswith("-")
