"""Jobs that are done elsewhere come back the same, and so do their errors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lmlab.distributed import fan_out
from lmlab.errors import Interrupted, LmlabError, UserError
from lmlab.train.interrupt import StopRequest


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    if number == 2:
        raise UserError("The job 2 cannot be done.", "Leave it out.")
    return number


def die(number: int) -> int:
    os._exit(9)


def nap(number: int) -> int:
    time.sleep(60 if number else 0)
    return number


def train(folder: str) -> None:
    """A job that is long, and comes to a safe end when it is told to stop, as the trainer does."""
    with StopRequest() as stop:
        place = Path(tempfile.mkstemp(".begun", dir=folder)[1])
        while stop.requested is None:
            time.sleep(0.05)
    place.with_suffix(".ended").touch()
    raise Interrupted("Stopped.", "Go on.")


def _backends():
    found = [pytest.param({"workers": 1}, id="here"), pytest.param({"workers": 2}, id="processes")]
    try:
        import ray  # noqa: F401

        return [*found, pytest.param({"backend": "ray"}, id="ray")]
    except ImportError:
        return [*found, pytest.param({}, id="ray", marks=pytest.mark.skip(reason="ray is not installed"))]


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.parametrize("settings", _backends())
def test_every_job_is_done_once(settings):
    assert sorted(fan_out(square, list(range(7)), **settings)) == [(number, number * number) for number in range(7)]
    assert list(fan_out(square, [], **settings)) == []


@pytest.mark.parametrize("settings", _backends())
def test_an_error_for_the_user_comes_back_as_it_is(settings):
    with pytest.raises(UserError, match="The job 2 cannot be done") as caught:
        list(fan_out(fail, [1, 2, 3], **settings))
    assert caught.value.remedy == "Leave it out."


def test_a_worker_that_dies_is_an_error_and_no_hang():
    with pytest.raises(LmlabError, match="A worker process died"):
        list(fan_out(die, [1, 2], workers=2))


def test_jobs_are_stopped_when_their_results_are_not_wanted_any_more():
    start = time.monotonic()
    results = fan_out(nap, [0, 1, 1], workers=2)
    assert next(results) == (0, 0)
    results.close()
    assert time.monotonic() - start < 30


def test_a_stop_ends_the_jobs_that_run_and_those_that_wait(tmp_path):
    script = (
        f"import test_fan_out; [print(each) for each in test_fan_out.fan_out(test_fan_out.train, ['{tmp_path}'] * 8,"
        " workers=2)]"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from lmlab.cli import _terminate; import signal; signal.signal(15, _terminate)\n" + script,
        ]
    )
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.wait(30)
    assert len(list(tmp_path.glob("*.ended"))) == len(list(tmp_path.glob("*.begun"))) == 2


def test_a_cluster_without_its_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"'ray', which is not installed.\n.*lmlab\[ray\]"):
        list(fan_out(square, [1], backend="ray"))


def test_workers_end_with_a_process_that_is_killed(tmp_path, forkserver):
    (tmp_path / "many.py").write_text(f"""\
import os, time
from pathlib import Path
from lmlab.distributed import fan_out

def work(number):
    Path({str(tmp_path)!r}, f"{{number}}.pid").write_text(str(os.getpid()))
    time.sleep(number)

if __name__ == "__main__":
    list(fan_out(work, [0, 600], 2))
""")
    killed = forkserver.start(script=tmp_path / "many.py")[0]
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert time.monotonic() < until and killed.poll() is None, killed.read_error()
        time.sleep(0.05)
    time.sleep(0.2)  # one waits for a job, the other is at one
    killed.kill()
    left = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < until, left
        time.sleep(0.05)
