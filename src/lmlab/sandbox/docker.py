"""Containers by the `docker` program and its daemon, for machines without namespaces and for published images.

Each run is a container of its own, made, filled, started, emptied and removed: without a network, without capabilities,
as a user without rights, and with nothing of the host mounted. The workspace goes in and comes out as an archive, so
that the daemon may be on another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lmlab.distributed import scratch_folder
from lmlab.errors import LmlabError
from lmlab.files import ParseError, json_value
from lmlab.sandbox.archives import TooLarge, pack, replace_by
from lmlab.sandbox.box import WORKSPACE, Box, Mount, get_file, put_file
from lmlab.sandbox.limits import MIB, ExecResult, Limits, SandboxFailure
from lmlab.sandbox.process import CappedSink, folder_bytes, run_process
from lmlab.sandbox.session import ExecutorInfo, Session

DEFAULT_IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
"""For code that needs this Python and nothing else."""

_OWNER = "lmlab.owner"  # label: machine and process that a container belongs to
_DAEMON_S = 20.0  # for an answer of the daemon
_TRANSFER_S = 600.0  # for an archive in or out, and for an image that is fetched
_BUILD_S = 3600.0
_NEVER_STARTED = "0001-01-01T00:00:00Z"


class Docker:
    """Opens sessions in containers."""

    name = "docker"

    def probe(self) -> ExecutorInfo:
        """Whether a daemon answers, and which limits its kernel holds."""
        return _probe()

    @contextmanager
    def open(self, box: Box, limits: Limits | None = None) -> Iterator[Session]:
        """Open a session on a workspace of the host.

        Raises:
            SandboxFailure: no daemon answers.
        """
        info = self.probe()
        if not info.available:
            raise SandboxFailure(f"Docker cannot be used: {info.reason}.", "Run: lmlab swe doctor")
        _remove_orphans()
        yield _Session(replace(box, image=box.image or DEFAULT_IMAGE), limits or Limits())


@lru_cache(maxsize=1)
def _probe() -> ExecutorInfo:
    def missing(reason: str) -> ExecutorInfo:
        return ExecutorInfo("docker", False, "container", reason)

    if shutil.which("docker") is None:
        return missing("it is not installed")
    # A client without a daemon is common, so that the daemon is asked
    done = _docker("info", "--format", "{{json .}}", timeout=_DAEMON_S)
    try:
        told: Any = json_value(done.stdout.decode("utf-8", "replace"))
    except ParseError:
        told = {}
    version = told.get("ServerVersion") if isinstance(told, dict) else None
    if done.returncode != 0 or not version:
        errors = told.get("ServerErrors") if isinstance(told, dict) else None
        said = str(errors[0]) if isinstance(errors, list) and errors else _said(done)
        return missing(f"no daemon answers ({said})")
    if told.get("OSType", "linux") != "linux":
        return missing(f"its containers are of {told['OSType']}")
    enforced = {"timeout": "container", "output": "pipe", "tmp": "tmpfs", "disk": "read back", "files": "rlimit"}
    for limit, flag in (("memory", "MemoryLimit"), ("processes", "PidsLimit"), ("cpus", "CpuCfsQuota")):
        if told.get(flag):
            enforced[limit] = f"cgroup v{told.get('CgroupVersion') or '?'}"
    if any("seccomp" in str(each) for each in told.get("SecurityOptions") or ()):
        enforced["system calls"] = "seccomp"
    return ExecutorInfo("docker", True, "container", "", str(version), enforced)


def _docker(
    *arguments: str, timeout: float, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Run the client.

    Raises:
        SandboxFailure: it cannot be started, or does not end.
    """
    try:
        return subprocess.run(
            ["docker", *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise SandboxFailure(f"docker {arguments[0]} has not ended within {timeout:g} s.") from None
    except OSError as error:
        raise SandboxFailure(f"docker cannot be started: {error.strerror}.") from None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300].rstrip(".") if lines else f"it ended with {done.returncode}"


def _checked(done: subprocess.CompletedProcess[bytes], what: str) -> bytes:
    if done.returncode != 0:
        raise SandboxFailure(f"Docker could not {what}: {_said(done)}.")
    return done.stdout or b""


def _remove(name: str) -> None:
    """Remove a container and what it has written, be that tens of thousands of folders deep: as long as a copy of it
    may take.
    """
    _docker("rm", "--force", "--volumes", name, timeout=_TRANSFER_S)


@lru_cache(maxsize=1)
def _remove_orphans() -> None:
    """Remove containers of processes of this machine that are dead: they were killed before they could."""
    listed = _docker(
        "ps", "--all", "--filter", f"label={_OWNER}", "--format", f'{{{{.ID}}}} {{{{.Label "{_OWNER}"}}}}', timeout=60
    )
    for line in listed.stdout.decode("utf-8", "replace").splitlines():
        name, _, owner = line.partition(" ")
        host, _, pid = owner.rpartition(":")
        if host == socket.gethostname() and pid.isdigit() and not Path("/proc", pid).exists():
            _remove(name)


def has_image(image: str) -> bool:
    """Whether the daemon has an image."""
    return _docker("image", "inspect", "--format", "{{.Id}}", image, timeout=_DAEMON_S).returncode == 0


def build_image(image: str, dockerfile: str) -> None:
    """Build an image of a Dockerfile that reads no files; its commands have a network.

    Raises:
        LmlabError: it cannot be built.
    """
    with tempfile.TemporaryFile() as file:
        file.write(dockerfile.encode())
        file.seek(0)
        done = _docker("build", "--quiet", "--tag", image, "-", timeout=_BUILD_S, stdin=file)
    if done.returncode != 0:
        raise LmlabError(f"The image '{image}' cannot be built: {_said(done)}.")


def run_in_image(image: str, argv: Sequence[str]) -> str:
    """What a command prints in an image of ours, without a network."""
    command = ["run", "--rm", "--network", "none", "--cap-drop", "ALL", "--entrypoint", argv[0], image, *argv[1:]]
    return _checked(_docker(*command, timeout=_TRANSFER_S), f"run {argv[0]} in '{image}'").decode("utf-8", "replace")


def image_bytes(image: str) -> int:
    """Bytes that an image takes."""
    done = _docker("image", "inspect", "--format", "{{.Size}}", image, timeout=_DAEMON_S)
    return int(_checked(done, f"tell the size of '{image}'"))


def copy_out_of(image: str, path: str, into: Path, most_bytes: int) -> None:
    """Make a folder what an image has at a path; nothing of the image is run.

    Raises:
        SandboxFailure: there is no such image, or no such path in it.
    """
    name = f"lmlab-{secrets.token_hex(8)}"
    label = f"{_OWNER}={socket.gethostname()}:{os.getpid()}"
    _checked(
        _docker("create", "--name", name, "--label", label, "--network", "none", image, timeout=_TRANSFER_S),
        f"make a container of '{image}'",
    )
    try:
        _copy_back(name, path, into, most_bytes)
    finally:
        _remove(name)


def _copy_back(container: str, path: str, into: Path, most_bytes: int) -> None:
    with scratch_folder("container") as scratch:
        with open(scratch / "tar", "wb") as file:
            done = _docker("cp", f"{container}:{path}", "-", timeout=_TRANSFER_S, stdout=file)
        if done.returncode != 0 and b"name too long" in done.stderr:
            raise TooLarge  # the code has nested folders deeper than any path may be long
        _checked(done, f"copy '{path}' out of the container")
        replace_by(scratch / "tar", into, most_bytes)


class _Session:
    root = WORKSPACE

    def __init__(self, box: Box, limits: Limits) -> None:
        self._box, self._limits = box, limits
        self._size = folder_bytes(str(box.workspace), 1 << 50)

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
        capped = CappedSink(sink, int(self._limits.output_mib * MIB))
        every = (*self._box.mounts, *mounts)
        name = f"lmlab-{secrets.token_hex(8)}"
        # What this machine has in its environment (proxies, secrets) is not passed on: `docker create` takes nothing
        # of it but what is named
        _checked(_docker(*self.command(name, argv, env, bool(stdin)), timeout=_TRANSFER_S), "make a container")
        try:
            self._fill(name, every)
            start = ["docker", "start", "--attach", *(["--interactive"] if stdin else []), name]
            ended = run_process(
                start,
                stdin=stdin,
                env=dict(os.environ),
                cwd=None,
                timeout=timeout or self._limits.timeout_s,
                sink=capped,
            )
            if ended.stopped is not None:
                _docker("kill", name, timeout=60)
            capped.close()
            state = self._state(name)
            if state.get("Error") and state.get("StartedAt", _NEVER_STARTED) == _NEVER_STARTED:
                raise SandboxFailure(f"'{argv[0]}' cannot be started in the container: {state['Error']}.")
            full = not self._empty(name, every)
        finally:
            _remove(name)
        oom, over = bool(state.get("OOMKilled")), ended.stopped is not None
        code = None if over or full else int(state.get("ExitCode", -1))
        return ExecResult(
            exit_code=code,
            signal=code - 128 if code is not None and code > 128 else None,
            timed_out=ended.stopped == "time",
            oom_killed=oom,
            disk_exceeded=full,
            output_truncated=capped.truncated,
            wall_s=ended.wall_s,
            cpu_s=0.0,  # the daemon tells nothing of a container that is over
            max_rss_bytes=0,
        )

    def command(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None, reads: bool) -> list[str]:
        """The options of `docker` that make the container of a run."""
        limits, user = self._limits, str(self._box.user)
        largest = max(limits.disk_mib, limits.tmp_mib) * MIB
        found = ["create", "--name", name, "--label", f"{_OWNER}={socket.gethostname()}:{os.getpid()}"]
        found += ["--network", "none", "--hostname", "testbed", "--init"]
        found += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{user}:{user}"]
        found += ["--pids-limit", str(limits.processes), "--cpus", f"{limits.cpus:g}"]
        # Both alike: no swap
        found += ["--memory", f"{limits.memory_mib}m", "--memory-swap", f"{limits.memory_mib}m"]
        found += ["--ulimit", f"nofile={limits.open_files}:{limits.open_files}", "--ulimit", "core=0"]
        found += ["--ulimit", f"fsize={largest}:{largest}"]
        found += ["--tmpfs", f"/tmp:rw,exec,nosuid,nodev,size={limits.tmp_mib}m,mode=1777"]
        found += ["--tmpfs", f"/home/user:rw,nosuid,nodev,size={limits.tmp_mib}m,mode=0700,uid={user},gid={user}"]
        # A volume of its own hides what the image has there, which a patch may have removed
        found += ["--mount", f"type=volume,dst={WORKSPACE},volume-nocopy", "--workdir", WORKSPACE]
        found += ["--interactive"] if reads else []
        for key, value in self._box.environment(env).items():
            found += ["--env", f"{key}={value}"]
        return [*found, "--entrypoint", argv[0], self._box.image, *argv[1:]]

    def _fill(self, name: str, mounts: Sequence[Mount]) -> None:
        self._copy_in(name, self._box.workspace, WORKSPACE, ".", self._box.user)
        for mount in mounts:
            owner = self._box.user if mount.writable else 0
            self._copy_in(name, mount.source, "/", mount.target.lstrip("/"), owner)

    def _copy_in(self, name: str, folder: Path, into: str, called: str, owner: int) -> None:
        with tempfile.TemporaryFile() as file:
            pack(folder, file, owner, called)
            file.seek(0)
            # --archive is not said: owners are those of the archive as it is
            done = _docker("cp", "-", f"{name}:{into}", timeout=_TRANSFER_S, stdin=file)
        _checked(done, f"copy '{folder.name}' into the container")

    def _empty(self, name: str, mounts: Sequence[Mount]) -> bool:
        """Copy back what may have been written; False where it is more than it may be, and the workspace is as before.

        Files on the way have a limit each, and all of them this one.
        """
        most = self._size + self._limits.disk_mib * MIB
        try:
            for mount in mounts:
                if mount.writable:
                    _copy_back(name, mount.target, mount.source, most)
            _copy_back(name, WORKSPACE, self._box.workspace, most)
        except TooLarge:
            return False
        return True

    def _state(self, name: str) -> dict[str, Any]:
        told = _checked(
            _docker("inspect", "--format", "{{json .State}}", name, timeout=60), "say how the container ended"
        )
        with contextlib.suppress(ValueError):
            found = json.loads(told)  # noqa: TID251 - the daemon's own words
            if isinstance(found, dict):
                return found
        raise SandboxFailure("Docker could not say how the container ended.")
