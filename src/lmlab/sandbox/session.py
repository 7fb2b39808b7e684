"""The two protocols: an executor opens sessions, a session runs commands on a workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

from lmlab.sandbox.box import Box, Mount
from lmlab.sandbox.limits import ExecResult, Limits

Isolation = Literal["container", "namespace", "none"]


@dataclass(frozen=True)
class ExecutorInfo:
    """What an executor can do here.

    Attributes:
        reason: why it is not available.
        isolation: what stands between the code and the machine.
        enforced: limit to what holds it ("cgroup v1", "watcher"); a limit that nothing holds is not in it.
    """

    name: str
    available: bool
    isolation: Isolation
    reason: str = ""
    version: str = ""
    enforced: Mapping[str, str] = field(default_factory=dict)


class Session(Protocol):
    """A workspace in a sandbox. Every `run` starts afresh: no process lives on from the one before."""

    root: str
    """Where the workspace stands, as the code sees it."""

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
        """Run a command in the workspace.

        Arguments:
            stdin: all that it can read; without any it reads the end at once.
            env: further variables.
            timeout: seconds, by default the limits'.
            sink: receives standard output and error as they come, also those of a run that is killed.
            mounts: what is seen in this run only.

        Raises:
            SandboxFailure: the command could not be started, or the sandbox broke.
        """

    def place(self, mount: Mount) -> str:
        """How the code calls a mounted file or folder."""

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file of the workspace; no link in it is followed."""

    def get(self, path: str, max_bytes: int) -> bytes:
        """Read a file of the workspace; no link in it is followed.

        Raises:
            OSError: it is not there, is no plain file, or is longer.
        """


class Executor(Protocol):
    """A kind of sandbox."""

    name: str

    def probe(self) -> ExecutorInfo:
        """What it can do here, tried out and remembered."""

    def open(self, box: Box, limits: Limits | None = None) -> AbstractContextManager[Session]:
        """Open a session.

        Raises:
            SandboxFailure: it cannot be had.
        """
