"""Processes of their own for tests, forked from one that has imported everything: a command in a process that can be
stopped or killed, and the processes of one job as torchrun starts them, without the seconds that imports take each
time. That `python -m lmlab` and torchrun themselves work is tested where it is the point.

Run as a script this is the process that forks. It reads requests, one JSON object a line, forks, answers with the
numbers of the children, and leaves the exit code of each in a file.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Forked:
    """A child, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, place: Path) -> None:
        self.pid, self.returncode, self._place = pid, None, place

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        done = self._place / f"{self.pid}.exit"
        if self.returncode is None and done.exists():
            self.returncode = int(done.read_text())
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"still running after {timeout} s: {self.read_error()[-2000:]}")
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait; what it printed, and what it wrote to standard error."""
        self.wait(timeout)
        return (self._place / "out").read_text("utf-8", "replace"), self.read_error()

    def read_error(self) -> str:
        """What it has written to standard error so far, with those that were started with it."""
        return (self._place / "err").read_text("utf-8", "replace")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Forkserver:
    """The other end; the process that forks is started by the first request."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._count = 0

    def start(
        self,
        *arguments: str | Path,
        script: Path | None = None,
        processes: int = 1,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> list[Forked]:
        """Fork children that run `lmlab ARGUMENTS`, or a script with them.

        Arguments:
            processes: how many; more than one are the processes of one job, of which one that fails ends all.
            environment: what differs from this process's.
        """
        import torch

        if self._process is None:
            threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # what both compute is equal to the last bit
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **threads},
            )
        self._count += 1
        place = Path(self._folder.name, str(self._count))
        place.mkdir()
        for name in ("out", "err"):  # there before the child is, which may be asked at once
            (place / name).touch()
        request = {
            "place": str(place),
            "script": None if script is None else str(script),
            "arguments": [*map(str, arguments)],
            "processes": processes,
            "cwd": str(cwd or Path.cwd()),
            "environment": {**os.environ, **(environment or {})},
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Forked(pid, place) for pid in json.loads(self._process.stdout.readline())]

    def run(self, *arguments: str | Path, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
        """`start` and wait: the first exit code that is not 0, and what all printed."""
        children = self.start(*arguments, **options)
        codes = [child.wait(timeout) for child in children]
        out, err = children[0].communicate()
        return subprocess.CompletedProcess([*map(str, arguments)], next((code for code in codes if code), 0), out, err)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)
        self._folder.cleanup()


def _child(request: Mapping[str, Any], rank: int, port: int) -> None:
    """Be a child: its streams, environment and arguments, then its program."""
    place = Path(request["place"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if (processes := request["processes"]) > 1:
        job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in job.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent that was started in the background ignores it
    sys.argv = [request["script"] or "lmlab", *request["arguments"]]
    if request["script"]:
        sys.path.insert(0, str(Path(request["script"]).parent))
        runpy.run_path(request["script"], run_name="__main__")
    else:
        from lmlab import cli

        cli.main()


def _serve() -> None:
    """Fork on request and note who ended, until there are no more requests. In a child: its program."""
    jobs: dict[int, tuple[Path, set[int]]] = {}  # child -> where its streams are, and those of its job
    while True:
        if select.select([sys.stdin], [], [], 0.005)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            request = json.loads(line)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            group: set[int] = set()
            for rank in range(request["processes"]):
                if (child := os.fork()) == 0:
                    return _child(request, rank, port)
                group.add(child)
                jobs[child] = (Path(request["place"]), group)
            print(json.dumps(sorted(group)), flush=True)
        while jobs:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                break
            place, group = jobs.pop(child)
            group.discard(child)
            (place / "code").write_text(str(os.waitstatus_to_exitcode(status)))
            (place / "code").rename(place / f"{child}.exit")
            for other in group if status else ():  # as torchrun does
                os.kill(other, signal.SIGTERM)
    for child in jobs:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    # imported, and nothing computed: threads would not outlive a fork

    import lmlab.commands.recipes
    import lmlab.stages.evaluate
    import lmlab.stages.train  # noqa: F401
    from lmlab import plugins

    for place in plugins.places("stages").values():
        if place.startswith("lmlab.stages"):
            plugins.load(place)
    try:
        _serve()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
