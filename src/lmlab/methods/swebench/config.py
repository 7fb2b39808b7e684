"""Settings of the method: where patches are run, and what they may use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import PositiveFloat, PositiveInt

from lmlab.config import Config, Flag


class SandboxConfig(Config):
    """Where code is run, and what it may use.

    Attributes:
        executor: bubblewrap, local, or auto for the first isolated one.
        unsafe: take the executor `local`, which has no walls. For patches that you trust.
        require_limits: limits that something must hold, such as memory,processes.
        timeout_s: seconds of one test run.
        memory_mib: of all its processes.
        processes: that live at once.
        cpus: cores that it keeps busy.
        control: repeat a run that would count as a pass with tests that must fail; without it a pass can be forged.
        cache: folder for environments and unpacked trees, by default lmlab's cache.
        repositories: folder with repositories OWNER__NAME, for instances that bring no tree along.
    """

    executor: str = "auto"
    unsafe: Annotated[bool, Flag(("--unsafe-no-sandbox",))] = False
    require_limits: str | None = None
    timeout_s: PositiveFloat = 1800.0
    memory_mib: PositiveInt = 4096
    processes: PositiveInt = 512
    cpus: PositiveFloat = 2.0
    control: Annotated[bool, Flag(("--control/--no-control",))] = True
    cache: Path | None = None
    repositories: Path | None = None
