"""The device and the type to compute with, and how fast it multiplies matrices: the yardstick of every utilization
figure.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Any, get_args

import torch

from lmlab.config import Precision
from lmlab.errors import UserError
from lmlab.files import cache_directory, read_json, update_json
from lmlab.hardware.gemm import mm
from lmlab.hardware.machine import num_cores, processor

_PEAKS = "gemm_peaks.json"
_SMALL = 256  # side of products by which is told how long large ones take
_LONGEST_S = 5.0  # of one large product: bf16 without instructions for it takes a minute, and is as slow in small ones


def select_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"Unknown device '{name}'.", "Use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"The device '{name}' is not available on this machine.", "Set device to cpu, or to auto.")
    return device


def select_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype of a precision: "bf16", "fp32", "auto" (bf16 where the hardware multiplies it fast), or
    bf16 for packed weights ("int8", "int4").

    Raises:
        UserError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise UserError(f"Unknown precision '{precision}'.", "Use fp32, bf16, auto, int8 or int4.")
    if precision == "auto":
        precision = "bf16" if _fast_bf16(device) else "fp32"
    return torch.float32 if precision == "fp32" else torch.bfloat16


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # less would be lost to casts between the two
    return device.type == "cpu" and gemm_flops("cpu", torch.bfloat16) > 1.2 * gemm_flops("cpu", torch.float32)


@lru_cache
def gemm_flops(device: str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Peak of square matrix products in FLOP/s: the best of repeated products of side 2,048 (CPU) or 8,192 (GPU), now
    or ever on this hardware with this PyTorch; of small ones where one of those would take many seconds. A machine that
    is busy at the moment would otherwise lower the yardstick and look better by it.
    """
    measured = _measure_gemm(device, dtype, seconds)
    key = _peak_key(device, dtype)
    try:
        place = cache_directory() / _PEAKS
        peaks = read_json(place) if place.exists() else {}
        known = peaks.get(key) if isinstance(peaks, dict) else None
        if isinstance(known, int | float) and known >= measured:
            return float(known)
        update_json(place, lambda peaks: {**peaks, key: _larger(peaks.get(key), measured)})
    except (OSError, UserError):  # a cache that cannot be used is none
        pass
    return measured


def _larger(known: Any, measured: float) -> float:
    """Another process may have kept a peak meanwhile."""
    return max(float(known), measured) if isinstance(known, int | float) else measured


def _peak_key(device: str, dtype: torch.dtype) -> str:
    """What a peak depends on."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 0
    return f"{name}, {num_cores()} cores, {threads} threads, {dtype}, torch {torch.__version__}"


def _measure_gemm(device: str, dtype: torch.dtype, seconds: float) -> float:
    side = 2048 if device == "cpu" else 8192  # large enough that its peak is reached
    if device == "cpu":
        best = _best_product(_SMALL, device, dtype, 0.0)
        if best * (side / _SMALL) ** 3 > _LONGEST_S:
            best = min(best, _best_product(_SMALL, device, dtype, seconds))
            return 2 * _SMALL**3 / best
    return 2 * side**3 / _best_product(side, device, dtype, seconds)


def _best_product(side: int, device: str, dtype: torch.dtype, seconds: float) -> float:
    """The least seconds of products of two square matrices, of which at least one is counted."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best, deadline = math.inf, math.inf
    while best == math.inf or time.perf_counter() < deadline:
        synchronize(device)
        start = time.perf_counter()
        mm(a, b)
        synchronize(device)
        if deadline == math.inf:  # the first product warms up and is not counted
            deadline = time.perf_counter() + seconds
        else:
            best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has finished what was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
