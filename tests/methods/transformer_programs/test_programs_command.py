"""`lmlab programs` from training to a page, each command as the documentation has it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import counting_program
from lmlab.files import read_json, read_mapping
from lmlab.methods.transformer_programs.program.files import save_program
from lmlab.methods.transformer_programs.program.tables import Classifier

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned something, by the function behind the command."""
    from lmlab.commandline.options import run_stages

    out = tmp_path_factory.mktemp("programs") / "run"
    stage = {
        "kind": "train_program", "task": "hist", "size": 2000, "max_length": 6, "num_layers": 1, "cat_heads": 0,
        "num_heads": 2, "cat_mlps": 0, "d_mlp": 16, "seeds": 2, "epochs": 4, "batch_size": 128, "evaluations": 2,
    }  # fmt: skip
    run_stages("hist", {"program": stage}, out, None, False, False)
    return out


def test_export_and_everything_after_it(lmlab: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    stage = read_mapping(trained / "results.json")["program"]
    assert len(stage["seeds"]) == 2 and stage["program"]["faithful"]
    assert (trained / "program" / "program" / "program.py").exists() and (
        trained / "program" / "metrics.jsonl"
    ).exists()
    program = tmp_path / "program"
    done = lmlab("programs", "export", trained, "--minimize", "--max-accuracy-drop", "0.05", "--out", program)
    assert done.code == 0, done.err
    manifest = read_mapping(program / "manifest.json")
    assert manifest["faithful"] and manifest["verification"]["exhaustive"] == 5
    assert manifest["minimized"]["after"]["lines"] <= manifest["minimized"]["before"]["lines"]
    ran = lmlab("programs", "run", program, "3 1 3")
    assert ran.code == 0 and re.search(r"<s> \d \d \d", ran.out + ran.err)
    traced = lmlab("programs", "run", program, "3 1 3", "--trace")
    assert traced.code == 0 and "ANSWER" in traced.out
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": ["1", "2"]}) + "\n")
    assert lmlab("programs", "run", program, "--input", tmp_path / "in.jsonl").code == 0
    same = lmlab(
        "programs", "verify", trained / "program" / "program", "--run", trained, "--task", "hist", "--exhaustive", "3"
    )
    assert same.code == 0 and "Equal on 258 sequences" in same.out + same.err
    # on sequences as short as those that it was trained on, which its file says
    assert lmlab("programs", "evaluate", trained / "program" / "program", "--examples", "50").code == 0
    (tmp_path / "data.jsonl").write_text(json.dumps({"tokens": ["1", "2", "1"], "labels": ["2", "1", "2"]}) + "\n")
    page = tmp_path / "page.html"
    assert lmlab("programs", "explain", program, "--data", tmp_path / "data.jsonl", "--out", page).code == 0
    assert "Step through an input" in page.read_text()


def test_mistakes_are_told(lmlab: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    program = trained / "program" / "program"
    for arguments, message in (
        (("run", program, "3 9"), "place 2: the token '9' is not in the program's vocabulary"),
        (("run", program), "Give either tokens or --input"),
        (("run", program, "3", "--rule", "x"), "--rule x"),
        (("evaluate", program, "--task", "sort"), "has 8 places, but the program knows 6"),
        (("evaluate", program, "--task", "reverse", "--data", "own.jsonl"), "give either task or data"),
        (("verify", program, "--oracle", "json:dumps", "--exhaustive", "1"), "It must give a label for each"),
        (("verify", program), "Give one of --against, --run and --oracle"),
        (("verify", program, "--oracle", "no_module:x", "--exhaustive", "2"), "--oracle no_module:x"),
        (("export", tmp_path), "does not hold the networks of a trained program"),
        (("export", trained, "--seed", "9"), "has no seed 9"),
        (("import", tmp_path / "none.py"), "No such file"),
        (("train", "--task", "hits"), "Unknown task 'hits'. Did you mean 'hist'"),
        (("train",), "give either task or data"),
        (("train", "--task", "hist", "--d-var", "4", "--size", "200", "--out", tmp_path / "r"), "d_var is 4"),
    ):
        done = lmlab("programs", *arguments)
        assert done.code == 2, (arguments, done.err)
        assert message in " ".join((done.out + done.err).split()), (arguments, done.err)


def test_the_exported_python_says_a_mistake_in_a_sentence(trained: Path) -> None:
    text = trained / "program" / "program" / "program.py"
    for arguments, code, said in (
        ([], 2, 'usage: python program.py "TOKEN TOKEN ..."'),
        (["<s> 3 no"], 2, "error: unknown token 'no' at place 2"),
        ([""], 2, "error: the sequence is empty"),
        (["<s> 3 1"], 0, ""),
    ):
        done = subprocess.run([sys.executable, text, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.strip()) == (code, said)


def test_a_program_that_differs_from_its_rule_ends_with_1(lmlab: Callable[..., Any], trained: Path) -> None:
    done = lmlab("programs", "verify", trained / "program" / "program", "--oracle", "reverse", "--exhaustive", "2")
    assert done.code == 1 and "first on '<s>" in done.out + done.err


RULES = """
def counts(tokens):
    return [None, *(tokens.count(each) for each in tokens[1:])]

def broken(tokens):
    return {}[tokens[0]]

def nothing(tokens):
    return [None] * len(tokens)
"""


def test_a_rule_of_ones_own_stands_in_the_present_folder(
    lmlab: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    program = trained / "program" / "program"
    asked = ("programs", "verify", program, "--exhaustive", "3", "--oracle")
    ours, theirs = (lmlab(*asked, rule) for rule in ("own_rules:counts", "hist"))
    # numbers are labels, as in files
    assert (ours.code, ours.out, ours.err) == (theirs.code, theirs.out, theirs.err)
    failed = lmlab(*asked, "own_rules:broken")
    assert failed.code == 2 and "The oracle fails on the 2 tokens '<s> 0': KeyError" in " ".join(failed.err.split())
    nothing = lmlab(*asked, "own_rules:nothing")
    assert nothing.code == 2 and "Nothing was compared" in nothing.err
    save_program(replace(counting_program(), vocabulary=None), tmp_path / "wordless")
    wordless = lmlab("programs", "verify", tmp_path / "wordless", "--exhaustive", "2", "--oracle", "hist")
    assert wordless.code == 2 and "does not say its vocabulary" in " ".join(wordless.err.split())
    (tmp_path / "half.py").write_text("def (")
    failed = lmlab(*asked, "half:rule")
    assert failed.code == 2 and "SyntaxError" in failed.err


def test_an_edited_program_is_trained_further(lmlab: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    """Its classifier answers the contrary, until training has mended it."""
    edited = tmp_path / "edited"
    assert lmlab("programs", "export", trained, "--out", edited).code == 0
    rows = Classifier.read(edited / "weights.csv")
    wrong = {
        name: {value: tuple(-x for x in row) for value, row in each.items()} for name, each in rows.weights.items()
    }
    Classifier(rows.labels, wrong).write(edited / "weights.csv")
    sizes = ("--task", "hist", "--size", "2000", "--max-length", "6")
    before = lmlab("programs", "evaluate", edited, "--examples", "200")
    out = tmp_path / "further"
    done = lmlab(
        "programs", "train", "--start", edited, *sizes, "--seeds", "2", "--epochs", "1", "--batch-size", "128",
        "--tau-start", "0.5", "--tau-end", "0.1", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    after = lmlab("programs", "evaluate", out, "--examples", "200")
    first = lmlab("programs", "evaluate", trained, "--examples", "200")
    told = [float(re.findall(r"accuracy: ([\d.]+) %", each.out + each.err)[0]) for each in (before, after, first)]
    assert told[0] < told[1] - 10 and told[1] > told[2] - 2, told
    for arguments, message in (
        (("--task", "hist", "--vocab-size", "9", "--max-length", "6"), "has no token '6'"),
        (("--task", "hist", "--max-length", "7"), "A sequence has 7 places, but the program knows 6"),
        (("--task", "dyck1"), "places see what is to their left alone"),
    ):
        failed = lmlab("programs", "train", "--start", edited, *arguments, "--size", "500", "--out", tmp_path / "wrong")
        assert failed.code == 2 and message in " ".join(failed.err.split()), failed.err


def test_halving_keeps_the_better_shapes(tmp_path: Path) -> None:
    from lmlab.methods.transformer_programs.config import HalvingConfig
    from lmlab.methods.transformer_programs.training.sweep import sweep

    stage = {
        "kind": "train_program", "task": "hist", "size": 300, "max_length": 5, "num_layers": 1, "cat_heads": 0,
        "cat_mlps": 0, "d_mlp": 4, "seeds": 1, "epochs": 2, "batch_size": 64, "evaluations": 1,
    }  # fmt: skip
    recipe = {"name": "s", "stages": {"hist": stage}}
    rows = sweep(recipe, {"stages.hist.num_heads": [1, 2]}, tmp_path, HalvingConfig(rungs=2, factor=2), workers=1)
    assert [row.rung for row in rows] == [1, 0, 0] and rows[0].epochs == 2 and rows[1].epochs == 1
    assert rows[0].name == rows[1].name and rows[1].valid_accuracy >= rows[2].valid_accuracy
    assert [each["name"] for each in read_json(tmp_path / "halving.json")] == [row.name for row in rows]


def test_every_documented_command_exists(lmlab: Callable[..., Any]) -> None:
    page = (_ROOT / "docs" / "methods" / "transformer_programs.md").read_text()
    verbs = set(re.findall(r"lmlab programs (\w+)", page))
    assert verbs >= {"train", "export", "verify", "run", "explain", "sweep"}
    for verb in verbs:
        assert lmlab("programs", verb, "--help").code == 0, verb


def test_the_tutorial_of_a_tagger_that_you_can_read(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    """The commands of the page, on rows of the same kinds and with less of everything."""
    page = (_ROOT / "docs" / "methods" / "transformer_programs.md").read_text()
    part = page.split("## A tagger that you can read")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", part, re.DOTALL)
    commands = [" ".join(line.split()) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    tags = ["O", "O", "O", "B-city", "O", "O"]
    intents = [("play", "Music"), ("rain", "Weather"), ("book", "Table")]
    rows = [
        {"tokens": f"please {verb} for {place} Now !".split(), "tags": tags, "intent": label}
        for verb, label in intents
        for place in ("Oslo", "Rome", "Paris", "Bonn")
    ]
    for name in ("train", "valid", "test", "some"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"--epochs": "60", "--batch-size": "4", "--d-var": "8", "--embedding-vars": "2"}
    ran = 0
    for command in commands:
        words = command.removeprefix("lmlab ").split()
        words = [
            small.get(words[place - 1], str(tmp_path / word) if re.search(r"\.(jsonl|html)$|^runs/", word) else word)
            for place, word in enumerate(words)
        ]
        if "--init-embeddings" in words:  # a model, which a test does not have
            place = words.index("--init-embeddings")
            del words[place : place + 2]
        done = lmlab(*words)
        assert done.code == 0, (command, done.err)
        ran += 1
    assert ran >= 4
    told = lmlab("programs", "run", tmp_path / "runs" / "intents", "please rain for Bonn now !")
    assert "Weather" in told.out + told.err
    assert "B-city" in (tmp_path / "slots.html").read_text()
