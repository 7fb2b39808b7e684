"""Whatever the moment of a kill, the run goes on to the same figures, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.train import read_metrics

_SCRIPT = Path(__file__).with_name("killed.py")
_SETTINGS = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 2, "steps": 700}


def _run(directory: Path, kills: int, **settings) -> tuple[list[list[float | None]], dict[str, int]]:
    arguments = [str(directory), json.dumps({**_SETTINGS, **settings}), str(kills), "5"]
    done = subprocess.run([sys.executable, str(_SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_metrics(directory / "metrics.jsonl")
    names = ("step", "tokens", "loss", "loss/even", "loss/odd", "gradient_norm", "learning_rate")
    return [[row.get(name) for name in names] for row in rows], json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_after_twenty_kills_the_figures_are_those_of_a_run_that_was_never_stopped(tmp_path, background):
    whole, _ = _run(tmp_path / "whole", 0)
    killed, moments = _run(tmp_path / "killed", 20, background_checkpoints=background)
    assert killed == whole
    assert sum(moments.values()) == 20
    assert moments["in a checkpoint"] >= 5
