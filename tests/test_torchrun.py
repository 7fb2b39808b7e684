"""The same recipe by one process and by several."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lmlab.files import read_json
from lmlab.models import from_pretrained
from lmlab.train import checkpoints, read_metrics

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lmlab"]


def _launch(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_TORCHRUN, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def _losses(run):
    return [
        (row["step"], row["loss"], row.get("heldout_loss", 0.0))
        for row in read_metrics(run / "model" / "metrics.jsonl")
    ]


def test_a_whole_recipe_by_two_processes_gives_what_one_gives(forkserver, lmlab, recipe, tmp_path):
    path = recipe(until="evaluation")
    assert lmlab("run", path, "--out", tmp_path / "one").code == 0
    done = _launch("run", path, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("[1/8] documents") == 1
    for one, two in zip(_losses(tmp_path / "one"), _losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    first, second = (read_json(tmp_path / name / "results.json") for name in ("one", "two"))
    assert second["model"]["processes"] == 2
    assert first["evaluation"]["measured"]["model"]["bits_per_byte"]["code"]["value"] == pytest.approx(
        second["evaluation"]["measured"]["model"]["bits_per_byte"]["code"]["value"], rel=1e-4
    )
    weights = [dict(from_pretrained(tmp_path / name / "model" / "model").named_parameters()) for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])
    newest = checkpoints(tmp_path / "two" / "model" / "checkpoints")[-1]
    assert lmlab("convert", newest, tmp_path / "exported", "--check").code == 0
    exported = dict(from_pretrained(tmp_path / "exported").named_parameters())
    assert all(torch.equal(weights[1][name], exported[name]) for name in exported)
    again = forkserver.run("run", path, "--out", tmp_path / "two", processes=2)
    assert again.returncode == 0 and again.stderr.count("done before") == 8


def test_a_mistake_ends_all_processes_with_one_sentence(forkserver, recipe, tmp_path):
    path = recipe(until="model")
    changes = ("--set", "model.trainer.batch_size=3", "--set", "model.trainer.micro_batch_size=1")
    done = forkserver.run("run", path, "--out", tmp_path / "run", *changes, processes=2)
    assert done.returncode != 0
    assert "cannot be shared evenly by 2 processes" in done.stderr
    assert done.stderr.count("error: ") in (1, 2)
