"""Experts spread over processes train as one process does, and checkpoints fit other spreads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from moe_worker import SPARSE, sparse_trainer
from pydantic import ValidationError

from lmlab.models import Transformer
from lmlab.train import ParallelConfig, TrainerConfig, checkpoints, load_checkpoint, read_metrics

_WORKER = Path(__file__).with_name("moe_worker.py")
_SETTINGS = {"steps": 4, "batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 2}
_FIGURES = (
    "loss",
    "task_loss",
    "gradient_norm",
    "load_balancing_loss",
    "router_z_loss",
    "routing/max_load",
    "routing/entropy",
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")


@pytest.fixture
def train(forkserver):
    def call(directory: Path, processes: int, **settings) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({**_SETTINGS, **settings})
        done = forkserver.run(directory, settings, script=_WORKER, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]

    return call


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    model = Transformer(SPARSE)
    load_checkpoint(checkpoints(directory / "checkpoints")[-1], model)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    sparse_trainer(directory, TrainerConfig(**_SETTINGS)).fit()
    return directory


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {"parallel": {"expert_parallel": 2}}),
        (2, {"parallel": {"kind": "fsdp"}, "meta": True}),
        pytest.param(
            4, {"parallel": {"expert_parallel": 2}, "meta": True, "recompute_blocks": 1}, marks=pytest.mark.slow
        ),
    ],
    ids=["experts", "fsdp", "experts-and-fsdp"],
)
def test_spread_experts_give_the_losses_gradients_and_weights_of_one_process(train, one, tmp_path, processes, settings):
    train(tmp_path, processes, **settings)
    for mine, theirs in zip(read_metrics(one / "metrics.jsonl"), read_metrics(tmp_path / "metrics.jsonl"), strict=True):
        assert [mine[name] for name in _FIGURES] == pytest.approx(
            [theirs[name] for name in _FIGURES], abs=1e-5, rel=1e-5
        )
    expected = _weights(one)
    for name, weight in _weights(tmp_path).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)


def test_a_checkpoint_of_spread_experts_goes_on_without_spreading_and_back(train, tmp_path):
    constant = {"schedule": {"kind": "constant", "warmup_fraction": 0}}
    sparse_trainer(tmp_path / "whole", TrainerConfig(**{**_SETTINGS, "steps": 6, **constant})).fit()
    train(tmp_path / "many", 2, parallel={"expert_parallel": 2}, **{**constant, "steps": 2})
    sparse_trainer(tmp_path / "many", TrainerConfig(**{**_SETTINGS, "steps": 4, **constant})).fit()
    train(tmp_path / "many", 2, parallel={"expert_parallel": 2}, **{**constant, "steps": 6})
    expected = _weights(tmp_path / "whole")
    for name, weight in _weights(tmp_path / "many").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)


def test_impossible_spreads_are_refused(forkserver, tmp_path):
    with pytest.raises(ValidationError, match="expert_parallel 2 belongs to the kind fsdp"):
        ParallelConfig(kind="data", expert_parallel=2)
    settings = json.dumps({**_SETTINGS, "parallel": {"expert_parallel": 3}})
    done = forkserver.run(tmp_path, settings, script=_WORKER, processes=2)
    assert done.returncode and "parallel.expert_parallel 3 does not divide the 2 processes" in done.stderr
