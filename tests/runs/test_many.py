"""Many runs: each is a run of its own, and what becomes of one is nothing to the others."""

from __future__ import annotations

import os

import pytest

from lmlab import plugins
from lmlab.errors import Interrupted, LmlabError, UserError
from lmlab.files import read_json, read_yaml
from lmlab.hardware import ways
from lmlab.runs import Model, PlannedRun, Recipe, StageRecord, parse_axes, run_many, run_recipe, vary

PLUGIN = """
import os
import time
from pathlib import Path
from lmlab.config import Config
from lmlab.errors import UserError
from lmlab.runs import Results, Stage

class Settings(Config):
    power: int = 2
    ends: str = "well"

class Number(Results):
    value: int

class Compute(Stage[Settings, Number]):
    def run(self, config, context):
        print("computing", flush=True)
        if config.ends == "killed" and not Path("mended").exists():
            os._exit(9)
        if config.ends == "refused":
            raise UserError("It cannot be computed.", "Compute something else.")
        if config.ends == "stopped" and not Path("mended").exists():
            time.sleep(0.3)
            raise KeyboardInterrupt
        if config.ends == "fault":
            raise ZeroDivisionError("one over nothing")
        return Number(value=context.seed ** config.power)
"""
STAGES = {"number": {"kind": "compute"}, "report": {"kind": "report"}}
RECIPE = {"name": "powers", "stages": STAGES}


@pytest.fixture(autouse=True)
def _installed(tmp_path, monkeypatch):
    """A package with a stage that ends as it is told; new processes find it too."""
    (tmp_path / "compute_plugin.py").write_text(PLUGIN)
    info = tmp_path / "compute_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: compute-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lmlab.stages]\ncompute = compute_plugin:Compute\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plugins.places.cache_clear()
    yield
    plugins.places.cache_clear()


def test_each_combination_is_a_run_whose_page_can_be_written_again(lmlab, tmp_path):
    runs = vary(RECIPE, {"seed": [2, 3], "number.power": ["1", "3"]}, ["name=varied"])
    told = []
    outcomes = run_many(runs, tmp_path / "out", workers=1, told=told.append)
    assert told == outcomes
    assert [each.name for each in outcomes] == ["seed=2,power=1", "seed=2,power=3", "seed=3,power=1", "seed=3,power=3"]
    assert [each.results["number"]["value"] for each in outcomes] == [2, 8, 3, 27]
    run = tmp_path / "out" / "seed=3,power=3"
    assert read_json(run / "manifest.json")["seed"] == 3 and read_yaml(run / "recipe.yaml")["name"] == "varied"
    assert StageRecord.finished_in(run / "number").results == {"value": 27}
    (run / "report.html").unlink()
    assert lmlab("report", run).code == 0 and "seed 3" in (run / "report.html").read_text()
    rows = read_json(tmp_path / "out" / "sweep.json")
    assert [(row["name"], row["settings"], row["state"]) for row in rows][-1] == (
        "seed=3,power=3",
        {"seed": "3", "number.power": "3"},
        "done",
    )


def test_one_that_fails_stops_no_other_and_what_is_finished_is_kept(tmp_path):
    runs = vary(RECIPE, {"number.ends": ["refused", "fault", "well"], "seed": [5]})
    with pytest.raises(LmlabError, match="2 of 3 runs failed.*It cannot be computed. Compute something else."):
        run_many(runs, tmp_path / "out", workers=1)
    rows = read_json(tmp_path / "out" / "sweep.json")
    assert [row["state"] for row in rows] == ["failed", "failed", "done"]
    assert "ZeroDivisionError: one over nothing" in rows[1]["error"] and rows[1]["results"] is None
    stamp = (tmp_path / "out" / "ends=well,seed=5" / "number" / "stage.json").stat().st_mtime_ns
    (outcome,) = run_many(runs[2:], tmp_path / "out", workers=1)
    assert outcome.results["number"]["value"] == 25
    assert (tmp_path / "out" / "ends=well,seed=5" / "number" / "stage.json").stat().st_mtime_ns == stamp
    assert read_json(tmp_path / "out" / "sweep.json") == rows  # the rows of the others stay


def test_one_that_dies_stops_no_other_and_goes_on_when_called_again(tmp_path):
    runs = vary(RECIPE, {"number.ends": ["killed", "well"], "seed": [4]})
    with pytest.raises(LmlabError, match="1 of 2 runs failed.*Its process died"):
        run_many(runs, tmp_path / "out", workers=2, fresh=True)
    rows = read_json(tmp_path / "out" / "sweep.json")
    assert [row["state"] for row in rows] == ["failed", "done"] and rows[1]["results"]["number"] == {"value": 16}
    assert "computing" in (tmp_path / "out" / "ends=killed,seed=4" / "log.txt").read_text()
    (tmp_path / "mended").touch()
    assert [each.state for each in run_many(runs[:1], tmp_path / "out", fresh=True)] == ["done"]


