"""The number of threads follows what else the machine does, where it may."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import astuple

import pytest
import torch

from lmlab.errors import UserError
from lmlab.hardware import groups, threads
from lmlab.hardware.threads import Governor, Look, Patience, Rates


class Machine:
    """Counters that go on as a machine's would: `cores` of them, `others` processes that never rest."""

    def __init__(self, cores):
        self.cores, self.others, self.set, self.now = cores, 0, [], Look(0.0, 0.0, 0.0, 0.0)
        self.governor = Governor(cores, look=lambda: self.now, apply=self.set.append)

    def go_on(self, seconds, wants=None):
        """Let time pass, with looks as often as beats make them; every runnable thread gets the same share."""
        for _ in range(round(seconds / 0.25)):
            mine = min(self.governor.threads, wants or self.cores)
            share = min(1.0, self.cores / (mine + self.others))
            idle = max(0.0, self.cores - mine - self.others)
            step = (1.0, mine * share, mine * (1 - share), idle)
            self.now = Look(*(old + each / 4 for old, each in zip(astuple(self.now), step, strict=True)))
            self.governor.consider(self.now)
        return self.governor.threads


@pytest.mark.parametrize(("cores", "others", "left"), [(2, 1, 1), (2, 2, 1), (8, 2, 6), (8, 8, 2), (16, 1, 15)])
def test_threads_that_would_wait_are_given_up_and_taken_back(cores, others, left):
    machine = Machine(cores)
    assert machine.go_on(5) == cores and machine.set == []  # alone nothing happens
    machine.others = others
    assert machine.go_on(1) == left
    machine.others = 0
    assert machine.go_on(30) == cores


def test_a_machine_that_stays_busy_is_tried_ever_more_rarely():
    machine = Machine(2)
    machine.others = 1
    machine.go_on(1)
    for _ in range(20):  # the other one pauses whenever threads are few, so that each try fails
        machine.others = 0
        machine.go_on(3)
        machine.others = 1
        machine.go_on(3)
    tries = machine.set.count(2)
    assert 1 <= tries <= 12
    machine.others = 0
    assert machine.go_on(61) == 2


def test_it_begins_with_as_many_threads_as_cores_were_free():
    chosen = []
    begun = Governor(4, look=lambda: None, apply=chosen.append, since=Look(0.0, 0.0, 0.0, 0.0))
    begun.consider(Look(1.0, 1.0, 0.0, 0.9))  # one thread read the model, one core stood idle
    assert chosen == [2]
    quiet = Governor(4, look=lambda: None, apply=chosen.append, since=Look(0.0, 0.0, 0.0, 0.0))
    quiet.consider(Look(1.0, 1.0, 0.0, 3.0))
    assert chosen == [2]


def test_without_counters_nothing_changes():
    governor = Governor(4, look=lambda: None, apply=lambda number: pytest.fail("changed"))
    governor.beat()
    assert governor.threads == 4


@pytest.mark.parametrize("told", [None, "0 0 0"])
def test_a_system_that_does_not_count_has_no_counters(monkeypatch, told):
    """A sandbox has no schedstat; a kernel without these statistics has one of zeros."""

    def read(path, **_):
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(threads.Path, "read_text", read)
    assert threads._look() is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system does not tell how idle cores were")
def test_a_container_that_numbers_cores_in_its_own_way_has_no_counters(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 99_999})
    assert threads._look() is None


@pytest.fixture
def untouched(monkeypatch):
    monkeypatch.setattr(threads, "_adapts", None)
    monkeypatch.setattr(threads, "_baseline", None)
    monkeypatch.delattr(threads._local, "watch", raising=False)
    before = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(before)


def _process(place, nice, user, system=0, core=0):
    place.mkdir(exist_ok=True)
    words = ["R", *["0"] * 10, str(user), str(system), "0", "0", "20", str(nice), *["1"] * 19, str(core), "0"]
    (place / "stat").write_text(f"{place.name} (a) name) " + " ".join(words))


