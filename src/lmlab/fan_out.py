"""Many independent jobs: on this machine's processes by default, on a Ray cluster when there is one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

from lmlab.errors import Interrupted, LmlabError, missing_extra

Backend = Literal["processes", "ray"]

J = TypeVar("J")
R = TypeVar("R")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fan_out(
    function: Callable[[J], R],
    jobs: Sequence[J],
    workers: int | None = None,
    backend: Backend = "processes",
    gpus: float = 0,
) -> Iterator[tuple[int, R]]:
    """Call a function on every job; yield the number of the job and its result as they come.

    Arguments:
        function: of a module's top level, as it is called in other processes.
        jobs: arguments that can be pickled.
        workers: jobs at once; by default one a core, or on Ray as many as the cluster has room for. With one worker
            everything happens here.
        gpus: GPUs that each job needs, for Ray.

    Raises:
        LmlabError: one that a job raised, or that a worker died; the other jobs are stopped.
    """
    if backend == "ray":
        yield from _by_ray(function, jobs, workers, gpus)
        return
    workers = min(workers or num_cores(), len(jobs))
    if workers <= 1:
        for index, job in enumerate(jobs):
            yield index, function(job)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts)
    try:
        futures = {pool.submit(_call, function, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise LmlabError(
            "A worker process died, perhaps for want of memory.", "Run the same command again with fewer workers."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _by_ray(function: Callable[[J], R], jobs: Sequence[J], workers: int | None, gpus: float) -> Iterator[tuple[int, R]]:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "Spreading jobs over a cluster") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, configure_logging=False)
    remote: Any = ray.remote(num_gpus=gpus, max_retries=2)(function)
    waiting, running = list(enumerate(jobs))[::-1], dict[Any, int]()
    try:
        while waiting or running:
            while waiting and len(running) < (workers or len(jobs)):
                index, job = waiting.pop()
                running[remote.remote(job)] = index
            (done,), _ = ray.wait(list(running))
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, LmlabError) else error from None
            except ray.exceptions.RayError as error:
                raise LmlabError(
                    f"A job on the cluster died ({type(error).__name__}).", "Run the same command again."
                ) from None
            yield running.pop(done), result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _ignore_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the first one stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_stopped: Interrupted | None = None


def _call(function: Callable[[J], R], job: J) -> R:
    """In a worker: a job that came to a safe end because the worker was told to stop is its last, though others wait in
    the pool's queue.
    """
    global _stopped
    if _stopped is not None:
        raise _stopped
    try:
        return function(job)
    except Interrupted as stopped:
        _stopped = stopped
        raise
