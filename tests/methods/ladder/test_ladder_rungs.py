"""Ladders that are really trained: tiny ones, on a dozen modules of the standard library."""

from __future__ import annotations

from datetime import datetime

import pytest
import yaml

from lmlab.files import read_json
from lmlab.methods.ladder import LadderPlan, RunTable, collect, size_of, train_rungs
from lmlab.methods.ladder.rungs.train import VALIDATION
from lmlab.models import ModelConfig

SMALL = {"vocab_size": 400, "num_layers": 1, "num_heads": 2, "max_seq_len": 256}
TRAINER = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 50}
KEYS = ("tokens", "tokenizer", "heldout_tokens", "questions")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, library):
    """A run directory with shards, a tokenizer and questions."""
    from lmlab.runs import Recipe, run_recipe

    tokenize = {"kind": "tokenize", "documents": "documents", "tokenizer": "tokenizer"}
    stages = {
        "documents": {
            "kind": "collect",
            "sources": [{"kind": "python_library", "path": str(library)}],
            "heldout_fraction": 0.3,
        },
        "tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": 400},
        "tokens": tokenize,
        "heldout_tokens": {**tokenize, "split": "heldout"},
        "questions": {"kind": "next_line_task", "documents": "documents", "items_per_domain": 10, "context_bytes": 100},
    }
    out = tmp_path_factory.mktemp("prepared")
    run_recipe(Recipe.parse({"name": "prepared", "stages": stages}, "the test"), out)
    return out


@pytest.fixture
def plan(prepared):
    sizes = {f"d{d}": ModelConfig.model_validate({**SMALL, "d_model": d}) for d in (16, 32)}
    train = {key: str(prepared / key) for key in KEYS} | {"tasks_limit": 8}
    return LadderPlan(
        sizes=sizes, lengths=("1K", "2K"), seq_len=64, rule="template", evaluations=2, trainer=TRAINER, train=train
    )


def test_runs_are_trained_collected_and_not_trained_again(lmlab, plan, tmp_path):
    train_rungs(plan, tmp_path, workers=1)
    table = collect([tmp_path], target=["d32-2K"])
    assert {run.name for run in table} == {rung.name for rung in plan.rungs()}
    assert [run.name for run in table.targets] == ["d32-2K"]
    for run in table:
        rung = next(each for each in plan.rungs() if each.name == run.name)
        assert (run.n, run.final_tokens, run.planned_tokens) == (size_of(rung.model), rung.tokens, rung.tokens)
        assert len(run) >= 2
        assert {
            VALIDATION,
            "questions/bits_per_byte",
            "questions/accuracy",
            "questions/soft",
            "questions/log_soft",
        } <= set(run.metrics)
        assert run.unfinished is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    train_rungs(plan, tmp_path, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")} == before
    assert lmlab("report", tmp_path / "d16-1K").code == 0  # each is a run as any other
    assert "Recipe d16-1K, seed 0" in (tmp_path / "d16-1K" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_one_rung_is_trained_from_the_command_line_and_is_the_same_by_processes(lmlab, plan, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True)))
    for name, workers in (("one", "1"), ("two", "2")):
        done = lmlab(
            "ladder",
            "run",
            path,
            "--rung",
            "d16-1K",
            "--rung",
            "d16-2K",
            "--workers",
            workers,
            "--out",
            tmp_path / name,
        )
        assert done.code == 0, done.err
    one, two = (collect([tmp_path / name]) for name in ("one", "two"))
    for name in ("d16-1K", "d16-2K"):  # the number of threads changes the rounding
        for key, values in one[name].metrics.items():
            assert two[name].metrics[key] == pytest.approx(
                values, rel=0.01, abs=0.13 if key.endswith("accuracy") else 1e-3
            )
    assert lmlab("ladder", "collect", tmp_path / "one", "--output", tmp_path / "runs.parquet").code == 0
    assert RunTable.read(tmp_path / "runs.parquet").digest == one.digest


def test_a_folder_without_runs_says_what_runs_need(tmp_path):
    from lmlab.errors import UserError

    with pytest.raises(UserError, match="No run was found") as error:
        collect([tmp_path])
    assert "evaluate_every" in str(error.value)
    (tmp_path / "1M-1xC.csv").write_text("_step\n1\n")
    with pytest.raises(UserError, match="No run was found") as error:
        collect([tmp_path])
    assert "named one by one" in str(error.value) and str(tmp_path / "*.csv") in str(error.value)


@pytest.mark.slow
def test_the_stage_forecasts_before_training_and_the_outcome_stands_beside_it(lmlab, prepared, tmp_path):
    inputs = {key: str(prepared / key) for key in KEYS}
    target = {**SMALL, "d_model": 48}
    stages = {
        "ladder": {
            "kind": "ladder",
            **inputs,
            "sizes": {f"d{d}": {**SMALL, "d_model": d} for d in (16, 32)},
            "lengths": ["1K", "2K", "4K"],
            "seq_len": 64,
            "limit": 8,
            "evaluations": 2,
            "trainer": TRAINER,
            "target": {"model": target, "tokens": 8192},
            "workers": 1,
        },
        "model": {"kind": "train", **inputs, "seq_len": 64, "model": target, "trainer": {**TRAINER, "steps": 32}},
        "outcome": {"kind": "ladder_outcome", "ladder": "ladder", "model": "model"},
        "report": {"kind": "report"},
    }
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({"name": "forecast", "stages": stages}, sort_keys=False))
    plan = lmlab("run", path, "--out", out, "--dry-run")
    assert "d16-1K" in plan.err
    done = lmlab("run", path, "--out", out)
    assert done.code == 0, done.err
    forecast, outcome = read_json(out / "ladder" / "forecast.json"), read_json(out / "results.json")["outcome"]
    assert datetime.fromisoformat(forecast["made"]) <= datetime.fromisoformat(outcome["training_started"])
    assert outcome["before"]
    assert outcome["as_planned"]
    for name in ("accuracy", "heldout_loss"):
        assert forecast[name]["lo"] < forecast[name]["value"] < forecast[name]["hi"]
        assert outcome[name]["value"] == forecast[name]["value"]
    page = (out / "report.html").read_text("utf-8")
    assert "Forecast and outcome" in page
    assert "The forecast was made at" in page

    # A model that was trained otherwise is not compared with that forecast.
    other = {
        "kind": "ladder_outcome",
        "ladder": str(out / "ladder"),
        "model": str(out / "ladder" / "rungs" / "d32-4K" / "model"),
    }
    path.write_text(yaml.safe_dump({"name": "other", "stages": {"outcome": other, "report": {"kind": "report"}}}))
    assert lmlab("run", path, "--out", tmp_path / "other").code == 0
    outcome = read_json(tmp_path / "other" / "results.json")["outcome"]
    assert not outcome["as_planned"]
    assert not outcome["before"]
    assert "was not trained as the forecast said" in (tmp_path / "other" / "report.html").read_text("utf-8")
