"""The loop: exact means, exact resume, guarded numbers, checkpoints that are whole or absent."""

from __future__ import annotations

import math
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from counting import CountingRows, counting_trainer

from lmlab.distributed import World
from lmlab.errors import Interrupted, LmlabError, UserError
from lmlab.files import read_json
from lmlab.hardware import ways
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora
from lmlab.train import (
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    StepOutput,
    Trainer,
    TrainerConfig,
    checkpoints,
    language_model_step,
    learning_rate_factor,
    read_metrics,
)
from lmlab.train.prepare import prepare


def _trainer(directory, evaluate=None, step_function=None, options=None, **settings) -> Trainer:
    defaults = {
        "steps": 20,
        "batch_size": 4,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 5,
    }
    config = TrainerConfig(**{**defaults, **settings})
    return counting_trainer(directory, config, step_function=step_function, evaluate=evaluate, **(options or {}))


def _course(directory) -> list[tuple[float, ...]]:
    return [
        (row["step"], row["loss"], row["gradient_norm"], row["learning_rate"])
        for row in read_metrics(directory / "metrics.jsonl")
    ]


def test_a_resumed_training_computes_by_the_ways_that_it_began_with(tmp_path, monkeypatch):
    """Also if the machine was measured in between, or if it is another one."""
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    question, seen = "attention fp32 one long", []

    def note(model):
        seen.append(ways.way(question))
        if len(seen) == 1:
            raise RuntimeError("pulled the plug")
        return {}

    with ways.using({question: "mixed"}), pytest.raises(RuntimeError):
        _trainer(tmp_path / "run", evaluate=note, evaluate_every=7).fit()
    with ways.using({question: "blocks"}):
        _trainer(tmp_path / "run", evaluate=note, evaluate_every=7).fit()
        assert ways.way(question) == "blocks"
    assert set(seen) == {"mixed"} and len(seen) > 2
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert read_json(newest / "state.json")["ways"] == ways.defaults() | {question: "mixed"}


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
    settings = {
        "steps": 150,
        "batch_size": 4,
        "checkpoint_every": 150,
        "optimizer": OptimizerConfig(name=optimizer, learning_rate=1e-2),
    }
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


@pytest.mark.parametrize("step", [8, 20], ids=["in between", "at the end"])
def test_a_long_evaluation_is_stopped_at_once_and_made_up_for(tmp_path, step):
    def evaluate(model, stop=False):
        if stop and next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return {"heldout_loss": float(sum(parameter.detach().double().sum() for parameter in model.parameters()))}

    settings = {"evaluate_every": 4, "keep_best": "heldout_loss", "checkpoint_every": 7}
    _trainer(tmp_path / "whole", evaluate=evaluate, **settings).fit()
    steps = iter(range(4, 24, 4))
    start = time.monotonic()
    with pytest.raises(Interrupted, match=f"SIGTERM at step {step} of 20; a checkpoint was written"):
        _trainer(tmp_path / "cut", evaluate=lambda model: evaluate(model, stop=True), **settings).fit()
    assert time.monotonic() - start < 10
    _trainer(tmp_path / "cut", evaluate=evaluate, **settings).fit()
    logged = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    names = ("step", "loss", "gradient_norm", "heldout_loss")
    assert [[row.get(name) for name in names] for row in logged[0]] == [
        [row.get(name) for name in names] for row in logged[1]
    ]
    assert [path.name for path in checkpoints(tmp_path / "cut" / "checkpoints")] == [
        path.name for path in checkpoints(tmp_path / "whole" / "checkpoints")
    ]


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


def test_the_length_and_the_schedule_can_be_given_in_tokens(tmp_path):
    schedule = ScheduleConfig(kind="wsd", warmup_tokens=5 * 64, decay_tokens=4 * 64, final_fraction=0)
    _trainer(tmp_path, steps=None, tokens=20 * 64 - 1, schedule=schedule).fit()
    rates = [row["learning_rate"] / 1e-3 for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, *[1.0] * 12, 0.75, 0.5, 0.25])


