"""Several processes of one job, forked from one that has imported everything: what torchrun starts, without paying for
the imports of each process again. That torchrun itself works is tested where it is the point.

`forked.py` reads requests, one JSON array a line: the number of processes, a script, its arguments. It answers each
with the exit code and what was written to standard error.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


class Forkserver:
    """The other end: starts `forked.py` at the first request."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, processes: int, script: Path, *arguments: str | Path) -> tuple[int, str]:
        """Run a script, as torchrun would, by so many processes; return the exit code and standard error."""
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([processes, str(script), [*map(str, arguments)]]) + "\n")
        self._process.stdin.flush()
        code, said = json.loads(self._process.stdout.readline())
        return code, said

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _child(rank: int, processes: int, port: int, script: str, arguments: list[str], said: Any) -> None:
    """Be one process of the job; never return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said.fileno(), 1)  # the answers to requests go by standard output
    os.dup2(said.fileno(), 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    sys.argv = [script, *arguments]
    code = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _job(processes: int, script: str, arguments: list[str], limit: int = 240) -> tuple[int, str]:
    port = _free_port()
    with tempfile.TemporaryFile() as said:
        running = set()
        for rank in range(processes):
            if (child := os.fork()) == 0:
                signal.alarm(limit)  # a job that hangs must not hold up the tests
                _child(rank, processes, port, script, arguments, said)
            running.add(child)
        code = 0
        while running:
            child, status = os.wait()
            running.discard(child)
            if status and not code:  # one that failed ends all, as torchrun has it
                code = os.waitstatus_to_exitcode(status)
                for other in running:
                    os.kill(other, signal.SIGTERM)
        said.seek(0)
        return code, said.read().decode("utf-8", "replace")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import moe_worker  # noqa: F401 (what the scripts import is there when they are forked)

    for line in sys.stdin:
        print(json.dumps(_job(*json.loads(line))), flush=True)
