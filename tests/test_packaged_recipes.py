"""Recipes that come with lmlab are run by name from anywhere, and written out to be changed."""

from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.files.packaged import packaged_recipes, recipe_file
from lmlab.runs import Recipe

ROOT = Path(__file__).parents[1]


def test_all_recipes_are_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(packaged_recipes()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    for place in ("demo", "demo.yaml", "recipes/demo.yaml"):
        assert recipe_file(place).read_text() == (ROOT / "recipes" / "demo.yaml").read_text()
    assert Recipe.load("demo-quality").name == "demo"


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("name: mine\nstages: {documents: {kind: collect, sources: [{kind: python_library}]}}\n")
    assert Recipe.load("demo").name == "mine"


def test_a_folder_of_its_name_does_not_hide_a_recipe(tmp_path, monkeypatch):
    """As the run of `lmlab demo --out demo`, which the same command goes on with."""
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert recipe_file("demo") == packaged_recipes()["demo"]
    Path("mine").mkdir()
    with pytest.raises(UserError, match="'mine' is a directory"):
        Recipe.load("mine")


@pytest.mark.parametrize("place", ["demos", "recipes/dem.yaml", "elsewhere/demo.yaml", "demo.json"])
def test_what_is_neither_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No such file") as caught:
        recipe_file(place)
    assert ("Did you mean 'demo'" in str(caught.value)) == (place in ("demos", "recipes/dem.yaml"))


def test_a_copy_of_one_that_extends_another_runs(tmp_path, monkeypatch, lmlab):
    monkeypatch.chdir(tmp_path)
    lmlab("recipes", "demo-quality", "--out", "mine.yaml")
    assert "extends: demo.yaml" in Path("mine.yaml").read_text()
    assert "judgments" in {stage.name for stage in Recipe.load("mine.yaml").stages}
    again = lmlab("recipes", "demo", "--out", "mine.yaml")
    assert again.code == 2 and "is there already" in again.err


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "prolong-paper", "tutor-paper", "compress-paper"])
def test_a_plan_is_shown_before_what_it_reads_is_there(name, tmp_path, monkeypatch, lmlab):
    """A plan at full scale is asked for before terabytes are fetched; what is missing is told, once a place."""
    monkeypatch.chdir(tmp_path)
    shown = lmlab("run", name, "--dry-run")
    recipe = Recipe.load(name, planning=True)
    assert shown.code == 2 and "Plan of" in shown.err and recipe.absent
    assert all(stage.name in shown.err for stage in recipe.stages) and not list(tmp_path.iterdir())
    for error in recipe.absent:
        assert shown.err.count(error.message) == 1
    with pytest.raises(UserError, match="is neither an earlier stage nor an existing path"):
        Recipe.load(name)
    if name == "olmoe-1b-7b":  # whose shape the recipe says
        assert "parameters" in shown.err and "memory" in shown.err


@pytest.mark.parametrize("name", ["ladder-laptop", "olmoe-ablations"])
def test_what_another_command_reads_is_told(name, lmlab):
    shown = lmlab("run", name, "--dry-run")
    assert shown.code == 2 and "is no recipe: it has no stages" in shown.err
    assert f"lmlab {name.split('-')[0]}" in "".join((ROOT / "recipes" / f"{name}.yaml").open().readlines()[:3])
