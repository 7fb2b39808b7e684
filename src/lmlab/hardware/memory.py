"""Memory: how much there is, how much was taken, and how to keep what was freed."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def memory_bytes() -> int | None:
    """What this process may take at most, in bytes: physical memory, or what its control groups grant of it; None
    where the system does not tell.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([physical, *_granted()])


def _granted() -> list[int]:
    """The limits of the control group of this process and of all that it lies within; none where there are none.

    Files are as in Linux's cgroups(7): "number:controllers:path", where version 2 names no controllers. A container may
    see its own group as the root, whatever its path is.
    """
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    files = [_GROUPS / "memory.max", _GROUPS / "memory" / "memory.limit_in_bytes"]
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        root, name = (_GROUPS, "memory.max") if not controllers else (_GROUPS / "memory", "memory.limit_in_bytes")
        if not controllers or "memory" in controllers.split(","):
            own = root / path.lstrip("/")
            files += [group / name for group in (own, *own.parents) if group.is_relative_to(root)]
    found = []
    for file in files:
        try:
            found.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return [each for each in found if each > 0]


def reuse_memory() -> bool:
    """Keep freed memory for the next tensors in place of handing it back to the system; return whether that could be
    set (glibc only).

    By default glibc unmaps every large block when it is freed, and the next step pays for fresh pages: a fifth of the
    time of a step on a CPU. It holds for the whole process, so that commands call it and libraries should not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # blocks of up to 1 GiB; as much at the end of the heap as an int holds
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory this process has held so far: on the GPU if it uses one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
