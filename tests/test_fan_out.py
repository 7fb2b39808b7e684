"""Jobs that are done elsewhere come back the same, and so do their errors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lmlab.errors import LmlabError, UserError
from lmlab.fan_out import fan_out


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


def test_a_cluster_without_its_package_is_a_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"'ray', which is not installed.\n.*lmlab\[ray\]"):
        list(fan_out(square, [1], backend="ray"))