def test_wrong_recipes_are_found_before_anything_runs(tmp_path):
    wrong = PlannedRun("wrong", {"name": "x", "stages": {"number": {"kind": "compute", "powr": 1}}})
    with pytest.raises(UserError, match="run 'wrong', stage 'number': unknown key 'powr'. Did you mean 'power'?"):
        run_many([PlannedRun("right", RECIPE), wrong], tmp_path / "out")
    with pytest.raises(UserError, match="the same name"):
        run_many([PlannedRun("right", RECIPE)] * 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no stage or key 'nothing'"):
        vary(RECIPE, {"nothing": [1]})
    for wrong in ({"quality": None}, {"name": "x", "stages": None}, {"name": "x", "stages": {"a": 3}}):
        with pytest.raises(UserError, match="the recipe with seed=1"):
            vary(wrong, {"seed": [1]})


def test_axes_keep_the_spelling_unless_values_hold_commas():
    assert parse_axes(["a.b=1e-3, 3e-3", "c={x: 1, y: 2},null"]) == {
        "a.b": ["1e-3", "3e-3"],
        "c": ['{"x": 1, "y": 2}', "null"],
    }
    with pytest.raises(UserError, match="named twice"):
        parse_axes(["a=1", "a=2"])


def test_jobs_of_slurm_run_the_same_recipes(lmlab, tmp_path):
    (tmp_path / "powers.yaml").write_text(Recipe.load(RECIPE).to_yaml())
    arguments = ("launch", "sweep", "powers.yaml", "--vary", "seed=6,7", "--out", "jobs", "--backend", "slurm")
    shown = lmlab(*arguments, "--gpus", "2")
    scripts = [line.removeprefix("sbatch ") for line in shown.out.splitlines()]
    assert shown.code == 0 and len(scripts) == 2
    text = (tmp_path / "jobs" / "recipes" / "seed=7.sh").read_text()
    assert str(tmp_path / "jobs" / "recipes" / "seed=7.sh") == scripts[1] and "#SBATCH --gpus-per-node=2\n" in text
    arguments = text.splitlines()[-1].split("-m lmlab ")[1].split()
    assert lmlab(*arguments).code == 0
    assert read_json(tmp_path / "jobs" / "seed=7" / "results.json")["number"] == {"value": 49}


def test_a_stage_that_is_gone_on_with_computes_by_the_ways_that_it_began_with(tmp_path, monkeypatch):
    from compute_plugin import Compute, Number

    question, seen = "attention fp32 one short", []

    def run(self, config, context):
        seen.append(ways.way(question))
        if len(seen) == 1:
            raise RuntimeError("killed")
        return Number(value=1)

    monkeypatch.setattr(Compute, "run", run)
    recipe, out = Recipe.parse({"name": "x", "stages": {"number": {"kind": "compute"}}}, "the test"), tmp_path / "run"
    before = ways.in_force()
    with ways.using({question: "mixed"}), pytest.raises(RuntimeError):
        run_recipe(recipe, out)
    assert StageRecord.read(out / "number").state == "unfinished"
    with ways.using({question: "blocks"}):
        run_recipe(recipe, out)
        assert ways.way(question) == "blocks"
    assert seen == ["mixed", "mixed"] and ways.in_force() == before
    assert StageRecord.finished_in(out / "number").ways == before | {question: "mixed"}


def test_what_a_resumed_run_took_is_the_sum_of_its_calls(tmp_path):
    stage = {"kind": "compute", "ends": "stopped"}
    recipe, out = Recipe.parse({"name": "x", "stages": {"number": stage}}, "the test"), tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(recipe, out)
    first = StageRecord.read(out / "number")
    assert first.state == "unfinished" and first.seconds is not None and 0.3 <= first.seconds < 5
    # the next attempt is killed after 100 seconds, at the end of which it has written a part
    first.model_copy(update={"started": "2026-01-01T00:00:00+0000"}).write(out / "number")
    began = (out / "number" / "stage.json").stat().st_mtime
    (out / "number" / "part").touch()
    os.utime(out / "number" / "part", (began + 100, began + 100))
    (tmp_path / "mended").touch()
    run_recipe(recipe, out)
    last = StageRecord.finished_in(out / "number")
    assert last.started == "2026-01-01T00:00:00+0000" == read_json(out / "manifest.json")["created"]
    assert last.seconds == pytest.approx(100 + first.seconds, abs=5)
    run_recipe(recipe, out)
    assert StageRecord.finished_in(out / "number") == last


def test_what_an_unfinished_stage_is_to_give_is_missing_for_that_reason(tmp_path):
    stage = {"kind": "compute", "ends": "stopped"}
    with pytest.raises(Interrupted):
        run_recipe(Recipe.parse({"name": "x", "stages": {"number": stage}}, "the test"), tmp_path / "run")
    for place in ("run", "run/number"):
        with pytest.raises(UserError, match="does not hold a model yet: its stage 'number' has not finished"):
            Model.find(tmp_path / place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="'.*empty' does not hold a model[.]"):
        Model.find(tmp_path / "empty")
