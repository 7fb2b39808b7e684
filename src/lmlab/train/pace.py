"""How far a training has come, and how fast it is beside what its hardware can do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lmlab.data import Batch, Loader
from lmlab.hardware import gemm_flops, peak_memory_bytes


@dataclass
class Pace:
    """What was done so far, and in what time.

    Attributes:
        device, dtype: what the peak of matrix products is measured with.
        processes: how many share the work.
        flops_per_token: of forward and backward; without it there is no utilization.
        tokens: of all steps, over all processes.
        seconds: of the steps alone, without evaluations and checkpoints.
        waited: seconds that the loop waited for batches.
        paused: seconds that it waited for checkpoints.
        load_before: of the machine, before this training added its own.
    """

    device: torch.device
    dtype: torch.dtype
    processes: int
    flops_per_token: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    paused: float = 0.0
    load_before: float | None = None

    def batches(self, loader: Loader, count: int) -> Iterator[Batch]:
        """The next batches; the time that the loop waits for them is counted."""
        batches = iter(loader)
        for _ in range(count):
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch

    def after_step(self, num_tokens: int, seconds: float) -> dict[str, Any]:
        """Count a step, and give its part of the row of the log."""
        self.tokens += num_tokens
        self.seconds += seconds
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": num_tokens / seconds,
            "utilization": self.utilization(num_tokens / seconds),
            "memory_bytes": peak_memory_bytes(self.device),
        }

    def utilization(self, tokens_per_second: float) -> float | None:
        """The share of the measured peak of all processes that a rate makes use of."""
        if self.flops_per_token is None:
            return None
        return tokens_per_second * self.flops_per_token / (gemm_flops(str(self.device), self.dtype) * self.processes)

    def summary(self) -> dict[str, Any]:
        """The figures of the whole training."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(rate, 1),
            "data_wait_seconds": round(self.waited, 3),
            "checkpoint_pause_seconds": round(self.paused, 3),
            "device": str(self.device),
            "processes": self.processes,
            "precision": dtype_name(self.dtype),
            "load_before": None if self.load_before is None else round(self.load_before, 3),
            "gemm_peak_flops": gemm_flops(str(self.device), self.dtype),
            "achieved_flops": rate * self.flops_per_token if self.flops_per_token else None,
            "utilization": self.utilization(rate),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }


def dtype_name(dtype: torch.dtype) -> str:
    """As configurations call it."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def rate_of(batch: Batch, per_second: float) -> str:
    """The rate in what the batch is counted in: tokens, or examples where there are none."""
    if any(key.endswith("input_ids") for key in batch):
        return f"{per_second:,.0f} tokens/s"
    return f"{per_second:,.0f} examples/s" if per_second >= 10 else f"{per_second:.2g} examples/s"
