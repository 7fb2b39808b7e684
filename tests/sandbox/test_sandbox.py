"""What code can do in a sandbox, tried by code that wants to do more."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from docker_parts import fake_docker
from lmlab.errors import UserError
from lmlab.sandbox import (
    Box,
    ExecResult,
    Executor,
    Limits,
    Mount,
    SandboxFailure,
    Session,
    cgroups,
    choose_executor,
    docker,
    probe_all,
)
from lmlab.sandbox.bubblewrap import Bubblewrap
from lmlab.sandbox.docker import Docker
from lmlab.sandbox.local import Local
from lmlab.sandbox.process import CappedSink, descendants
from lmlab.sandbox.seccomp import seccomp_filter

Run = Callable[..., tuple[ExecResult, str]]
_SMALL = Limits(timeout_s=30, memory_mib=256, processes=64, tmp_mib=16, disk_mib=32, output_mib=0.1)


def _needs_bubblewrap() -> None:
    info = Bubblewrap().probe()
    if not info.available:
        pytest.skip(f"bubblewrap cannot be used here: {info.reason}")


def _running(session: Session) -> Run:
    def run(argv: Sequence[str], **options: object) -> tuple[ExecResult, str]:
        sink = io.BytesIO()
        result = session.run(argv, sink=sink, **options)  # type: ignore[arg-type]
        return result, sink.getvalue().decode("utf-8", "replace")

    return run


@pytest.fixture
def walled(tmp_path: Path) -> Iterator[Run]:
    """A session of bubblewrap on an empty workspace."""
    _needs_bubblewrap()
    with Bubblewrap().open(Box(tmp_path, python=Path(sys.executable)), _SMALL) as session:
        yield _running(session)


@pytest.fixture(params=["bubblewrap", "docker", "local"])
def either(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Session, Run]]:
    """Sessions that behave alike whatever walls they have."""
    if request.param != "local":
        _needs_bubblewrap()
    if request.param == "docker":
        fake_docker(tmp_path_factory.mktemp("docker"), monkeypatch)
    executors: dict[str, Executor] = {"bubblewrap": Bubblewrap(), "docker": Docker(), "local": Local()}
    box = Box(tmp_path, python=Path(sys.executable), image="image")
    with executors[request.param].open(box, _SMALL) as session:
        yield session, _running(session)
    docker._probe.cache_clear()


def test_exit_status_signal_and_output_are_told(either: tuple[Session, Run]) -> None:
    session, run = either
    result, out = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.signal, sorted(out.split())) == (3, None, ["err", "out"])
    assert result.ended and result.wall_s > 0
    # The daemon tells nothing of what a container has used that is over
    assert (result.max_rss_bytes > 0) == (type(session).__module__ != docker.__name__)
    killed, _ = run(["sh", "-c", "kill -11 $$"])
    assert (killed.exit_code, killed.signal) == (139, 11)


def test_a_command_that_reads_gets_what_it_is_given_or_the_end_at_once(either: tuple[Session, Run]) -> None:
    _, run = either
    assert run(["cat"])[0].exit_code == 0
    assert run(["sh", "-c", "cat > f; wc -c < f"])[1].split() == ["0"]
    text = b"x" * 300_000
    assert run(["wc", "-c"], stdin=text)[1].split() == ["300000"]
    assert run(["true"], stdin=text)[0].exit_code == 0


def test_output_before_the_time_is_over_is_kept_and_nobody_lives_on(either: tuple[Session, Run]) -> None:
    _, run = either
    before = set(descendants(os.getpid()))
    began = time.monotonic()
    result, out = run(["sh", "-c", "echo first; sleep 100 & (sleep 100; echo late) & sleep 100"], timeout=1)
    assert result.timed_out and result.exit_code is None and not result.ended
    assert out == "first\n" and time.monotonic() - began < 6
    assert set(descendants(os.getpid())) <= before


def test_endless_output_is_cut_in_the_middle_and_ends_with_the_time(either: tuple[Session, Run]) -> None:
    _, run = either
    result, out = run(["sh", "-c", "echo begin; yes"], timeout=1)
    assert result.timed_out and result.output_truncated
    assert out.startswith("begin\ny\n") and "bytes left out" in out and len(out) < 200_000


def test_a_long_output_keeps_its_end(either: tuple[Session, Run]) -> None:
    _, run = either
    result, out = run(["sh", "-c", "echo begin; head -c 3000000 /dev/zero; echo; echo end"])
    assert result.exit_code == 0 and result.output_truncated and out.endswith("\nend\n")


def test_files_are_put_and_got_without_following_links(either: tuple[Session, Run], tmp_path: Path) -> None:
    session, run = either
    session.put("a/b.txt", b"x", 0o755)
    assert run(["cat", "a/b.txt"])[1] == "x" and session.get("a/b.txt", 10) == b"x"
    run(["sh", "-c", "ln -s /etc out; ln -s /etc/passwd secret; mkfifo pipe; head -c 99 /dev/zero > long"])
    for path in ("out/passwd", "secret", "pipe", "missing", "a"):
        with pytest.raises(OSError):  # noqa: PT011 - each has another reason
            session.get(path, 1000)
    with pytest.raises(OSError, match="more than 10 bytes"):
        session.get("long", 10)
    with pytest.raises(OSError):  # noqa: PT011
        session.put("out/x", b"")
    for path in ("../x", "/etc/x", "", "a/../../x"):
        with pytest.raises(UserError, match="does not stand in the workspace"):
            session.put(path, b"")
    session.put("secret", b"mine")
    assert not (tmp_path / "secret").is_symlink() and session.get("secret", 10) == b"mine"


def test_memory_and_disk_have_ends(either: tuple[Session, Run]) -> None:
    _, run = either
    eat = "b=[]\nimport time\nwhile 1: b.append(bytearray(1<<24)); time.sleep(.02)"
    result, _ = run(["python", "-c", eat])
    assert result.oom_killed and not result.ended
    fill = "import time\nfor n in range(999): open(f'f{n}','wb').write(bytes(1<<22)); time.sleep(.02)"
    result, _ = run(["python", "-c", fill])
    assert result.disk_exceeded and result.exit_code is None


def test_a_session_goes_on_after_every_kind_of_end(either: tuple[Session, Run]) -> None:
    _, run = either
    run(["sleep", "9"], timeout=0.3)
    assert run(["echo", "still here"])[1] == "still here\n"


def test_mounted_files_are_seen_in_their_run_only(
    either: tuple[Session, Run], tmp_path_factory: pytest.TempPathFactory
) -> None:
    session, run = either
    folder = tmp_path_factory.mktemp("results")
    mount = Mount(folder, "/results", writable=True)
    run(["sh", "-c", f"echo x > {session.place(mount)}/f"], mounts=[mount])
    assert (folder / "f").read_text() == "x\n"


def test_the_network_is_out_of_reach(walled: Run) -> None:
    result, out = walled(["python", "-c", "import socket; socket.create_connection(('1.1.1.1', 80), 3)"])
    assert result.exit_code == 1 and "unreachable" in out
    assert walled(["sh", "-c", "ls /sys/class/net 2>/dev/null || echo none"])[1].strip() in ("lo", "none")


def test_nothing_of_the_host_is_seen_or_changed(walled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    _, out = walled(["sh", "-c", "env; cat /proc/1/environ /proc/*/environ; ls /home /root /var /etc; cat /etc/passwd"])
    assert "s3cret" not in out and "shadow" not in out and "user:x:1000" in out
    for command in ("touch /usr/x", "touch /x", "touch /etc/x", "mkdir /opt", f"touch {sys.prefix}/x"):
        result, out = walled(["sh", "-c", command])
        assert result.exit_code != 0, command
    assert walled(["sh", "-c", "ls /proc/self/fd | wc -l"])[1] == "4\n"  # of these one is that of ls itself
    _, out = walled(["sh", "-c", "ps ax 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l"])
    assert all(int(number) < 8 for number in out.split())


def test_no_privilege_is_left(walled: Run) -> None:
    _, status = walled(["cat", "/proc/self/status"])
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert all(int(facts[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2"
    assert walled(["id", "-u"])[1] == "1000\n"


@pytest.mark.parametrize(
    "command",
    [
        "unshare -U true",
        "mount -t tmpfs x /tmp",
        "python -c 'import ctypes; l = ctypes.CDLL(None, use_errno=True); exit(l.ptrace(16, 1, 0, 0) == -1)'",
        "python -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(250, 0, -3, 1) == -1)'",
        "python -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(321, 0, 0, 0) == -1)'",
        "python -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(425, 1, 0) == -1)'",
    ],
)
def test_calls_to_the_kernel_that_tests_have_no_use_for_fail(walled: Run, command: str) -> None:
    assert walled(["sh", "-c", command])[0].exit_code != 0


def test_settings_of_the_machine_are_read_only_though_root_has_started_it(walled: Run) -> None:
    code = """
