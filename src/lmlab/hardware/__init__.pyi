from . import gemm, threads, ways
from .devices import gemm_flops, select_device, select_dtype, synchronize
from .machine import environment, is_intel, machine_key, machine_load, num_cores, processor
from .memory import memory_bytes, peak_memory_bytes, reuse_memory

__all__ = [
    "environment",
    "gemm",
    "gemm_flops",
    "is_intel",
    "machine_key",
    "machine_load",
    "memory_bytes",
    "num_cores",
    "peak_memory_bytes",
    "processor",
    "reuse_memory",
    "select_device",
    "select_dtype",
    "synchronize",
    "threads",
    "ways",
]
