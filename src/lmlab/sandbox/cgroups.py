"""Control groups: limits that the kernel holds for all processes of a run together.

Version 2 where a part of the tree is delegated to us, else version 1, whose controllers are trees of their own. Neither
needs systemd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lmlab.sandbox.limits import MIB, Limits

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")  # the last one only counts, and is part of cpu in version 2
_PERIOD_US = 100_000  # Linux's own default
_REAL_TIME = (os.SCHED_FIFO, os.SCHED_RR)
_NEW_S = 10.0  # a group this new may be about to get its first process


@dataclass
class Group:
    """A control group of one run.

    Attributes:
        folders: controller to its folder; in version 2 the same one.
        version: of control groups.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    version: int = 1

    @property
    def procs(self) -> list[Path]:
        """Where a process writes its number to join."""
        return [folder / "cgroup.procs" for folder in dict.fromkeys(self.folders.values())]

    def enforced(self) -> Mapping[str, str]:
        """Which limits it holds."""
        names = {"memory": "memory", "pids": "processes", "cpu": "cpus"}
        return {names[each]: f"cgroup v{self.version}" for each in self.folders if each in names}

    def oom_kills(self) -> int:
        """Processes that were killed for want of memory."""
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        folder = self.folders.get("memory")
        text = "" if folder is None else _read(folder / file)
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def peak_bytes(self) -> int:
        """The most memory that was in use; 0 where the kernel does not say."""
        file = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        folder = self.folders.get("memory")
        text = "" if folder is None else _read(folder / file).strip()
        return int(text) if text.isdigit() else 0

    def cpu_s(self) -> float:
        """Seconds that processors were busy; 0 where the kernel does not say."""
        if self.version == 2 and (folder := self.folders.get("cpu")):
            lines = dict(line.split() for line in _read(folder / "cpu.stat").splitlines())
            return int(lines.get("usage_usec", 0)) / 1e6
        folder = self.folders.get("cpuacct")
        text = "" if folder is None else _read(folder / "cpuacct.usage").strip()
        return int(text) / 1e9 if text.isdigit() else 0.0

    def kill(self) -> None:
        """Kill every process in it, also those that left their process group."""
        for folder in dict.fromkeys(self.folders.values()):
            with contextlib.suppress(OSError):
                (folder / "cgroup.kill").write_text("1")
            for number in _read(folder / "cgroup.procs").split():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(number), 9)

    def remove(self) -> None:
        """Remove it; its processes are dead, but the kernel may need a moment to notice."""
        for folder in dict.fromkeys(self.folders.values()):
            for pause in (0, 0.01, 0.05, 0.2, 1.0):
                time.sleep(pause)
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    self.kill()


@cache
def _sweep() -> None:
    """Remove the groups of processes that were killed before they could; once in a process.

    A number that is dead here may live in another process namespace: a group with processes in it cannot be removed,
    and one that is new may be about to get them.
    """
    for parent in {*_parents_2(), *(parent for each in _CONTROLLERS for parent in _parents_1(each))}:
        for folder in parent.glob("lmlab-*-*"):
            pid = folder.name.split("-")[1]
            with contextlib.suppress(OSError):
                if not Path("/proc", pid).exists() and time.time() - folder.stat().st_mtime > _NEW_S:
                    folder.rmdir()


def make_group(limits: Limits) -> Group:
    """A group with limits; without folders where this process may make none."""
    _sweep()
    name = f"lmlab-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    group = _version_2(name) if (_ROOT / "cgroup.controllers").exists() else _version_1(name)
    for controller, folder in list(group.folders.items()):
        try:
            _set(group, controller, folder, limits)
        except OSError:
            del group.folders[controller]
            if folder not in group.folders.values():
                with contextlib.suppress(OSError):
                    folder.rmdir()
    return group


def _set(group: Group, controller: str, folder: Path, limits: Limits) -> None:
    memory = limits.memory_mib * MIB
    if controller == "cpu" and os.sched_getscheduler(0) in _REAL_TIME:
        # Quotas do not hold what has real-time priority, and a kernel that shares that priority out by groups lets none
        # of it into a new one
        raise OSError(errno.EINVAL, "real-time priority")
    if controller == "pids":
        (folder / "pids.max").write_text(str(limits.processes))
    elif controller == "memory" and group.version == 2:
        (folder / "memory.max").write_text(str(memory))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
    elif controller == "memory":
        (folder / "memory.limit_in_bytes").write_text(str(memory))
        with contextlib.suppress(OSError):  # without this, swap is free
            (folder / "memory.memsw.limit_in_bytes").write_text(str(memory))
    elif controller == "cpuacct":
        return
    elif group.version == 2:
        (folder / "cpu.max").write_text(f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(int(limits.cpus * _PERIOD_US)))


def _parents_2() -> list[Path]:
    """Where groups of version 2 may be made."""
    own = _ROOT / _own_path("").lstrip("/")
    # A group with processes of its own may have no limited children, so ours is a sibling of the caller's
    return [parent for parent in (own, own.parent) if parent.is_relative_to(_ROOT)]


def _parents_1(controller: str) -> list[Path]:
    """Where groups of a controller of version 1 may be made."""
    own = _ROOT / controller / _own_path(controller).lstrip("/")
    return list(dict.fromkeys((own, _ROOT / controller)))


def _version_2(name: str) -> Group:
    for parent in _parents_2():
        have = _read(parent / "cgroup.subtree_control").split()
        wanted = [each for each in _CONTROLLERS if each in have]
        folder = parent / name
        if wanted:
            with contextlib.suppress(OSError):
                folder.mkdir()
                return Group(dict.fromkeys(wanted, folder), 2)
    return Group({}, 2)


def _version_1(name: str) -> Group:
    group = Group()
    for controller in _CONTROLLERS:
        for parent in _parents_1(controller):
            folder = parent / name
            try:
                folder.mkdir()
            except OSError:
                continue
            group.folders[controller] = folder
            break
    return group


def _own_path(controller: str) -> str:
    """This process's group, in the tree of a controller of version 1, or in that of version 2 ("")."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or not controllers):
            return path
    return "/"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