def test_what_has_a_lower_priority_counts_as_idle_below_zero_too(tmp_path):
    """The system's own sum tells positive values apart, and no others."""
    lower, all_of_them = threads.Lower(tmp_path), threads.Lower(tmp_path)
    for factor in (1, 2):
        for number, (nice, user, system) in enumerate([(-10, 1, 2), (-5, 10, 20), (0, 100, 200), (5, 1000, 2000)]):
            _process(tmp_path / str(number), nice, factor * user, factor * system)
        (tmp_path / "9").mkdir(exist_ok=True)  # it has just ended
        (tmp_path / "sys").mkdir(exist_ok=True)
        assert lower.ticks(-5, {0}) == 300 * (factor - 1)
        assert all_of_them.ticks(-7, {0}) == 330 * (factor - 1)


def test_such_processes_come_and_go_and_run_on_other_cores_too(tmp_path):
    """A count that falls, or that has the work of all cores, would make cores look busy, or free, that are not."""
    lower, cores = threads.Lower(tmp_path), {0, 1}
    _process(tmp_path / "1", 0, 5000)
    _process(tmp_path / "2", 0, 7000, core=2)
    assert lower.ticks(-5, cores) == 0
    _process(tmp_path / "1", 0, 5010)
    _process(tmp_path / "2", 0, 7400, core=2)
    _process(tmp_path / "3", 0, 4, core=1)  # new
    assert lower.ticks(-5, cores) == 14
    for number in ("1", "3"):
        (tmp_path / number / "stat").unlink()
        (tmp_path / number).rmdir()
    _process(tmp_path / "2", 0, 7401, core=1)  # moved here
    assert lower.ticks(-5, cores) == 15
    _process(tmp_path / "2", -6, 7500)  # its priority was changed
    assert lower.ticks(-5, cores) == 15


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell what processes run")
def test_a_busy_process_of_a_lower_priority_is_counted():
    """Where it runs on a core of ours, as words of the system's own file say."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        lower, end = threads.Lower(), time.monotonic() + 20
        rank = os.getpriority(os.PRIO_PROCESS, child.pid) - 1
        if rank >= 0 or rank < -20:
            pytest.skip("its priority is positive")
        lower.ticks(rank, os.sched_getaffinity(0))
        while not lower.ticks(rank, os.sched_getaffinity(0)):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system does not tell how idle cores were")
def test_below_zero_such_time_is_added(monkeypatch):
    monkeypatch.setattr(threads._lower, "ticks", lambda rank, cores: 10**9 * (rank == -5))
    monkeypatch.setattr(os, "getpriority", lambda which, who: -5)
    low = threads._idle_seconds()
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    assert low - threads._idle_seconds() == pytest.approx(10**9 / os.sysconf("SC_CLK_TCK"), rel=0.01)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),  # a container that sees its own group
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 1),
        ("4:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "400000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 4),
        ("4:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu.max": "?\n"}, 8),
    ],
)
def test_a_share_of_the_cores_of_any_control_group_counts(own, files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(groups, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(groups, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    assert threads._quota() == cores


def test_the_variable_says_what_may_change(untouched, caplog):
    untouched.setattr(threads, "_quota", lambda: 2)
    for word, adapts in ((None, True), ("adaptive", True), ("fixed", False), ("3", False)):
        untouched.delenv(threads.VARIABLE, raising=False)
        if word is not None:
            untouched.setenv(threads.VARIABLE, word)
        threads.adapt()
        assert threads._adapts is adapts
    threads.settle()
    assert torch.get_num_threads() == 3
    assert "asks for 3 threads, and there are 2 cores" in caplog.text
    for word in ("0", "many", "1.5", "²"):
        untouched.setenv(threads.VARIABLE, word)
        with pytest.raises(UserError, match="LMLAB_THREADS"):
            threads.settle()


def test_what_is_promised_to_the_last_bit_keeps_its_threads_which_sleep(untouched):
    untouched.delenv(threads.VARIABLE, raising=False)
    asked = []
    untouched.setattr(threads, "sleeping_threads", asked.append)
    torch.set_num_threads(2)
    threads.beat()
    crowded = Look(time.monotonic() + 60, 1e9, 1e9, 0.0)
    threads._local.watch.consider(crowded)
    assert torch.get_num_threads() == 2 and asked == [True]


class Sleepers:
    """Counters of a machine whose threads keep their number; asleep they leave a core for a third of the time."""

    def __init__(self, cores):
        self.cores, self.others, self.set, self.now = cores, 0, [], Look(0.0, 0.0, 0.0, 0.0)
        self.patience = Patience(cores, self.set.append, look=lambda: self.now)

    def go_on(self, seconds):
        for _ in range(round(seconds / 0.25)):
            wanted = self.cores * (0.67 if self.patience.sleeps else 1.0)
            share = min(1.0, self.cores / (self.cores + self.others))
            ran = min(wanted, self.cores * share)
            idle = max(0.0, self.cores - ran - self.others)
            step = (1.0, ran, self.cores * (1 - share), idle)
            self.now = Look(*(old + each / 4 for old, each in zip(astuple(self.now), step, strict=True)))
            self.patience.consider(self.now)
        return self.patience.sleeps


@pytest.mark.parametrize(("cores", "others"), [(2, 1), (2, 2), (8, 2), (8, 16), (64, 1)])
def test_threads_sleep_beside_busy_processes_and_spin_without(cores, others):
    machine = Sleepers(cores)
    assert not machine.go_on(5) and machine.set == []
    machine.others = others
    assert machine.go_on(1) and machine.go_on(30)
    machine.others = 0
    assert not machine.go_on(30)
    assert machine.set == [True, False]


def test_a_machine_that_is_busy_now_and_then_is_not_tried_at_each_pause():
    machine = Sleepers(2)
    for _ in range(20):
        machine.others = 1
        machine.go_on(1)
        machine.others = 0
        machine.go_on(2)
    assert machine.set.count(False) <= 12


def test_they_sleep_from_the_beginning_where_cores_were_taken():
    asked = []
    begun = Patience(4, asked.append, look=lambda: None, since=Look(0.0, 0.0, 0.0, 0.0))
    begun.consider(Look(1.0, 1.0, 0.0, 1.0))  # one core for reading the model, one idle, two taken
    assert asked == [True]


@pytest.mark.skipif(not threads.SleepingThreads().possible, reason="PyTorch computes without GNU's OpenMP here")
def test_a_team_makes_the_others_sleep_and_goes_again(untouched):
    def tasks():
        return len(os.listdir("/proc/self/task"))

    def wait_for(condition):
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        return condition()

    torch.set_num_threads(2)
    x = torch.randn(300, 300)
    before, product = tasks(), x @ x
    here = threads.SleepingThreads()
    here(True)
    here(True)
    assert wait_for(lambda: tasks() >= before + os.cpu_count())
    assert torch.equal(x @ x, product) and torch.get_num_threads() == 2
    here(False)
    time.sleep(0.2)
    assert tasks() >= before + os.cpu_count()  # one still wants it
    here(False)
    assert wait_for(lambda: tasks() <= before + 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the system does not tell how threads wait")
def test_beside_busy_processes_threads_are_given_up(untouched):
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("one core")
    untouched.setenv(threads.VARIABLE, "adaptive")
    torch.set_num_threads(cores)
    threads.adapt()
    x = torch.randn(512, 512)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        deadline = time.monotonic() + 30
        while torch.get_num_threads() == cores and time.monotonic() < deadline:
            x @ x
            threads.beat()
        assert torch.get_num_threads() < cores
    finally:
        for each in others:
            each.kill()
            each.wait()


def test_threads_spin_again_when_the_one_that_let_them_sleep_has_ended():
    asked = []

    def work():
        patience = Patience(2, asked.append, look=lambda: None)
        patience.decide(Rates(ran=1, waited=2, idle=0, now=1e9, first=False))
        assert patience.sleeps and asked == [True]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [True, False]
