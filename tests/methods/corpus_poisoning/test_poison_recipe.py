"""The stage `poison` and its recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmlab.config import validate
from lmlab.methods.corpus_poisoning.config import PoisonConfig
from lmlab.runs import Recipe, run_recipe

ROOT = Path(__file__).parents[3]


def test_a_recipe_attacks_defends_and_reports(place, small, tmp_path):
    attack = {"k": 2, "length": 10, "evaluations": 100, "candidates": 10}
    stage = {
        "kind": "poison",
        "encoder": str(place),
        "data": str(small),
        "sentinels": str(small),
        "attacks": {"stuffing": {**attack, "optimizer": "none"}, "multiflip": attack},
        "rate": 0.05,
        "precision": "fp32",
        "k": [30, 50, 1000],
    }
    recipe = Recipe.parse({"name": "poison", "seed": 1, "stages": {"small": stage}}, "the test")
    run_recipe(recipe, tmp_path / "run", False)
    folder = tmp_path / "run" / "small"
    page = (folder / "report.html").read_text()
    assert "Share of held-out queries" in page and (folder / "attack-multiflip" / "removal.txt").exists()
    told = json.loads((folder / "report.json").read_text())["defenses"]
    assert {tuple(row["asr"]) for row in told} == {("50",)}  # no depth of 10 or 20 was asked for
    before = (folder / "report.json").stat().st_mtime_ns
    run_recipe(recipe, tmp_path / "run", False)
    assert (folder / "report.json").stat().st_mtime_ns == before  # nothing has changed: nothing runs again


@pytest.mark.parametrize("name", ["poison-laptop", "poison-paper"])
def test_the_recipes_are_valid(name):
    from lmlab.files import read_yaml

    for stage in read_yaml(ROOT / "recipes" / f"{name}.yaml")["stages"].values():
        kind = stage.pop("kind")
        assert kind == "poison" and validate(PoisonConfig, stage, name).attacks
