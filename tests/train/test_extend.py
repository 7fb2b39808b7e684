"""A training that goes on longer than was planned is the one that was planned so, or is refused."""

from __future__ import annotations

import signal

import pytest
from counting import counting_trainer

from lmlab.config import influences
from lmlab.errors import Interrupted, UserError
from lmlab.files import read_json
from lmlab.runs import Recipe, plan_stages
from lmlab.train import TrainerConfig, read_metrics
from lmlab.train.optimization.plan import Plan, go_on
from lmlab.train.optimization.schedule import ScheduleConfig

_LOOP = {
    "batch_size": 4,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 1,
    "checkpoint_every": 100,
    "optimizer": {"learning_rate": 1e-2},
}


def _config(steps, **schedule):
    return TrainerConfig(**_LOOP, steps=steps, schedule=schedule)


def _figures(directory):
    return [(row["step"], row["loss"], row["learning_rate"]) for row in read_metrics(directory / "metrics.jsonl")]


def _stop_at(trainer, step):
    train_step = trainer._train_step

    def stopping(batch, stop):
        if trainer.step == step:
            stop.requested = signal.SIGTERM
        return train_step(batch, stop)

    trainer._train_step = stopping
    with pytest.raises(Interrupted):
        trainer.fit()


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"kind": "constant", "warmup_fraction": 0}, {"kind": "constant", "warmup_fraction": 0}),
        ({"kind": "constant", "warmup_fraction": 0.5}, {"kind": "constant", "warmup_fraction": 0.25}),
        (
            {"kind": "wsd", "warmup_fraction": 0, "decay_fraction": 0.5},
            {"kind": "wsd", "warmup_fraction": 0, "decay_fraction": 0.5, "decay_ends": (0.5, 1.0)},
        ),
    ],
    ids=["constant", "warm-up-kept", "wsd-s"],
)
def test_a_finished_training_goes_on_as_one_of_the_longer_length(tmp_path, short, long):
    counting_trainer(tmp_path / "two", _config(8, **short)).fit()
    going_on = {**long, "warmup_fraction": short["warmup_fraction"]}
    summary = counting_trainer(tmp_path / "two", _config(16, **going_on)).fit()
    assert summary["steps"] == 16
    counting_trainer(tmp_path / "one", _config(16, **long)).fit()
    assert _figures(tmp_path / "two") == _figures(tmp_path / "one")


def test_wsd_before_its_decay_goes_on_as_one_of_the_longer_length(tmp_path):
    schedule = {"kind": "wsd", "warmup_fraction": 0, "decay_fraction": 0.4}
    _stop_at(counting_trainer(tmp_path / "two", _config(10, **schedule)), 6)
    counting_trainer(tmp_path / "two", _config(16, **schedule)).fit()
    counting_trainer(tmp_path / "one", _config(16, **schedule)).fit()
    assert _figures(tmp_path / "two") == _figures(tmp_path / "one")


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_what_has_decayed_goes_on_only_when_that_is_asked_for(tmp_path, kind):
    schedule = {"kind": kind, "warmup_fraction": 0, "final_fraction": 0.1}
    counting_trainer(tmp_path, _config(8, **schedule)).fit()
    before = _figures(tmp_path)
    with pytest.raises(UserError, match=r"other learning rates.*\n.*schedule.replan"):
        counting_trainer(tmp_path, _config(16, **schedule)).fit()
    assert _figures(tmp_path) == before
    counting_trainer(tmp_path, _config(16, **schedule, replan=0.5)).fit()
    after = _figures(tmp_path)
    assert after[:8] == before and [step for step, *_ in after] == list(range(1, 17))
    rates = [rate for *_, rate in after[8:]]
    assert rates[0] == pytest.approx(0.5e-2) and rates == sorted(rates, reverse=True)
    assert 0.1e-2 <= rates[-1] < 0.4e-2
    _stop_at(counting_trainer(tmp_path, _config(20, **schedule, replan=0.3)), 18)  # twice, and resumed within
    counting_trainer(tmp_path, _config(20, **schedule, replan=0.3)).fit()
    again = _figures(tmp_path)
    assert again[:16] == after and again[16][2] == pytest.approx(0.3e-2)


def test_a_plan_survives_its_record():
    first = Plan(ScheduleConfig(kind="wsd", decay_ends=(0.5, 1.0)), 40, 64)
    later, said = go_on(first, Plan(ScheduleConfig(kind="cosine", warmup_fraction=0.1, replan=0.7), 90, 64), 40)
    assert "replanned from step 40" in said
    again = Plan.of(later.record())
    assert again == later and again.pinned == [20]
    assert [later.factor(step) for step in range(40)] == [first.factor(step) for step in range(40)]
    assert max(later.factor(step) for step in range(40, 90)) == pytest.approx(0.7)


def test_fewer_steps_than_were_made_are_refused(tmp_path):
    counting_trainer(tmp_path, _config(6, kind="constant")).fit()
    with pytest.raises(UserError, match="at step 6, beyond the 4 steps"):
        counting_trainer(tmp_path, _config(4, kind="constant")).fit()


