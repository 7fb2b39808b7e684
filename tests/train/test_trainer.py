"""The loop: exact means, exact resume, guarded numbers, checkpoints that are whole or absent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from counting import counting_trainer

from lmlab.errors import LmlabError, UserError
from lmlab.train import (
    OptimizerConfig,
    ScheduleConfig,
    StepOutput,
    Trainer,
    TrainerConfig,
    checkpoints,
    language_model_step,
    learning_rate_factor,
    read_metrics,
)

def _trainer(directory, evaluate=None, step_function=None, options=None, **settings) -> Trainer:
    defaults = {"steps": 20, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 5}
    config = TrainerConfig(**{**defaults, **settings})
    return counting_trainer(directory, config, step_function=step_function, evaluate=evaluate, **(options or {}))


def _course(directory) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["gradient_norm"], row["learning_rate"]) for row in read_metrics(directory / "metrics.jsonl")]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_gives_the_same_course_to_the_last_bit(tmp_path, optimizer):
    settings = {"optimizer": OptimizerConfig(name=optimizer)}
    _trainer(tmp_path / "whole", **settings).fit()

    def fail(model):
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError):
        _trainer(tmp_path / "cut", evaluate=fail, evaluate_every=13, **settings).fit()
    summary = _trainer(tmp_path / "cut", **settings).fit()
    assert summary["steps"] == 20
    assert _course(tmp_path / "cut") == _course(tmp_path / "whole")


def test_two_runs_of_one_seed_are_equal(tmp_path):
    for name in ("a", "b"):
        _trainer(tmp_path / name).fit()
    assert _course(tmp_path / "a") == _course(tmp_path / "b")


def test_micro_batches_of_unequal_counts_give_the_gradient_of_the_whole_batch(tmp_path):
    _trainer(tmp_path / "whole", steps=5).fit()
    _trainer(tmp_path / "split", steps=5, micro_batch_size=1).fit()
    assert np.allclose(_course(tmp_path / "whole"), _course(tmp_path / "split"), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_small_model_learns_to_count(tmp_path, optimizer):
    settings = {"steps": 150, "batch_size": 4, "checkpoint_every": 150, "optimizer": OptimizerConfig(name=optimizer, learning_rate=1e-2)}
    _trainer(tmp_path, **settings).fit()
    course = _course(tmp_path)
    assert course[0][1] == pytest.approx(math.log(50), rel=0.05)
    assert course[-1][1] < 1.0


def test_bf16_trains(tmp_path):
    _trainer(tmp_path, precision="bf16", steps=40, optimizer=OptimizerConfig(learning_rate=1e-2)).fit()
    course = _course(tmp_path)
    assert course[-1][1] < course[0][1] - 0.3


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    def step(model, batch):
        output = language_model_step(model, batch)
        step.calls += 1
        return StepOutput(output.loss_sum * (math.nan if step.calls > 7 else 1), output.count)

    step.calls = 0
    with pytest.raises(LmlabError, match="not finite at step 8") as caught:
        _trainer(tmp_path, step_function=step).fit()
    assert "step 5 is intact" in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000005"]
    assert len(_course(tmp_path)) == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    _trainer(tmp_path, steps=5).fit()
    (path,) = checkpoints(tmp_path / "checkpoints")[-1].glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-100])
    if damage == "remove":
        path.unlink()
    with pytest.raises(LmlabError, match=path.name):
        _trainer(tmp_path, steps=5).fit()


def test_half_written_checkpoints_are_ignored_and_old_ones_removed(tmp_path):
    _trainer(tmp_path).fit()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000015", "step-00000020"]
    (tmp_path / "checkpoints" / "step-00000099").mkdir()
    assert len(checkpoints(tmp_path / "checkpoints")) == 2


def test_fewer_steps_than_were_done_are_refused(tmp_path):
    _trainer(tmp_path, steps=10).fit()
    with pytest.raises(UserError, match="beyond the 5 steps"):
        _trainer(tmp_path, steps=5).fit()


def test_evaluation_figures_are_logged_and_leave_training_untouched(tmp_path):
    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"heldout_loss": 1.5}

    _trainer(tmp_path / "a", evaluate=evaluate, evaluate_every=4, log_every=7).fit()
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if "heldout_loss" in row] == [4, 8, 12, 16, 20]
    _trainer(tmp_path / "b").fit()
    last = read_metrics(tmp_path / "b" / "metrics.jsonl")[-1]
    assert rows[-1]["loss"] == last["loss"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", {0: 1 / 11, 10: 1.0, 50: 1.0, 99: 1.0}),
        ("linear", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("cosine", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("wsd", {10: 1.0, 79: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules_have_their_shapes(kind, expected):
    config = ScheduleConfig(kind=kind, warmup_fraction=0.1)
    for step, factor in expected.items():
        assert learning_rate_factor(config, step, 100) == pytest.approx(factor, abs=0.02)
    rising = [learning_rate_factor(config, step, 100) for step in range(10)]
    assert rising == sorted(rising)
    assert rising[0] > 0


def test_matrices_decay_and_vectors_do_not(tmp_path):
    trainer = _trainer(tmp_path, optimizer=OptimizerConfig(name="muon"))
    groups = [group for optimizer in trainer.optimizers._all for group in optimizer.param_groups]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.dim() == 2)
