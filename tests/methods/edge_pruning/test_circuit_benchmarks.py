"""The scripts that measure circuits: what they need is asked for before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmlab.data import Tokenizer
from lmlab.models import ModelConfig, Transformer, save_pretrained

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SCRIPT = BENCHMARKS / "edge_pruning.py"
_SHARED = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "tracr"
_CALLS = """
import json, runpy, sys
script, calls = sys.argv[1], json.loads(sys.argv[2])
for call in calls:
    sys.argv = [script, *call]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        assert not error.code, call
"""


@pytest.mark.parametrize(("part", "told"), [("small", "small needs --out DIR"), ("ioi", "ioi needs --model DIR")])
def test_a_part_that_needs_a_folder_asks_for_it_at_once(tmp_path, part, told):
    done = subprocess.run([sys.executable, SCRIPT, part], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and done.stdout == ""


def calls(script: str, *each: list[str]) -> str:
    """Call a script several times, in one process; what it printed."""
    given = [sys.executable, "-c", _CALLS, str(BENCHMARKS / script), json.dumps(each)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def small(tmp_path):
    """A random model with a tokenizer, and examples of both splits for it."""
    tokenizer = Tokenizer.train(["a Mary a John a Tom gave a ring to the book "] * 20, 300)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, d_ff=24)
    save_pretrained(Transformer(config).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    texts = {name: f"a {name} gave a ring to{{}} the{' book' * n}" for n, name in enumerate(("Mary", "John", "Tom"))}
    examples = [
        {"clean": text.format(end), "corrupted": text.replace("ring", "book").format(end), "split": split}
        | {"answer": " Mary", "distractor": " John"}
        for split, end in (("train", ""), ("test", " to"))
        for text in texts.values()
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(each) + "\n" for each in examples))
    return tmp_path


def test_curves_by_other_settings_are_measured_and_by_the_same_are_not(small):
    out = small / "curves.jsonl"
    given = ["--model", small / "model", "--data", small / "own.jsonl", "--out", out, "--method", "ranking"]
    base = [str(each) for each in (*given, "--examples", 3, "--steps", 1, "--fraction", 0.5)]
    others = (["--steps", "2"], ["--search-examples", "2"], ["--learning-rate", "0.01"], ["--fraction", "0.25"])
    calls("circuit_curves.py", base, base, *([*base, *other] for other in others), base)
    found = rows(out)
    assert len(found) == 1 + len(others)
    assert [each["settings"]["steps"] for each in found] == [1, 2, 1, 1, 1]
    assert [each["searched"] for each in found] == [3, 3, 2, 3, 3]
    assert [each["settings"]["learning_rate"] for each in found] == [0.2, 0.2, 0.2, 0.01, 0.2]
    # --fraction is given once more; the whole model stands last
    assert [[row["fraction"] for row in each["curve"]] for each in found] == [[0.5, 1.0]] * 4 + [[0.5, 0.25, 1.0]]
    for each in found:  # as lines of before settings were told are
        del each["settings"]
    out.write_text("".join(json.dumps(each) + "\n" for each in found))
    printed = calls("circuit_curves.py", base, [*base, "--report"])
    assert len(rows(out)) == len(found) + 1
    assert printed.count("a model that the lines do not name") == 3  # by examples and by fractions
    assert printed.count(f"own in {small / 'model'}") == 1


def test_effects_of_nodes_that_name_nothing_are_not_taken_for_those_asked_for(small):
    out = small / "nodes.jsonl"
    out.write_text(json.dumps({"writer": "m0", "effect": 1.0}) + "\n")
    given = ["--model", small / "model", "--data", small / "own.jsonl", "--out", out, "--examples", "2"]
    command = [sys.executable, BENCHMARKS / "circuit_nodes.py", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "holds effects of what it does not name" in done.stderr


@pytest.mark.skipif(not _SHARED.exists(), reason="the shared data are not there (LMLAB_SHARED)")
def test_programs_are_searched_again_with_other_settings(tmp_path):
    program = tmp_path / "programs" / "reverse"
    shutil.copytree(_SHARED / "reverse", program)
    about = json.loads((program / "config.json").read_text())
    (program / "config.json").write_text(json.dumps({**about, "n_edges": 1}))
    out = tmp_path / "recovery.jsonl"
    base = ["--programs", str(tmp_path / "programs"), "--out", str(out), "--ablation", "zero", "--examples", "8"]
    base += ["--steps", "1", "--method", "ranking", "--method", "random"]
    calls("circuit_recovery.py", base, base, [*base, "--steps", "2"])
    # nothing of a random ranking depends on the steps
    assert [(each["method"], each["settings"].get("steps")) for each in rows(out)] == [
        ("ranking", 1),
        ("random", None),
        ("ranking", 2),
    ]
    printed = calls("circuit_recovery.py", [*base, "--examples", "4"], [*base, "--report"])
    assert [each["settings"]["examples"] for each in rows(out)] == [8, 8, 8, 4, 4]
    assert printed.count("| ranking |") == 1 and "| ranking, 1 steps |" in printed and "| ranking, 2 steps |" in printed
