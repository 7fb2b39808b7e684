"""No walls: the code runs as this user, on this machine. For code that is trusted, and nothing else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from lmlab.sandbox.box import Box, Mount, get_file, put_file
from lmlab.sandbox.limits import MIB, ExecResult, Limits
from lmlab.sandbox.process import (
    CappedSink,
    Stop,
    descendants,
    folder_bytes,
    folders_bytes,
    resident_bytes,
    run_process,
)
from lmlab.sandbox.session import ExecutorInfo, Session


class Local:
    """Opens sessions without isolation; only time, memory, disk and output are limited, by a watcher."""

    name = "local"

    def probe(self) -> ExecutorInfo:
        """It is always there."""
        enforced = {"timeout": "process group", "output": "pipe", "memory": "watcher", "disk": "watcher"}
        return ExecutorInfo("local", True, "none", "", "", enforced)

    @contextmanager
    def open(self, box: Box, limits: Limits | None = None) -> Iterator[Session]:
        """Open a session in the workspace itself."""
        yield _Session(box, limits or Limits())


class _Session:
    def __init__(self, box: Box, limits: Limits) -> None:
        self._box, self._limits = box, limits
        self.root = str(box.workspace.resolve())
        self._size = folder_bytes(self.root, sys.maxsize)

    def place(self, mount: Mount) -> str:
        return str(mount.source.resolve())

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        put_file(self._box.workspace, path, data, mode)

    def get(self, path: str, max_bytes: int) -> bytes:
        return get_file(self._box.workspace, path, max_bytes)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        sink: BinaryIO | None = None,
        mounts: Sequence[Mount] = (),
    ) -> ExecResult:
        limits = self._limits
        capped = CappedSink(sink, int(limits.output_mib * MIB))
        known: set[int] = set()
        folders = self._box.written(mounts)
        most = self._size + folders_bytes(folders[1:], sys.maxsize) + limits.disk_mib * MIB

        def watch(pid: int) -> Stop | None:
            known.update(found := descendants(pid))
            if resident_bytes(found) > limits.memory_mib * MIB:
                return "memory"
            return "disk" if folders_bytes(folders, most) > most else None

        def kill() -> None:
            for pid in known:  # also those that have left the group
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

        variables = self._box.environment(env) | {"HOME": self.root}
        ended = run_process(
            argv,
            stdin=stdin,
            env=variables,
            cwd=self.root,
            timeout=timeout or limits.timeout_s,
            sink=capped,
            watch=watch,
            kill=kill,
        )
        capped.close()
        code = None if ended.stopped is not None else ended.status if ended.status >= 0 else 128 - ended.status
        return ExecResult(
            exit_code=code,
            signal=-ended.status if ended.status < 0 and ended.stopped is None else None,
            timed_out=ended.stopped == "time",
            oom_killed=ended.stopped == "memory",
            disk_exceeded=ended.stopped == "disk",
            output_truncated=capped.truncated,
            wall_s=ended.wall_s,
            cpu_s=ended.cpu_s,
            max_rss_bytes=ended.max_rss_bytes,
        )