def test_several_decays_each_leave_a_checkpoint_that_is_kept(tmp_path):
    schedule = ScheduleConfig(
        kind="wsd", warmup_fraction=0, decay_fraction=0.5, decay_ends=(0.4, 1.0), final_fraction=0
    )
    _trainer(tmp_path, schedule=schedule, keep_checkpoints=1).fit()
    rates = [row["learning_rate"] / 1e-3 for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates[:8] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert rates[8:11] == [1, 1, 1] and rates[-1] == pytest.approx(0.1)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000008", "step-00000020"]


def test_the_best_checkpoint_is_kept(tmp_path):
    figures = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    _trainer(
        tmp_path,
        evaluate=lambda model: {"heldout_loss": next(figures)},
        evaluate_every=4,
        checkpoint_every=5,
        keep_checkpoints=1,
        keep_best="heldout_loss",
    ).fit()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000008", "step-00000020"]
    assert read_json(tmp_path / "checkpoints" / "step-00000008" / "state.json")["figures"] == {"heldout_loss": 1.0}
    with pytest.raises(UserError, match="gives no 'accuracy', but heldout_loss"):
        _trainer(
            tmp_path / "b", evaluate=lambda model: {"heldout_loss": 1.0}, evaluate_every=5, keep_best="accuracy"
        ).fit()


def test_groups_by_name_have_their_own_settings_and_may_be_frozen(tmp_path):
    groups = (
        ParameterGroup(match="embedding", learning_rate=5e-3, weight_decay=0),
        ParameterGroup(match=r"blocks\.0\.", frozen=True),
        ParameterGroup(match=r"ffn\..*weight", optimizer="muon", weight_decay=0.3),
    )
    trainer = _trainer(tmp_path, optimizer=OptimizerConfig(groups=groups))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.fit()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith("blocks.0.")
    trainer.optimizers.set_factor(1.0)
    found = {
        (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in trainer.optimizers._all
        for group in optimizer.param_groups
    }
    assert found == {("AdamW", 5e-3, 0.0), ("AdamW", 1e-3, 0.0), ("AdamW", 1e-3, 0.1), ("Muon", 1e-3, 0.3)}
    _trainer(tmp_path, steps=25, schedule=ScheduleConfig(replan=0.5), optimizer=OptimizerConfig(groups=groups)).fit()
    with pytest.raises(UserError, match="'nothing' matches no parameter"):
        _trainer(tmp_path / "b", optimizer=OptimizerConfig(groups=(ParameterGroup(match="nothing"),)))
    with pytest.raises(UserError, match="which is no matrix"):
        _trainer(tmp_path / "b", optimizer=OptimizerConfig(groups=(ParameterGroup(match="norm", optimizer="muon"),)))
    with pytest.raises(UserError, match="nothing is left to train"):
        _trainer(tmp_path / "b", optimizer=OptimizerConfig(groups=(ParameterGroup(match=".", frozen=True),)))


def test_a_restart_takes_weights_and_optimizer_and_begins_its_schedule_anew(tmp_path):
    constant = ScheduleConfig(kind="constant", warmup_fraction=0)
    _trainer(tmp_path / "whole", schedule=constant).fit()
    _trainer(tmp_path / "first", steps=10, schedule=constant).fit()
    start = checkpoints(tmp_path / "first" / "checkpoints")[-1]
    rows = {"start": start, "start_optimizer": True}
    trainer = _trainer(tmp_path / "second", steps=10, schedule=constant, options=rows)
    trainer.loader.restore({**trainer.loader.state(), "next_row": 40})
    trainer.fit()
    assert [each[1:] for each in _course(tmp_path / "second")] == [
        each[1:] for each in _course(tmp_path / "whole")[10:]
    ]
    _trainer(tmp_path / "weights", steps=1, schedule=constant, options={"start": start}).fit()
    assert _course(tmp_path / "weights")[0][1] < _course(tmp_path / "whole")[0][1]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("recompute", [0, 1])
def test_tiles_of_tokens_give_the_same_gradients_and_keep_less(gated, recompute):
    """Of 200 tokens 64 at a time, the last tile shorter; in fp32 to 1e-6."""
    shape = ModelConfig(vocab_size=40, num_layers=2, d_model=32, num_heads=2, d_ff=256, gated=gated, init_std=0.1)
    ids = torch.randint(40, (2, 100), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": torch.arange(100).expand(2, -1) // 30}
    found, rest = [], (World(0, 1), torch.device("cpu"), torch.float32)
    for tile in (0, 64):
        config = TrainerConfig(steps=1, batch_size=2, tile_mlp=tile, recompute_blocks=recompute)
        model = prepare(Transformer(shape).initialize(0), config, *rest)
        kept = {}

        def pack(x, kept=kept):
            kept.setdefault(x.data_ptr(), x)  # views of one tensor count once
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = language_model_step(model, batch)
        size = sum(each.numel() for each in kept.values())
        output.loss_sum.backward()
        found.append((size, {name: each.grad for name, each in model.named_parameters()}))
    (whole, expected), (tiled, gradients) = found
    for name, each in expected.items():
        assert float((gradients[name] - each).abs().max() / each.abs().max()) < 1e-6, name
    assert recompute or tiled < whole - 2 * 200 * 256  # of every layer the inner numbers of all tokens at least
    with pytest.raises(UserError, match="no dense feed-forward network"):
        prepare(torch.nn.Linear(1, 1), TrainerConfig(steps=1, batch_size=1, tile_mlp=8), *rest)


def test_what_adapters_drop_is_dropped_again_where_blocks_are_recomputed():
    shape = ModelConfig(vocab_size=40, num_layers=2, d_model=32, num_heads=2, init_std=0.1)
    ids = torch.randint(40, (2, 50), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": torch.zeros(2, 50, dtype=torch.long)}
    found = []
    for every in (0, 1):
        model = Transformer(shape).initialize(0)
        add_lora(model, LoRAConfig(rank=4, dropout=0.5))
        generator = torch.Generator().manual_seed(1)
        learned = {name: each for name, each in model.named_parameters() if each.requires_grad}
        with torch.no_grad():
            for each in learned.values():  # B is 0 at first, and A then has no gradient
                each.copy_(0.1 * torch.randn(each.shape, generator=generator))
        model.recompute_blocks = every
        torch.manual_seed(0)
        language_model_step(model.train(), batch).loss_sum.backward()
        found.append({name: each.grad for name, each in learned.items()})
    for name, each in found[0].items():
        assert float(each.abs().max()) > 0
        torch.testing.assert_close(found[1][name], each)
    config = TrainerConfig(steps=1, batch_size=1, tile_mlp=8)
    with pytest.raises(UserError, match="tile_mlp goes without lora.dropout"):
        prepare(model, config, World(0, 1), torch.device("cpu"), torch.float32)


def test_recomputed_blocks_give_the_same_course(tmp_path):
    _trainer(tmp_path / "kept").fit()
    for every in (1, 2):
        _trainer(tmp_path / f"every-{every}", recompute_blocks=every).fit()
        assert _course(tmp_path / f"every-{every}") == _course(tmp_path / "kept")


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_course(tmp_path):
    _trainer(tmp_path / "eager").fit()
    _trainer(tmp_path / "compiled", compile=True).fit()
    assert np.allclose(_course(tmp_path / "eager"), _course(tmp_path / "compiled"), rtol=1e-4)


def test_the_loss_by_domain_adds_up(tmp_path):
    _trainer(tmp_path, steps=3, micro_batch_size=2).fit()
    rows = CountingRows()
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        assert min(row["loss/even"], row["loss/odd"]) <= row["loss"] <= max(row["loss/even"], row["loss/odd"])
    trainer = _trainer(tmp_path / "b", steps=1)
    batch = next(iter(trainer.loader))
    logits = trainer.model(batch["input_ids"]).logits_BTV
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    kept = batch["labels"] != -100
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    for number, name in enumerate(("even", "odd")):
        mine = kept & (batch["domain_ids"] == number)
        assert first[f"loss/{name}"] == pytest.approx(float(losses[mine].mean().detach()), rel=1e-5)
    assert len(rows) == 40


def test_metrics_go_to_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _trainer(tmp_path, track=("tensorboard",), steps=5).fit()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    )
    assert {"loss/even", "gradient_norm", "learning_rate", "tokens_per_second", "memory_bytes"} <= set(
        events.Tags()["scalars"]
    )


def test_metrics_go_to_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _trainer(tmp_path, track=("wandb",), steps=5).fit()
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while b"gradient_norm" not in run.read_bytes():  # a process of its own writes it
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'wandb', which is not installed.\n.*lmlab\[track\]"):
        _trainer(tmp_path, track=("wandb",)).fit()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": None}, "either steps, tokens or epochs"),
        ({"tokens": 5}, "either steps, tokens or epochs"),
        ({"schedule": {"decay_ends": [0.5, 1.0]}}, "belongs to the kind wsd"),
        ({"schedule": {"kind": "wsd", "decay_ends": [0.5, 0.9]}}, "must rise from above 0 to 1"),
        ({"optimizer": {"groups": [{"match": "("}]}}, "not a regular expression"),
        ({"parallel": {"kind": "data", "shard_size": 2}}, "belongs to the kind hybrid"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**{"steps": 5, "batch_size": 4, **settings})
