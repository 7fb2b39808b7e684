"""Several processes train as one does, and each others' checkpoints fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from counting import COUNTING, counting_trainer, keep_gradients
from safetensors.torch import load_file

from lmlab.models import Transformer
from lmlab.train import TrainerConfig, checkpoints, load_checkpoint, read_metrics

_WORKER = Path(__file__).with_name("worker.py")
_SETTINGS = {
    "steps": 6,
    "batch_size": 8,
    "micro_batch_size": 2,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 1,
    "checkpoint_every": 3,
}

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")


@pytest.fixture
def train(forkserver):
    def call(directory: Path, processes: int, **settings) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({**_SETTINGS, **settings})
        done = forkserver.run(directory, settings, script=_WORKER, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]

    return call


def _figures(directory: Path) -> list[list[float]]:
    names = ("step", "tokens", "loss", "loss/even", "loss/odd", "gradient_norm", "learning_rate")
    return [[row[name] for name in names] for row in read_metrics(directory / "metrics.jsonl")]


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    """The newest weights as one process loads them."""
    model = Transformer(COUNTING)
    load_checkpoint(checkpoints(directory / "checkpoints")[-1], model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {"parallel": {"kind": "data"}}),
        (2, {"parallel": {"kind": "fsdp"}, "meta": True}),
        (4, {"parallel": {"kind": "hybrid", "shard_size": 2}, "background_checkpoints": True}),
        (2, {"parallel": {"kind": "fsdp", "gather_once": True}, "recompute_blocks": 1, "optimizer": {"name": "muon"}}),
        (4, {"parallel": {"kind": "fsdp", "sequence_parallel": 2}, "recompute_blocks": 1, "tile_mlp": 4}),
    ],
    ids=["data", "fsdp", "hybrid", "fsdp-muon", "fsdp-sequence"],
)
def test_several_processes_train_as_one_does(train, tmp_path, processes, settings):
    optimizer = settings.get("optimizer", {})
    (tmp_path / "one").mkdir()
    trainer = counting_trainer(tmp_path / "one", TrainerConfig(**_SETTINGS, optimizer=optimizer))
    keep_gradients(trainer, tmp_path / "one")
    trainer.fit()
    train(tmp_path / "many", processes, **settings)
    gradients = [torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "many")]
    assert (
        gradients[0].keys() == gradients[1].keys()
        and max(float(each.abs().max()) for each in gradients[0].values()) > 0.01
    )
    for name, each in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], each, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    for mine, theirs in zip(_figures(tmp_path / "one"), _figures(tmp_path / "many"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    one, many = _weights(tmp_path / "one"), _weights(tmp_path / "many")
    close = 1e-3 if optimizer else 1e-5  # PyTorch's Muon orthogonalizes in bf16
    assert all(torch.allclose(one[name], many[name], rtol=1e-4, atol=close) for name in one)
    files = [path.name for path in checkpoints(tmp_path / "many" / "checkpoints")[-1].glob("*.safetensors")]
    assert len(files) == processes


def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_four_and_back(train, tmp_path):
    for steps, processes in ((3, 2), (6, 1), (9, 4), (12, 2)):
        settings = {"schedule": {"kind": "constant", "warmup_fraction": 0}, "steps": steps}
        train(tmp_path / "many", processes, **settings)
    counting_trainer(
        tmp_path / "one",
        TrainerConfig(**{**_SETTINGS, "steps": 12, "schedule": {"kind": "constant", "warmup_fraction": 0}}),
    ).fit()
    for mine, theirs in zip(_figures(tmp_path / "one"), _figures(tmp_path / "many"), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)


def test_half_precision_of_two_processes_is_near_that_of_one(train, tmp_path):
    counting_trainer(tmp_path / "one", TrainerConfig(**{**_SETTINGS, "precision": "bf16"})).fit()
    train(tmp_path / "two", 2, precision="bf16")
    for mine, theirs in zip(_figures(tmp_path / "one"), _figures(tmp_path / "two"), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2)


def test_every_process_stops_when_the_launcher_is_told_to(tmp_path):
    tmp_path.joinpath("run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(_WORKER)]
    settings = {**_SETTINGS, "steps": 100_000, "checkpoint_every": 100_000}
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(
            [*command, str(tmp_path / "run"), json.dumps(settings)], stderr=err, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert time.monotonic() - start < 15
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (saved,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert set(load_file(next(saved.glob("shard-00001*"))))
    assert "a checkpoint was written" in (tmp_path / "err").read_text()
