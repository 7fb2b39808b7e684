"""One command with its descendants: output that is kept up to a limit, and an end that leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from lmlab.sandbox.limits import SandboxFailure
from lmlab.words import counted

Stop = Literal["time", "memory", "disk"]
_PIECE = 1 << 16  # bytes: what a pipe holds by default
_POLL_S = 0.1  # what a process can overrun a limit by before it is seen
_GRACE_S = 5.0  # for what dead processes still have in the pipe
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class CappedSink:
    """Passes on the first half of what may be kept, holds back the last one, and says at the end how much was left out
    between them.
    """

    def __init__(self, sink: BinaryIO | None, most: int) -> None:
        self._sink, self._head_left, self._most_tail = sink, most - most // 2, most // 2
        self._tail: deque[bytes] = deque()
        self._tail_size = self._dropped = 0
        self.begin = b""
        """The first few hundred bytes."""

    @property
    def truncated(self) -> bool:
        """Something is left out."""
        return self._dropped > 0

    def write(self, data: bytes) -> None:
        """Take a piece of output."""
        if len(self.begin) < 300:
            self.begin += data[:300]
        head, rest = data[: self._head_left], data[self._head_left :]
        if head and self._sink is not None:
            self._sink.write(head)
        self._head_left -= len(head)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self._most_tail:
                gone = self._tail.popleft()
                self._tail_size -= len(gone)
                self._dropped += len(gone)

    def close(self) -> None:
        """Pass on what was held back."""
        if self._sink is None:
            return
        if self._dropped:
            self._sink.write(f"\n[{counted(self._dropped, 'bytes')} left out]\n".encode())
        for piece in self._tail:
            self._sink.write(piece)
        self._sink.flush()


@dataclass(frozen=True)
class Ended:
    """A process that is over.

    Attributes:
        status: exit status, or minus the signal's number.
        stopped: why it was killed from here.
    """

    status: int
    stopped: Stop | None
    wall_s: float
    cpu_s: float
    max_rss_bytes: int


def run_process(
    argv: Sequence[str],
    *,
    stdin: bytes,
    env: dict[str, str],
    cwd: str | None,
    timeout: float,
    sink: CappedSink,
    pass_fds: Sequence[int] = (),
    watch: Callable[[int], Stop | None] = lambda pid: None,
    kill: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command to its end, or to that of its time.

    Arguments:
        watch: asked ten times a second with the process's number; a reason ends the run.
        kill: what else ends its descendants, besides the signal to its group.

    Raises:
        SandboxFailure: it cannot be started.
    """
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxFailure(f"'{argv[0]}' cannot be started: {error.strerror}.") from None
    if stdin:
        threading.Thread(target=_feed, args=(process, stdin), daemon=True).start()
    stopped: Stop | None = None
    status: tuple[int, int, "os.struct_rusage"] | None = None  # type: ignore[name-defined]  # noqa: UP037
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            open_output = True
            while status is None:
                left = began + timeout - time.monotonic()
                if stopped is None and left <= 0:
                    stopped = "time"
                elif stopped is None:
                    stopped = watch(process.pid)
                if stopped is not None:
                    break
                pause = min(max(left, 0), _POLL_S)
                if open_output:
                    if selector.select(pause):
                        open_output = _drain(output, sink)
                    if not open_output:
                        selector.unregister(output)
                else:
                    time.sleep(min(pause, 0.005))  # output is closed, so that the end is near
                status = _reaped(process.pid)
            _kill(process.pid, kill)
            if status is None:
                status = os.wait4(process.pid, 0)
            # Who holds the pipe is dead or dying; what they wrote before is still in it
            end = time.monotonic() + _GRACE_S
            while open_output and selector.select(max(0.0, end - time.monotonic())):
                open_output = _drain(output, sink)
    except BaseException:
        _kill(process.pid, kill)
        if status is None:
            with contextlib.suppress(ChildProcessError):
                os.wait4(process.pid, 0)
        raise
    finally:
        process.returncode = 0 if status is None else os.waitstatus_to_exitcode(status[1])
        process.stdout.close()
    usage = status[2]
    return Ended(
        process.returncode,
        stopped,
        time.monotonic() - began,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
    )


def _reaped(pid: int) -> tuple[int, int, os.struct_rusage] | None:  # type: ignore[name-defined]
    found = os.wait4(pid, os.WNOHANG)
    return found if found[0] else None


def _drain(output: int, sink: CappedSink) -> bool:
    """Take what is there; False at the end. A writer without pause gets no more than a turn, for the clock's sake."""
    for _ in range(64):  # 4 MiB
        try:
            data = os.read(output, _PIECE)
        except BlockingIOError:
            return True
        if not data:
            return False
        sink.write(data)
    return True


def _kill(pid: int, kill: Callable[[], None]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    kill()


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, OSError, ValueError):
        process.stdin.write(data)
    with contextlib.suppress(BrokenPipeError, OSError, ValueError):
        process.stdin.close()


def descendants(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    found, place = [pid], 0
    while place < len(found):
        found += children.get(found[place], [])
        place += 1
    return found


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory that processes hold; what they share is counted for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
            pages += int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


_ENTRY_BYTES = 256  # what a name and its inode take at least, so that empty files cost something
_MOST_DEEP = 256  # folders in one another; each is held open while it is counted


def folder_bytes(root: str, stop_at: int) -> int:
    """Disk that a folder takes, without following links; counting ends where it is more than enough.

    Folders are opened one in the other, as code can nest them deeper than any path may be long. Those that are nested
    deeper than any real tree count as more than enough.
    """
    try:
        top = os.open(root, _FOLDER)
    except OSError:
        return 0
    total, pending = 0, [(top, ["."])]
    try:
        while pending:
            if len(pending) > _MOST_DEEP:
                return stop_at + 1
            at, names = pending[-1]
            if not names:
                os.close(pending.pop()[0])
                continue
            try:
                folder = os.open(names.pop(), _FOLDER, dir_fd=at)
            except OSError:
                continue  # it has just been removed, or is not ours to read
            inner: list[str] = []
            pending.append((folder, inner))
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512 + _ENTRY_BYTES
                        if entry.is_dir(follow_symlinks=False):
                            inner.append(entry.name)
                    if total > stop_at:
                        return total
        return total
    finally:
        for folder, _ in pending:
            os.close(folder)


def folders_bytes(roots: Iterable[str], stop_at: int) -> int:
    """Disk that several folders take (`folder_bytes`)."""
    total = 0
    for root in roots:
        total += folder_bytes(root, stop_at - total)
        if total > stop_at:
            break
    return total
