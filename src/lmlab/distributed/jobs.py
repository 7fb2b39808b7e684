"""Many independent jobs: on this machine's processes by default, on a Ray cluster when there is one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar, cast

from lmlab.distributed.backend import Backend
from lmlab.errors import EXIT_FAILURE, Interrupted, LmlabError, missing_extra

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
    fresh: bool = False,
    died: Callable[[J], R] | None = None,
) -> Iterator[tuple[int, R]]:
    """Call a function on every job; yield the number of the job and its result as they come.

    Arguments:
        function: of a module's top level, as it is called in other processes.
        jobs: arguments that can be pickled.
        workers: jobs at once; by default one a core, or on Ray as many as the cluster has room for. With one worker
            everything happens here.
        gpus: GPUs that each job needs, for Ray.
        fresh: give each job a process of its own, which ends with it: what a job leaves behind in memory, or dies of,
            touches no other one. Starting it takes a few seconds.
        died: makes the result of a job whose process died, where that is known of a job (`fresh`, and on Ray); without
            it a death is an error.

    Raises:
        LmlabError: one that a job raised, or that a worker died; the other jobs are stopped.
    """
    if backend == "ray":
        yield from _by_ray(function, jobs, workers, gpus, fresh, died)
        return
    workers = min(workers or num_cores(), len(jobs))
    if fresh:
        yield from _by_fresh_processes(function, jobs, workers, died)
        return
    if workers <= 1:
        for index, job in enumerate(jobs):
            yield index, function(job)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        futures = {pool.submit(_call, function, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise _death() from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _death() -> LmlabError:
    return LmlabError(
        "A worker process died, perhaps for want of memory.", "Run the same command again with fewer workers."
    )


def _by_fresh_processes(
    function: Callable[[J], R], jobs: Sequence[J], workers: int, died: Callable[[J], R] | None
) -> Iterator[tuple[int, R]]:
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index, job = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_send_result, args=(sender, function, job))
                process.start()
                sender.close()  # of this process: the job's end is then seen as the end of the pipe
                running[receiver] = index, process
            for receiver in cast(list[Connection], wait(list(running))):
                index, process = running[receiver]
                try:
                    found: tuple[R | None, BaseException | None] | None = receiver.recv()
                except EOFError:
                    found = None
                process.join()
                receiver.close()
                del running[receiver]
                if found is None and died is None:
                    raise _death()
                if found is not None and found[1] is not None:
                    raise found[1]
                yield index, cast(R, found[0]) if found is not None else cast(Callable[[J], R], died)(jobs[index])
    finally:
        for _, process in running.values():
            process.terminate()


def _send_result(sender: Connection, function: Callable[[J], R], job: J) -> None:
    """In a process of its own: the job's result, or its error, goes back by a pipe."""
    _begin()
    _idle.clear()
    try:
        found = function(job), None
    except BaseException as error:
        sender.send((None, error))
    else:
        sender.send(found)


def _by_ray(
    function: Callable[[J], R],
    jobs: Sequence[J],
    workers: int | None,
    gpus: float,
    fresh: bool,
    died: Callable[[J], R] | None,
) -> Iterator[tuple[int, R]]:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "Spreading jobs over a cluster") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, configure_logging=False)
    remote: Any = ray.remote(num_gpus=gpus, max_retries=2, max_calls=1 if fresh else 0)(function)
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
                if died is None:
                    raise LmlabError(
                        f"A job on the cluster died ({type(error).__name__}).", "Run the same command again."
                    ) from None
                result = died(jobs[running[done]])
            yield running.pop(done), result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _begin() -> None:
    """What every worker does first. Ctrl-C goes to all processes of a terminal; the first one stops the others. One
    that is killed cannot, so its workers watch it: they would wait for it forever, with all that they have in memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # ends the process, or lets training write a checkpoint first
    _idle.wait()
    os._exit(EXIT_FAILURE)


_idle = threading.Event()  # no job is under way
_idle.set()
_stopped: Interrupted | None = None


def _call(function: Callable[[J], R], job: J) -> R:
    """In a worker: a job that came to a safe end because the worker was told to stop is its last, though others wait in
    the pool's queue.
    """
    global _stopped
    if _stopped is not None:
        raise _stopped
    _idle.clear()
    try:
        return function(job)
    except Interrupted as stopped:
        _stopped = stopped
        raise
    finally:
        _idle.set()
