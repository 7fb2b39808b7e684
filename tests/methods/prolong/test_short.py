"""What an extension costs in short tasks: kept, lost, or too few questions; on pages, as a gate, and in a recipe."""

from __future__ import annotations

import json

import pytest
import yaml

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long.texts import passages
from lmlab.evals.tasks import olmes
from lmlab.files import read_json
from lmlab.methods.prolong.short import require_kept, short_cost, verdict_of
from lmlab.models import ModelConfig, Transformer, from_pretrained, save_pretrained

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")
QUESTIONS = 60


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    tokenizer = Tokenizer.train((passage.text for passage in passages()[:60]), 600)
    config = ModelConfig(vocab_size=600, num_layers=1, d_model=32, num_heads=2, max_seq_len=512)
    place = tmp_path_factory.mktemp("tiny")
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    save_pretrained(Transformer(config).initialize(0), place, tokens=ends)
    tokenizer.save(place, 512)
    return place


@pytest.fixture
def task(tmp_path):
    rows = [
        {"id": f"q{n}", "context": f"{n} and", "options": [" one", " two", " three"], "gold": n % 3}
        for n in range(QUESTIONS)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "kind": "ranked", "requests": "q.jsonl"}))
    return tmp_path / "mine.yaml"


def _answer(place, right):
    """Let the first `right` questions of a measurement be answered rightly, and no other."""
    path = place / "short-mine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        best = row["gold"] if number < right else (row["gold"] + 1) % 3
        row["log_probs"] = [-1.0 if option == best else -9.0 for option in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_short_tasks_are_kept_by_share_or_points_and_lost_beyond_chance():
    assert verdict_of(0.6, 0.6 * 0.985, -0.001) == "kept"
    assert verdict_of(0.2, 0.1921, -0.001) == "kept"  # 96 % of it, but 0.8 points
    assert verdict_of(0.6, 0.57, -0.001) == "lost"
    assert verdict_of(0.6, 0.57, 0.001) == "unclear"
    assert verdict_of(0.3, 0.4, 0.2) == "kept"


def test_a_longer_window_is_gated_by_its_short_tasks(directory, task, tmp_path, lmlab):
    how = ("--task", "niah", "--length", "256", "--contexts", "1", "--mode", "forced", "--short-task", task)
    base, longer = tmp_path / "base", tmp_path / "longer"
    refused = lmlab("long", "eval", directory, *how, "--out", longer, "--gate")
    assert refused.code == 2 and "--gate compares short tasks" in refused.err and not longer.exists()
    assert lmlab("long", "eval", directory, *how, "--out", base).code == 0
    _answer(base, 40)
    run = ("long", "eval", directory, *how, "--out", longer, "--against", base)
    assert lmlab(*run).code == 0
    _answer(longer, 41)
    kept = lmlab(*run, "--gate")
    assert kept.code == 0 and "kept its short tasks" in " ".join(kept.out.split()), kept.err
    endpoint = lmlab("long", "eval", "openai:x", "--instances", base / "instances.jsonl", *how[-2:], "--out", longer)
    assert endpoint.code == 2 and "Short tasks are not measured of an endpoint" in endpoint.err
    cost = short_cost(base, longer)
    assert (cost.before, cost.after, cost.questions) == (40 / QUESTIONS, 41 / QUESTIONS, QUESTIONS)
    assert cost.low <= cost.after - cost.before <= cost.high
    _answer(longer, 38)
    unclear = lmlab(*run, "--gate")
    assert unclear.code == 0 and "which the questions are too few to tell" in " ".join(unclear.out.split())
    _answer(longer, 15)
    lost = lmlab(*run, "--gate")
    assert lost.code == 1 and "lost short tasks" in lost.err and "-41.7 points" in lost.err, lost.err
    assert lmlab(*run).code == 0  # told, and no error
    page = (longer / "report.html").read_text()
    assert "lost short tasks against" in page and "with 60 questions" in page


def test_runs_without_a_short_task_in_common_are_shown_and_not_gated(directory, task, tmp_path, lmlab):
    other = task.with_name("other.yaml")
    other.write_text(task.read_text().replace("name: mine", "name: other"))
    how = ("--task", "niah", "--length", "256", "--contexts", "1", "--mode", "forced")
    base, longer = tmp_path / "base", tmp_path / "longer"
    assert lmlab("long", "eval", directory, *how, "--short-task", task, "--out", base).code == 0
    run = ("long", "eval", directory, *how, "--short-task", other, "--against", base, "--out", longer)
    refused = lmlab(*run, "--gate")
    assert refused.code == 2 and "both models (other)" in refused.err and not longer.exists()
    done = lmlab(*run)
    assert done.code == 0, done.err
    page = (longer / "report.html").read_text()
    assert "short tasks against" not in page and ">other<" in page
    assert short_cost(base, longer) is None
    for damaged in (3, {"kind": "ranked"}, {"kind": "none"}):
        (longer / "short.json").write_text(json.dumps({"mine": damaged}))
        refused = lmlab("long", "report", base, longer, "--out", tmp_path / "page.html")
        assert refused.code == 2 and str(longer) in refused.err, refused.err
    with pytest.raises(UserError, match="have no short task in common"):
        require_kept(None, "b", "a")


def test_a_recipe_compares_an_extended_model_with_its_base(directory, task, tmp_path, lmlab):
    measured = {"kind": "long_evaluate", "model": str(directory), "base": str(directory), "mode": "forced"}
    measured |= {"tasks": ["niah"], "lengths": [256], "contexts": 1, "short_tasks": [str(task)], "gate": True}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "r", "stages": {"measured": measured, "report": {"kind": "report"}}}))
    done = lmlab("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "kept its short tasks" in " ".join((done.out + done.err).split())
    found = read_json(tmp_path / "run" / "measured" / "base" / "short.json")
    assert found["mine"]["questions"] == QUESTIONS
    assert "kept its short tasks against" in (tmp_path / "run" / "report.html").read_text()
    for change, says in (({"short_tasks": []}, "base is compared in short_tasks"), ({"base": None}, "gate needs base")):
        recipe.write_text(yaml.safe_dump({"name": "r", "stages": {"measured": measured | change}}))
        refused = lmlab("run", recipe, "--dry-run")
        assert refused.code == 2 and says in refused.err


def test_a_rule_for_positions_is_written_as_a_model_without_training(directory, tmp_path, lmlab):
    told = lmlab("long", "rope", directory, "--to", "2048")
    assert told.code == 0 and "auto-ntk" in told.out
    for name, options, theta, scaling in (
        ("auto", (), 80000, None),
        ("number", ("--rope-theta", "5e5"), 500000, None),
        ("yarn", ("--yarn",), 10000, "yarn"),
    ):
        done = lmlab("long", "rope", directory, "--to", "2048", *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
        config = from_pretrained(tmp_path / name).config
        assert (config.max_seq_len, config.rope_theta) == (2048, theta)
        assert (config.rope_scaling.type if config.rope_scaling else None) == scaling
    again = lmlab("long", "rope", directory, "--to", "2048", "--out", tmp_path / "auto")
    assert again.code == 2 and "is there already" in again.err
    for options in ((), ("--yarn",)):
        shorter = lmlab("long", "rope", directory, "--to", "256", *options, "--out", tmp_path / "x")
        assert shorter.code == 2 and "is no longer than the model's 512" in shorter.err
    for options, says in (
        (("--rope-theta", "auto"), "Name its directory with --out"),
        (("--rope-theta", "most", "--out", tmp_path / "x"), "the options"),
        (("--rope-theta", "auto", "--yarn", "--out", tmp_path / "x"), "rope_scaling extends the window by itself"),
    ):
        refused = lmlab("long", "rope", directory, "--to", "2048", *options)
        assert refused.code == 2 and says in refused.err, refused.err
    scaled = lmlab("long", "rope", tmp_path / "yarn", "--to", "4096", "--out", tmp_path / "x")
    assert scaled.code == 2 and "scaled already" in scaled.err and not (tmp_path / "x").exists()