def test_settings_that_say_how_have_no_influence():
    given = {"steps": 4, "batch_size": 4}
    how = {
        "micro_batch_size": 2,
        "device": "cpu",
        "log_every": 1,
        "evaluate_every": 3,
        "checkpoint_every": 7,
        "keep_checkpoints": 9,
        "keep_best": "heldout_loss",
        "background_checkpoints": True,
        "mirror": "memory://x",
        "track": ("tensorboard",),
        "compile": True,
        "recompute_blocks": 1,
        "parallel": {"kind": "data"},
    }
    assert influences(TrainerConfig(**given, **how)) == influences(TrainerConfig(**given))
    for what in ({"steps": 5}, {"precision": "bf16"}, {"optimizer": {"eps": 1e-6}}, {"schedule": {"kind": "wsd"}}):
        assert influences(TrainerConfig(**{**given, **what})) != influences(TrainerConfig(**given))


def test_micro_batches_and_precision_may_change_before_a_resume_which_says_so(tmp_path, capsys):
    config = _config(8, kind="constant")
    _stop_at(counting_trainer(tmp_path, config), 4)
    changed = config.model_copy(update={"micro_batch_size": 2, "precision": "bf16"})
    counting_trainer(tmp_path, changed).fit()
    said = " ".join(capsys.readouterr().err.split())
    assert "The precision is bf16 from step 4 on" in said and "Micro-batches have 2 rows from step 4 on" in said


@pytest.fixture
def run(lmlab, recipe, tmp_path):
    """Run the small recipe up to its evaluation, with changes of the loop."""

    def call(*options, **loop):
        def change(data):
            data["stages"]["model"]["trainer"] |= {"schedule": {"kind": "constant", "warmup_fraction": 0.0}, **loop}

        return lmlab("run", recipe(change, until="evaluation"), "--out", tmp_path / "run", *options)

    return call


def test_a_run_is_extended_and_what_depends_on_it_is_run_again(run, tmp_path):
    assert run().code == 0
    place = tmp_path / "run" / "model"
    first = _figures(place)
    shown = run(log_every=2, checkpoint_every=3, micro_batch_size=2, evaluate_every=2)
    assert shown.code == 0 and "goes on" not in shown.err and _figures(place) == first
    shown = run(steps=10)
    assert shown.code == 2 and "'evaluation'" in shown.err and "--redo" in shown.err
    assert read_json(place / "stage.json")["state"] == "done"
    shown = run("--redo", steps=10)
    assert shown.code == 0, shown.err
    assert "goes on at step 6" in " ".join(shown.err.split())
    assert _figures(place)[:6] == first and len(_figures(place)) == 10
    superseded = [path.name for path in (tmp_path / "run" / "superseded").iterdir()]
    assert superseded == ["evaluation-1"]
    # what was removed to free the disk gives its number to nobody, and what stands is never overwritten
    (tmp_path / "run" / "superseded" / "evaluation-1").rename(tmp_path / "run" / "superseded" / "evaluation-2")
    assert read_json(tmp_path / "run" / "results.json")["model"]["steps"] == 10
    assert run("--redo", steps=12).code == 0
    superseded = sorted(path.name for path in (tmp_path / "run" / "superseded").iterdir())
    assert superseded == ["evaluation-2", "evaluation-3"]


def test_a_run_that_cannot_be_extended_is_left_as_it_was(run, tmp_path):
    schedule = {"kind": "cosine", "warmup_fraction": 0.0}
    assert run(schedule=schedule).code == 0
    before = (tmp_path / "run" / "model" / "stage.json").read_bytes()
    shown = run(steps=10, schedule=schedule)
    said = " ".join(shown.err.split())
    assert shown.code == 2 and "schedule.replan" in said and "add --redo to run the stage again" in said
    assert (tmp_path / "run" / "model" / "stage.json").read_bytes() == before
    assert run("--redo", steps=10, schedule={**schedule, "replan": 0.5}).code == 0
    assert [step for step, *_ in _figures(tmp_path / "run" / "model")] == list(range(1, 11))


def test_redo_trains_anew_where_a_run_cannot_be_extended_and_keeps_what_was(run, tmp_path):
    schedule = {"kind": "cosine", "warmup_fraction": 0.0}
    assert run(schedule=schedule).code == 0
    before = _figures(tmp_path / "run" / "model")
    assert run("--redo", steps=10, schedule=schedule).code == 0
    after = _figures(tmp_path / "run" / "model")
    assert len(after) == 10 and after[:6] != before
    assert _figures(tmp_path / "run" / "superseded" / "model-1") == before


def test_the_micro_batch_is_part_of_a_training_that_starts_from_an_earlier_stage_s_experts(tmp_path):
    moe = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 8, "load_balancing_loss": {"granularity": "micro_batch"}}
    trainer = {"steps": 2, "batch_size": 4, "checkpoint_every": 1}

    def fingerprints(rows, mixture):
        model = {"vocab_size": 300, "num_layers": 1, "d_model": 16, "num_heads": 2, **mixture}
        first = {"kind": "train", "tokens": "tokens", "seq_len": 16, "model": model, "trainer": trainer}
        second = {**first, "start": "first", "trainer": {**trainer, "micro_batch_size": rows}}
        del second["model"]
        data = {"name": "x", "stages": {"tokens": tokens, "first": first, "second": second}}
        return [each.fingerprint for each in plan_stages(Recipe.load(data), tmp_path / "run")]

    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "abc"}')
    (tmp_path / "tokenizer").mkdir()
    tokens = {"kind": "tokenize", "documents": str(tmp_path / "docs.jsonl"), "tokenizer": str(tmp_path / "tokenizer")}
    assert fingerprints(1, {}) == fingerprints(2, {})
    one, two = fingerprints(1, {"ffn": "moe", "moe": moe}), fingerprints(2, {"ffn": "moe", "moe": moe})
    assert one[:2] == two[:2] and one[2] != two[2]
