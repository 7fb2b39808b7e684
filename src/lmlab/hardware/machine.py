"""What machine this is: its processor, by which measurements of speed are kept, its load, and what a manifest says."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import cache
from typing import Any

import torch

from lmlab import __version__
from lmlab.hardware.memory import memory_bytes

_PACKAGES = ("torch", "numpy", "tokenizers", "transformers", "safetensors", "grain", "pydantic", "plotly")


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


def machine_load() -> float | None:
    """The share of the cores that all processes kept busy in the last minute; above 1 they had to wait. None where the
    system does not tell.
    """
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def environment() -> dict[str, Any]:
    """Versions and hardware, for manifests and reports; no host names, users or paths."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "lmlab": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
    }
