"""One builder at a time in a folder: by a lock of the operating system here, by an object that only one can create at a
URL.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lmlab.errors import UserError
from lmlab.files import file_system, is_url

BEAT_S = 20.0
_ABANDONED_BEATS = 6  # without a beat for so long, its holder is taken for dead


@contextlib.contextmanager
def alone(location: str, beat_s: float = BEAT_S) -> Iterator[None]:
    """Wait for other builders in a folder.

    At a URL the lock is the object `.lock`, made by a request that fails where it is there (S3, GCS, Azure, memory,
    files). Its holder writes it anew every `beat_s` seconds; who waits takes it over when it has stood unchanged for
    six of those, by its own clock. Two that take over in the same moment could both go on: what they write is then
    still told apart by its digests. A store whose file system cannot create so has no lock.
    """
    if not is_url(location):
        from filelock import FileLock

        Path(location).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(location) / ".lock"):
            yield
        return
    system, root = file_system(location)
    system.makedirs(root, exist_ok=True)
    place, mine = f"{root}/.lock", f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    if not _acquire(system, place, mine, beat_s):
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(beat_s):
            number += 1
            with contextlib.suppress(Exception):  # a request that fails is made up for by the next
                system.pipe_file(place, f"{mine} {number}".encode())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        found = _content(system, place)
        if found is not None and found.startswith(mine):
            system.rm_file(place)


def _acquire(system: object, place: str, mine: str, beat_s: float) -> bool:
    """Whether there is a lock now; a file system that cannot make one has none."""
    seen: tuple[str | None, float] = (None, time.monotonic())
    while True:
        try:
            system.pipe_file(place, mine.encode(), mode="create")  # type: ignore[attr-defined]
            return True
        except FileExistsError:
            pass
        except (TypeError, ValueError, NotImplementedError):
            return False
        except OSError as error:
            raise UserError(f"'{place}' cannot be written: {error}.") from None
        held = _content(system, place)
        if held is not None and held == seen[0] and time.monotonic() - seen[1] > _ABANDONED_BEATS * beat_s:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(place)  # type: ignore[attr-defined]
        elif held != seen[0]:
            seen = (held, time.monotonic())
        time.sleep(min(1.0, beat_s / 4))


def _content(system: object, place: str) -> str | None:
    try:
        found: bytes = system.cat_file(place)  # type: ignore[attr-defined]
    except FileNotFoundError:
        return None
    return found.decode(errors="replace")
