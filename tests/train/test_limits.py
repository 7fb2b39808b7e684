"""Full disks, short memory and damaged checkpoints: sentences, and a training that goes on."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from counting import counting_trainer

from lmlab.errors import LmlabError, from_unforeseen
from lmlab.train import TrainerConfig, checkpoints, read_metrics
from lmlab.train import limits as limits_of_training
from lmlab.train.limits import KillWatch, is_disk_full, is_out_of_memory

_HERE = Path(__file__).parent
_LOOP = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "keep_checkpoints": 3}


def _trainer(directory, steps=8, **settings):
    return counting_trainer(directory, TrainerConfig(**{**_LOOP, "steps": steps, "checkpoint_every": 2, **settings}))


def _losses(directory):
    return [row["loss"] for row in read_metrics(directory / "metrics.jsonl")]


@pytest.fixture
def call(forkserver):
    return lambda script, *arguments: forkserver.run(*arguments, script=_HERE / script)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
@pytest.mark.parametrize("background", ["no", "yes"])
def test_a_disk_that_fills_during_a_checkpoint_is_a_sentence_and_the_training_goes_on(call, tmp_path, background):
    done = call("full_disk.py", tmp_path / "full", 20_000, background)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "the checkpoint of step 4 needs" in done.stdout and "that of step 2 is whole" in done.stdout
    assert "Free some space" in done.stdout
    assert [path.name for path in checkpoints(tmp_path / "full" / "checkpoints")] == ["step-00000002"]
    assert not list((tmp_path / "full" / "checkpoints").glob(".*.tmp"))
    assert call("full_disk.py", tmp_path / "full", 0, background).returncode == 0
    assert call("full_disk.py", tmp_path / "whole", 0, background).returncode == 0
    assert _losses(tmp_path / "full") == _losses(tmp_path / "whole")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_too_little_memory_is_a_sentence_and_smaller_micro_batches_go_on(call, tmp_path):
    done = call("short_memory.py", tmp_path, 4)
    assert done.returncode == 1 and "Traceback" not in done.stderr, (done.stdout, done.stderr[-2000:])
    assert "Out of memory on cpu at step 4, with micro-batches of 4 rows." in done.stdout
    assert "On paper it needs" in done.stdout and "Lower trainer.micro_batch_size" in done.stdout
    assert "The checkpoint of step 3 is whole." in done.stdout
    done = call("short_memory.py", tmp_path, 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_what_counts_as_no_memory_and_no_space():
    with pytest.raises(RuntimeError) as allocation:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(allocation.value) and is_out_of_memory(MemoryError())
    assert "The memory does not suffice" in str(from_unforeseen(allocation.value))  # outside of a training, too
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    outer = ValueError("outer")
    assert not is_disk_full(outer)
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(outer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_that_is_full_counts_as_such():
    with pytest.raises(OSError, match="No space left") as full:
        Path("/dev/full").write_text("x")
    assert is_disk_full(full.value)


def test_a_kill_for_lack_of_memory_is_told_at_the_next_attempt(tmp_path, monkeypatch, capsys):
    events = tmp_path / "memory.events"
    monkeypatch.setattr(limits_of_training, "_EVENTS", events)
    events.write_text("low 0\noom_kill 3\n")
    KillWatch(tmp_path).begin("Lower it.")  # killed: no end
    events.write_text("low 0\noom_kill 4\n")
    watch = KillWatch(tmp_path)
    watch.begin("Lower it.")
    said = " ".join(capsys.readouterr().err.split())
    assert "has killed 1 of this group's processes for lack of memory since. Lower it." in said
    watch.end()
    events.write_text("low 0\noom_kill 9\n")
    KillWatch(tmp_path).begin("Lower it.")
    assert not capsys.readouterr().err


def _truncate(path):
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def _flip(path):
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


_DAMAGES = {
    "truncated": _truncate,
    "flipped": _flip,
    "missing": lambda path: next(path.glob("*.safetensors")).unlink(),
    "bad-json": lambda path: (path / "state.json").write_text('{"step": 8,'),
    "other-json": lambda path: (path / "state.json").write_text("[]"),
    "no-step": lambda path: (path / "state.json").write_text(json.dumps({"files": {}})),
    "no-state": lambda path: (path / "state.json").unlink(),
    "not-text": lambda path: (path / "state.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    _trainer(directory).fit()
    return directory


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(trained, tmp_path, damage, capsys):
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)
    newest = checkpoints(directory / "checkpoints")[-1]
    assert newest.name == "step-00000008"
    _DAMAGES[damage](newest)
    capsys.readouterr()
    _trainer(directory).fit()
    said = " ".join(capsys.readouterr().err.split())
    assert "step-00000008" in said and "from the checkpoint before it, of step 6" in said
    assert _losses(directory) == _losses(trained)
    names = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006", "step-00000008", "step-00000008.damaged"]


def test_all_damaged_is_an_error_that_says_what_to_do_and_nothing_is_lost(trained, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)
    for path, damage in zip(checkpoints(directory / "checkpoints"), _DAMAGES.values(), strict=False):
        damage(path)
    before = (directory / "metrics.jsonl").read_bytes()
    for _ in range(2):  # also when it is tried again
        with pytest.raises(LmlabError, match="None of the 3 checkpoints .* is whole") as error:
            _trainer(directory).fit()
    assert "remove the folder to begin anew" in str(error.value)
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_an_older_damaged_checkpoint_does_not_stop_a_training(trained, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)
    (checkpoints(directory / "checkpoints")[0] / "state.json").write_text("{")
    _trainer(directory, steps=10, schedule={"replan": 0.5}).fit()
    assert checkpoints(directory / "checkpoints")[-1].name == "step-00000010"
