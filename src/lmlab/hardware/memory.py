"""Memory: how much there is, how much was taken, and how to keep what was freed."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from lmlab.hardware.groups import limits

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
    """The limits of the control groups of this process; none where there are none."""
    words = limits("memory", "memory.max", "memory.limit_in_bytes")
    found = [int(each) for each in words if each.removeprefix("-").isdigit()]  # "max" is no limit
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
