"""What a run may use, and what it used."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat, PositiveInt

from lmlab.config import Config
from lmlab.errors import LmlabError

MIB = 1 << 20


class Limits(Config):
    """What one run in a sandbox may use.

    Attributes:
        timeout_s: seconds, then every process of the run is killed.
        memory_mib: of all its processes together.
        processes: that live at once, threads included.
        cpus: cores that it keeps busy.
        tmp_mib: of files in /tmp, which are memory.
        disk_mib: that the workspace may grow by.
        output_mib: of output that is kept: the first and the last half of it.
        open_files: that one process has open.
    """

    timeout_s: PositiveFloat = 1800.0
    memory_mib: PositiveInt = 4096
    processes: PositiveInt = 512
    cpus: PositiveFloat = 2.0
    tmp_mib: PositiveInt = 512
    disk_mib: PositiveInt = 2048
    output_mib: PositiveFloat = 50.0
    open_files: PositiveInt = 4096


class SandboxFailure(LmlabError):
    """The sandbox itself has failed, whatever it was to run: no statement about that code follows from it."""


@dataclass(frozen=True)
class ExecResult:
    """How a run ended.

    Attributes:
        exit_code: of the command; 128 + N where signal N has ended it; None where the run was killed for want of time,
            memory or disk.
        signal: that ended the command.
        timed_out: it was killed as its time was over.
        oom_killed: a process was killed for want of memory.
        disk_exceeded: it was killed as the workspace grew too much.
        output_truncated: the middle of its output is not kept.
        wall_s, cpu_s: seconds passed, and seconds that processors were busy.
        max_rss_bytes: memory, of all processes where a control group counts them, else of the largest one.
    """

    exit_code: int | None
    signal: int | None
    timed_out: bool
    oom_killed: bool
    disk_exceeded: bool
    output_truncated: bool
    wall_s: float
    cpu_s: float
    max_rss_bytes: int

    @property
    def ended(self) -> bool:
        """The command came to its own end, whatever its exit status."""
        return self.exit_code is not None and not self.oom_killed