import os
for top, folders, names in os.walk("/proc"):
    folders[:] = [f for f in folders if not f.isdigit()]
    for name in names:
        path = os.path.join(top, name)
        if os.path.islink(path): continue
        try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)); print(path)
        except OSError: pass
print("walked")
"""
    assert walled(["python", "-c", code])[1] == "walked\n"


@pytest.mark.parametrize(("family", "kind"), [(40, 1), (38, 5), (17, 3), (29, 3)])
def test_sockets_that_no_namespace_holds_cannot_be_had(walled: Run, family: int, kind: int) -> None:
    code = f"import socket\ntry: socket.socket({family}, {kind})\nexcept OSError as e: print(e.errno)"
    assert walled(["python", "-c", code])[1] == "97\n"
    assert walled(["python", "-c", "import socket; socket.socket(); socket.socketpair()"])[0].exit_code == 0


@pytest.mark.parametrize("place", ["/dev/shm", "/tmp", "/run", "/home/user"])
def test_every_place_in_memory_has_an_end(walled: Run, place: str) -> None:
    _, out = walled(["sh", "-c", f"head -c 30000000 /dev/zero > {place}/x; touch /dev/x || wc -c < {place}/x"])
    assert "No space left" in out and out.split()[-1] == str(_SMALL.tmp_mib << 20)


def test_disk_is_counted_in_mounted_folders_and_however_deep(
    either: tuple[Session, Run],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    remove = ["rm", "-rf", str(tmp_path)]  # Python's own rmtree ends at its recursion limit
    request.addfinalizer(lambda: subprocess.run(remove, check=False))
    session, run = either
    mount = Mount(tmp_path_factory.mktemp("results"), "/results", writable=True)
    fill = "import os, sys, time\nos.chdir(sys.argv[1])\n"
    write = "for n in range(999): open(f'f{n}', 'wb').write(bytes(1 << 22)); time.sleep(.02)"
    result, _ = run(["python", "-c", fill + write, session.place(mount)], mounts=[mount])
    assert result.disk_exceeded
    deep = "for n in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    result, _ = run(["python", "-c", fill + deep + write, session.root])
    assert result.disk_exceeded
    endless = "while True: os.mkdir('d'); os.chdir('d'); time.sleep(.0005)"
    result, _ = run(["python", "-c", fill + endless, session.root], timeout=20)
    assert result.disk_exceeded


def test_groups_of_the_dead_are_removed_and_those_of_the_living_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    group = cgroups.make_group(_SMALL)
    folders = list(dict.fromkeys(group.folders.values()))
    if not folders:
        pytest.skip("no control group can be made here")
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    left = [folder.with_name(f"lmlab-{dead}-0123456789ab") for folder in folders]
    for each in left:
        each.mkdir()
    monkeypatch.setattr(cgroups, "_NEW_S", -1.0)
    cgroups._sweep.cache_clear()
    cgroups.make_group(_SMALL).remove()
    assert not any(each.exists() for each in left) and all(each.exists() for each in folders)
    group.remove()
    assert not any(each.exists() for each in folders)


def test_a_caller_with_real_time_priority_has_a_sandbox_too(walled: Run) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("this user may not have real-time priority")
    try:
        result, out = walled(["echo", "alive"])
        assert (result.exit_code, out) == (0, "alive\n")
        group = cgroups.make_group(_SMALL)
        group.remove()
        assert "cpus" not in group.enforced()  # a quota that holds nothing is not told to hold
    finally:
        os.sched_setscheduler(0, *before)


def test_a_fork_bomb_ends_at_the_number_of_processes(walled: Run) -> None:
    if "processes" not in Bubblewrap().probe().enforced:
        pytest.skip("no control group limits processes here")
    code = "import os, time\nn = 0\ntry:\n  while n < 500:\n    if os.fork() == 0: time.sleep(9)\n    n += 1\n"
    code += "except BlockingIOError: print('stopped at', n)"
    result, out = walled(["python", "-c", code])
    assert out.startswith("stopped at") and int(out.split()[2]) < 64
    assert result.exit_code == 0  # and the sleepers are dead with it
    walled(["bash", "-c", ":(){ :|:& };:; sleep 1"], timeout=2)
    assert walled(["echo", "alive"])[1] == "alive\n"


def test_temporary_files_have_an_end(walled: Run) -> None:
    _, out = walled(["sh", "-c", "head -c 99000000 /dev/zero > /tmp/x; head -c 99000000 /dev/zero > /testbed/x"])
    assert "No space left" in out or "File size limit" in out or "File too large" in out


def test_a_daemon_dies_with_its_command(walled: Run, tmp_path: Path) -> None:
    walled(["sh", "-c", "setsid sh -c 'sleep 1; echo late > /testbed/late' >/dev/null 2>&1 & echo done"])
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_a_killed_sandbox_is_no_exit_status_of_its_command(tmp_path: Path) -> None:
    _needs_bubblewrap()
    import threading

    with Bubblewrap().open(Box(tmp_path), _SMALL) as session:
        failures: list[SandboxFailure] = []

        def run() -> None:
            try:
                session.run(["sleep", "20"])
            except SandboxFailure as failure:
                failures.append(failure)

        before = set(descendants(os.getpid()))
        thread = threading.Thread(target=run)
        thread.start()
        while len(mine := set(descendants(os.getpid())) - before) < 3:
            time.sleep(0.01)
        for pid in sorted(mine):  # the outermost first, else it tells how the inner one ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        thread.join(10)
    assert len(failures) == 1


def test_a_mount_that_is_not_there_is_a_failure_of_the_sandbox(tmp_path: Path) -> None:
    _needs_bubblewrap()
    with (
        Bubblewrap().open(Box(tmp_path, mounts=(Mount(tmp_path / "none", "/none"),)), _SMALL) as session,
        pytest.raises(SandboxFailure, match="could not make its namespaces"),
    ):
        session.run(["true"])


def test_local_is_used_only_if_somebody_insists() -> None:
    with pytest.raises(UserError, match="has no walls"):
        choose_executor("local")
    assert choose_executor("local", unsafe=True).name == "local"
    with pytest.raises(UserError, match="Unknown executor 'bubblwrap'. Did you mean 'bubblewrap'"):
        choose_executor("bubblwrap")
    if not Bubblewrap().probe().available:
        with pytest.raises(UserError, match="No isolated executor"):
            choose_executor()


def test_a_limit_that_nothing_holds_is_an_error_when_it_is_required() -> None:
    _needs_bubblewrap()
    assert choose_executor("bubblewrap", require=["memory", "timeout"]).name == "bubblewrap"
    with pytest.raises(UserError, match="nothing holds the limits of luck"):
        choose_executor("bubblewrap", require=["luck"])
    assert {info.name for info in probe_all()} >= {"bubblewrap", "local"}


def test_the_filter_is_a_program_whose_jumps_end_in_it() -> None:
    for machine in ("x86_64", "aarch64"):
        program = seccomp_filter(machine)
        assert program is not None
        steps = [struct.unpack_from("HBBI", program, place) for place in range(0, len(program), 8)]
        jumps = [(place, step) for place, step in enumerate(steps) if step[0] in (0x15, 0x35)]
        assert all(place + 1 + max(yes, no) < len(steps) for place, (_, yes, no, _) in jumps)
        denied = [step for step in steps if step[0] == 0x15 and step[1] > 1]
        ends = [steps[place + 1 + yes] for place, (_, yes, _, _) in jumps if place > 3]
        refused, (is_socket, *families) = ends[:-5], ends[-5:]
        assert set(refused) == {(6, 0, 0, 0x00050001)} and is_socket == (0x20, 0, 0, 16)
        assert set(families) == {(6, 0, 0, 0x7FFF0000)} and steps[-2] == (6, 0, 0, 0x00050061)
        assert len(denied) > 30
    assert seccomp_filter("pdp11") is None


def test_a_sink_keeps_head_and_tail() -> None:
    out = io.BytesIO()
    sink = CappedSink(out, 20)
    for number in range(1000):
        sink.write(b"%03d " % number)
    sink.close()
    assert out.getvalue().startswith(b"000 001 00") and out.getvalue().endswith(b"998 999 ") and sink.truncated
