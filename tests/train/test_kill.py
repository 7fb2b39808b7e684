"""Whatever the moment of a kill, the run goes on to the same figures, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmlab.train import read_metrics

_SCRIPT = Path(__file__).with_name("killed.py")
_SETTINGS = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 2, "steps": 700}


def _run(forkserver, directory: Path, kills: int, **settings) -> tuple[list[list[float | None]], dict[str, int]]:
    arguments = (directory, json.dumps({**_SETTINGS, **settings}), str(kills), "5")
    done = forkserver.run(*arguments, script=_SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_metrics(directory / "metrics.jsonl")
    names = ("step", "tokens", "loss", "loss/even", "loss/odd", "gradient_norm", "learning_rate")
    return [[row.get(name) for name in names] for row in rows], json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(forkserver, tmp_path_factory):
    return _run(forkserver, tmp_path_factory.mktemp("whole"), 0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_after_twenty_kills_the_figures_are_those_of_a_run_that_was_never_stopped(
    forkserver, whole, tmp_path, background
):
    killed, moments = _run(forkserver, tmp_path / "killed", 20, background_checkpoints=background)
    assert killed == whole
    assert sum(moments.values()) == 20
    assert moments["in a checkpoint"] >= 5
