"""Namespaces by bubblewrap (`bwrap`), without a daemon and without images.

The code sees the system's programs and libraries read-only, an interpreter, its workspace, and nothing else: no
network, no process but its own, no file of the host, no secret. All its processes die with the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from lmlab.sandbox.box import WORKSPACE, Box, Mount, get_file, put_file
from lmlab.sandbox.cgroups import Group, make_group
from lmlab.sandbox.limits import MIB, ExecResult, Limits, SandboxFailure
from lmlab.sandbox.process import (
    CappedSink,
    Ended,
    Stop,
    descendants,
    folder_bytes,
    folders_bytes,
    resident_bytes,
    run_process,
)
from lmlab.sandbox.seccomp import seccomp_filter
from lmlab.sandbox.session import ExecutorInfo, Session

_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
)
_GROUP = "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"
_HOSTS = "127.0.0.1 localhost testbed\n::1 localhost\n"
_OLDEST = (0, 8, 0)  # --disable-userns
# Joins control groups and sets limits before it becomes bwrap, so that every descendant has them
_START = """for file in $1; do echo $$ >"$file" || exit 1; done
ulimit -c 0; ulimit -f "$2"; ulimit -n "$3"; shift 3; exec "$@"
"""
_DISK_EVERY = 5  # of ten checks a second


class Bubblewrap:
    """Opens sessions in namespaces."""

    name = "bubblewrap"

    def probe(self) -> ExecutorInfo:
        """Whether namespaces can be made here, and what holds which limit."""
        return _probe()

    @contextmanager
    def open(self, box: Box, limits: Limits | None = None) -> Iterator[Session]:
        """Open a session on a workspace of the host."""
        info = self.probe()
        if not info.available:
            raise SandboxFailure(f"bubblewrap cannot be used: {info.reason}.", "Run: lmlab swe doctor")
        yield _Session(box, limits or Limits(), info)


@lru_cache(maxsize=1)
def _probe() -> ExecutorInfo:
    def missing(reason: str, version: str = "") -> ExecutorInfo:
        return ExecutorInfo("bubblewrap", False, "namespace", reason, version)

    path = shutil.which("bwrap")
    if path is None:
        return missing("it is not installed (apt-get install bubblewrap)")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", told)
    version = numbers[0] if numbers else "?"
    if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST:
        return missing(f"version {version} is older than {'.'.join(map(str, _OLDEST))}", version)
    group = make_group(Limits())
    enforced = dict(group.enforced())
    group.remove()
    enforced |= {"timeout": "namespace", "output": "pipe", "tmp": "tmpfs", "disk": "watcher", "files": "rlimit"}
    enforced.setdefault("memory", "watcher")
    if seccomp_filter() is not None:
        enforced["system calls"] = "seccomp"
    info = ExecutorInfo("bubblewrap", True, "namespace", "", version, enforced)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="lmlab-probe-") as folder:
        try:
            result = _Session(Box(Path(folder)), Limits(timeout_s=30), info).run(["/bin/true"])
        except SandboxFailure as failure:
            return missing(failure.message.rstrip("."), version)
    return info if result.exit_code == 0 else missing(f"a command ended with {result.exit_code}", version)


class _Session:
    root = WORKSPACE

    def __init__(self, box: Box, limits: Limits, info: ExecutorInfo) -> None:
        self._box, self._limits, self._info = box, limits, info
        self._size = folder_bytes(str(box.workspace), sys.maxsize)

    def place(self, mount: Mount) -> str:
        return mount.target

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        put_file(self._box.workspace, path, data, mode)

    def get(self, path: str, max_bytes: int) -> bytes:
        return get_file(self._box.workspace, path, max_bytes)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        sink: BinaryIO | None = None,
        mounts: Sequence[Mount] = (),
    ) -> ExecResult:
        limits = self._limits
        capped = CappedSink(sink, int(limits.output_mib * MIB))
        group = make_group(limits)
        told_read, told_write = os.pipe()
        held: list[int] = [told_write]
        try:
            arguments = self._arguments(env, mounts, told_write, held)
            options = _memory_file(b"".join(each.encode() + b"\0" for each in arguments))
            held.append(options)
            joined = " ".join(map(str, group.procs))
            blocks = str(max(limits.disk_mib, limits.tmp_mib) * MIB // 512)  # ulimit -f counts blocks of 512 bytes
            start = ["/bin/sh", "-c", _START, "lmlab", joined, blocks, str(limits.open_files)]
            ended = run_process(
                [*start, str(shutil.which("bwrap")), "--args", str(options), "--", *argv],
                stdin=stdin,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                timeout=timeout or limits.timeout_s,
                sink=capped,
                pass_fds=held,
                watch=self._watch(group, mounts),
                kill=group.kill,
            )
            while held:
                os.close(held.pop())
            told = _read_all(told_read)
            capped.close()
            return self._result(ended, told, group, capped)
        finally:
            for each in (*held, told_read):
                os.close(each)
            group.remove()

    def _watch(self, group: Group, mounts: Sequence[Mount]) -> _Watch:
        memory = None if "memory" in group.folders else self._limits.memory_mib * MIB
        folders = self._box.written(mounts)
        size = self._size + folders_bytes(folders[1:], sys.maxsize)
        return _Watch(folders, size + self._limits.disk_mib * MIB, memory)

    def _result(self, ended: Ended, told: list[dict[str, int]], group: Group, sink: CappedSink) -> ExecResult:
        codes = [each["exit-code"] for each in told if "exit-code" in each]
        oom = ended.stopped == "memory" or group.oom_kills() > 0
        # bwrap itself never ends by a signal unless somebody outside sends it, whatever it has told before
        if (not codes or ended.status < 0) and ended.stopped is None and not oom:
            if ended.status < 0 or ended.status > 128:
                raise SandboxFailure(f"The sandbox was ended from outside ({ended.status}).")
            said = sink.begin.decode("utf-8", "replace").strip() or f"it ended with {ended.status}"
            raise SandboxFailure(f"bubblewrap could not make its namespaces: {said}.")
        code = codes[0] if codes and ended.stopped is None else None
        return ExecResult(
            exit_code=code,
            signal=code - 128 if code is not None and code > 128 else None,
            timed_out=ended.stopped == "time",
            oom_killed=oom,
            disk_exceeded=ended.stopped == "disk",
            output_truncated=sink.truncated,
            wall_s=ended.wall_s,
            cpu_s=group.cpu_s() or ended.cpu_s,
            max_rss_bytes=group.peak_bytes() or ended.max_rss_bytes,
        )

    def _arguments(
        self, env: Mapping[str, str] | None, mounts: Sequence[Mount], told: int, held: list[int]
    ) -> list[str]:
        """The options of bwrap, which the code could read in /proc/1/cmdline if they were its arguments. The open files
        that they name are added to `held`.
        """

        def data(text: str | bytes) -> str:
            held.append(_memory_file(text.encode() if isinstance(text, str) else text))
            return str(held[-1])

        found = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
        found += ["--cap-drop", "ALL", "--clearenv", "--hostname", "testbed", "--uid", "1000", "--gid", "1000"]
        found += ["--json-status-fd", str(told)]
        # The order matters: a later mount hides what was mounted below it before
        found += ["--proc", "/proc", "--dev", "/dev"]
        # Started by root, or by whoever is root outside of a user namespace, the code is root to the files of /proc
        # that belong to no process: settings of the whole machine, of which one names a program that the kernel runs
        for name in _settings_of_the_machine():
            found += ["--ro-bind", name, name]
        for place in ("/dev/shm", "/tmp", "/run", "/home/user"):
            found += ["--size", str(self._limits.tmp_mib * MIB), "--tmpfs", place]
        found += ["--ro-bind", "/usr", "/usr"]
        for name in ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin"):
            if os.path.islink(name):
                found += ["--symlink", os.readlink(name), name]
            elif os.path.exists(name):
                found += ["--ro-bind", name, name]
        for name in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"):
            found += ["--ro-bind-try", name, name]
        for name, text in (("passwd", _PASSWD), ("group", _GROUP), ("hosts", _HOSTS)):
            found += ["--ro-bind-data", data(text), f"/etc/{name}"]
        for path in self._box.prefixes():
            found += ["--ro-bind", str(path), str(path)]
        for mount in (*self._box.mounts, *mounts):
            found += ["--bind" if mount.writable else "--ro-bind", str(mount.source), mount.target]
        found += ["--bind", str(self._box.workspace), WORKSPACE, "--chdir", WORKSPACE]
        found += ["--remount-ro", "/dev", "--remount-ro", "/"]
        if (program := seccomp_filter()) is not None:
            found += ["--seccomp", data(program)]
        for name, value in self._box.environment(env).items():
            found += ["--setenv", name, value]
        return found


class _Watch:
    """Asks after what no control group counts."""

    def __init__(self, folders: Sequence[str], most_disk: int, most_memory: int | None) -> None:
        self._folders, self._most_disk, self._most_memory = folders, most_disk, most_memory
        self._turn = 0

    def __call__(self, pid: int) -> Stop | None:
        self._turn += 1
        if self._most_memory is not None and resident_bytes(descendants(pid)) > self._most_memory:
            return "memory"
        if self._turn % _DISK_EVERY == 0 and folders_bytes(self._folders, self._most_disk) > self._most_disk:
            return "disk"
        return None


def _settings_of_the_machine() -> list[str]:
    """Folders of /proc that belong to no process, and files there that may be written."""
    found = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit() or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_mode & 0o222:
                found.append(entry.path)
    return sorted(found)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("lmlab", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read_all(fd: int) -> list[dict[str, int]]:
    """What bwrap tells of its child: one JSON object a line."""
    os.set_blocking(fd, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 65536):
            data += piece
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))  # noqa: TID251 - bwrap's own words, a few bytes
    return found
