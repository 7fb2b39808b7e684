"""One part under way: its device, its clock, how it measures, and what is said of the machine."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gpu_parts.record import Record, Row

_NEEDED = {  # what each package is for
    "pydantic": "everything",
    "lazy_loader": "everything",
    "safetensors": "resume",
    "transformers": "the peers",
    "pytest": "the tests marked gpu",
    "triton": "torch.compile and flex attention",
    "scipy": "circuits",
    "filelock": "recipes, which no part needs",
    "grain": "shuffled data, which no part needs",
}
_DENSE_BF16 = {"H100": 989.5e12, "H200": 989.5e12, "GH200": 989.5e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


class Session:
    """What a part gets.

    Attributes:
        device: where lmlab and its peers run.
        tiny: on small shapes, to see that it works.
        peak: FLOP/s of the matrix products of bf16 by the card's data sheet; None for a card that is not known.
        measured_peak: the same as a part has measured it.
        wrong: how many checks were not passed and how many measurements failed.
    """

    def __init__(
        self, record: Record, device: torch.device, tiny: bool, seconds: float, only: list[str] | None
    ) -> None:
        self.record, self.device, self.tiny, self.only = record, device, tiny, only
        self._end = time.monotonic() + seconds
        self.is_cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if self.is_cuda else ""
        self.peak = next((flops for key, flops in _DENSE_BF16.items() if key in name), None)
        self.measured_peak: float | None = None
        self.wrong = 0

    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def has(self, name: str, seconds: float) -> bool:
        """Whether a measurement is wanted and fits; one that does not fit is noted as left out."""
        if self.only and not any(word in name for word in self.only):
            return False
        if self.left() >= seconds or self.tiny:
            return True
        self.record.note(f"left out for want of time: {name}")
        return False

    def check(self, table: str, row: Row, error: float, tolerance: float) -> None:
        """Add a row on how far something is from its reference, as ‖a - b‖ / ‖b‖; NaN never passes."""
        right = error <= tolerance
        self.wrong += not right
        self.record.row(
            table, {**row, "error": error, "tolerance": tolerance, "": "" if right else "WRONG"}, quiet=right
        )

    @contextmanager
    def attempt(self, table: str, row: Row) -> Iterator[None]:
        """A failure within becomes a row: the other measurements go on."""
        try:
            yield
        except torch.OutOfMemoryError:
            self.record.row(table, {**row, "": "out of memory"})
        except Exception as error:
            self.wrong += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            self.record.row(table, {**row, "": f"FAILED, {text} ({Path(where.filename).name}:{where.lineno})"})
            self.record.content.setdefault("tracebacks", []).append(traceback.format_exc())
        finally:
            self.free()

    def free(self) -> None:
        """Hand back memory that nothing holds any more, and count the peak anew."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """The most memory held since `free`, in GiB; 0 on a CPU, where it is not counted."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else 0.0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def median(
        self, step: Callable[[], Any], seconds: float = 4.0, warmup: int = 2, least: int = 3, most: int = 30
    ) -> float:
        """Seconds of a step: warm up, then the median of as many as fit in `seconds`, at least `least`.

        On a GPU events are recorded between steps and read at the end, so that measuring does not hold it up.
        """
        for _ in range(warmup - 1):
            step()
        self.synchronize()
        start = time.perf_counter()
        step()
        self.synchronize()
        one = time.perf_counter() - start
        seconds = min(seconds, max(0.0, self.left() - 2))
        count = max(1 if self.tiny else least, min(2 if self.tiny else most, int(seconds / max(one, 1e-9))))
        if not self.is_cuda:
            return statistics.median(_wall(step) for _ in range(count))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairwise(events)) / 1000


def work(name: str, arguments: argparse.Namespace) -> None:
    """Run one part in this process."""
    missing = [each for each in _NEEDED if importlib.util.find_spec(each) is None]
    told = "; ".join(f"{each} (left out: {_NEEDED[each]})" for each in missing) or "nothing"
    print(f"\n{name}. Missing: {told}", flush=True)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; --device cpu --tiny runs on the processor.")
    found = {"part": name, "missing": told, "tiny": arguments.tiny, **describe(device)}
    print("  " + ", ".join(f"{key} {value}" for key, value in found.items() if key != "missing"), flush=True)
    record = Record(arguments.out / f"{name}.json", found)
    session = Session(record, device, arguments.tiny, 60 * arguments.minutes, arguments.only)
    start = time.monotonic()
    try:
        importlib.import_module(f"gpu_parts.{name}").run(session)
    except Exception:
        record.note("the part ended with an error: " + traceback.format_exc().splitlines()[-1])
        traceback.print_exc()
        session.wrong += 1
    record.note(f"{time.monotonic() - start:.0f} s; load of the machine at the end {_load()}")
    title = f"\n## {name} on {found['card']}, torch {torch.__version__}\n"
    print(title + record.tables(whole=False), flush=True)
    with (arguments.out / "tables.md").open("a", encoding="utf-8") as file:
        file.write(title + record.tables(whole=True) + "\n")
    raise SystemExit(min(1, session.wrong))


def describe(device: torch.device) -> dict[str, Any]:
    """The card, the versions, and how busy the machine is."""
    versions = {}
    for package in ("transformers", "triton"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = {"card": card, "torch": torch.__version__, **versions, "load": _load()}
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "memory_gib": round(torch.cuda.mem_get_info(device)[1] / 2**30, 1)}
        found |= {"capability": ".".join(map(str, torch.cuda.get_device_capability(device))), "gpu": _smi()}
    return found


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} processors"


def _smi() -> str:
    """Driver, clocks and use as `nvidia-smi` tells them, where it is there."""
    query = "driver_version,clocks.sm,clocks.max.sm,utilization.gpu,memory.used,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "nvidia-smi does not answer"
    return done.stdout.strip() or done.stderr.strip()


def _wall(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
