"""Temporary folders outlive no process for long."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from lmlab.distributed import remove_left_folders, scratch_folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_nothing_else(place, forkserver):
    (place / "work.py").write_text(f"""\
import tempfile, time
tempfile.tempdir = {str(place)!r}
from lmlab.distributed import scratch_folder
with scratch_folder("work") as folder:
    deep = folder / "tree"
    deep.mkdir()
    (deep / "file").write_text("x")
    deep.chmod(0o500)
    time.sleep(600)
""")
    killed, lives = (forkserver.start(script=place / "work.py")[0] for _ in range(2))
    until = time.monotonic() + 60
    while len(list(place.glob("lmlab-work-*/files/tree/file"))) < 2:
        assert time.monotonic() < until and killed.poll() is None, killed.read_error()
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    (place / "lmlab-mine").mkdir()  # of somebody else, with a note of another meaning
    (place / "lmlab-mine" / "owner").write_text("me")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner").write_text(next(place.glob("lmlab-work-*/owner")).read_text())
    os.symlink(elsewhere, place / "lmlab-link")
    remove_left_folders.cache_clear()
    with scratch_folder("code") as own:
        assert list(own.iterdir()) == []
        left = {path.name.rpartition("-")[0] for path in place.glob("lmlab-*-*")}
        assert left == {"lmlab-work", "lmlab-code"} and len(list(place.glob("lmlab-work-*"))) == 1
    lives.kill()
    assert (place / "lmlab-mine" / "owner").exists() and (elsewhere / "owner").exists()
    assert not list(place.glob("lmlab-code-*"))
    assert isinstance(own, Path)
