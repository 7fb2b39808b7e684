"""What processor this is: what measurements of speed are kept by."""

from __future__ import annotations

import os
import platform
from functools import cache

import torch


@cache
def processor() -> str:
    """The name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_intel() -> bool:
    """Whether the processor is one of Intel's, for which some libraries are made."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "GenuineIntel" in file.read(4096)
    except OSError:
        return False


def machine_key() -> str:
    """What a choice by speed depends on, beside precision and shape. The names of processors are vague on virtual
    machines, so what PyTorch makes of the processor belongs to it.
    """
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{processor()}, {num_cores()} cores, {threads} threads, {capability}, torch {torch.__version__}"
