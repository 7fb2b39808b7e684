"""A model is named in one way everywhere: a run, a stage, a checkpoint, a Hugging Face directory, a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlab.runs import Recipe, run_recipe
from small_recipes import cut_after, small_recipe

FORMS = ("run", "stage", "checkpoint", "directory", "gguf")


@pytest.fixture(scope="module")
def places(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One trained model in every form."""
    from lmlab.models import convert

    run = tmp_path_factory.mktemp("places") / "run"
    recipe = cut_after(small_recipe(library), "model")
    for name in ("questions", "baselines", "heldout_tokens"):
        del recipe["stages"][name]
    del recipe["stages"]["model"]["heldout_tokens"]
    run_recipe(Recipe.parse(recipe, "the test"), run)
    file = run.parent / "model.gguf"
    convert(run / "model" / "model", file, gguf="fp32")
    (checkpoint, *_) = sorted((run / "model" / "checkpoints").glob("step-*"), reverse=True)
    return dict(zip(FORMS, (run, run / "model", checkpoint, run / "model" / "model", file), strict=True))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little corpus that is a collection for retrieval too."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"_id": f"d{n}", "id": f"d{n}", "title": "", "text": f"def f{n}(x): return x + {n}\n"} for n in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": "def f0"}) + "\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    pair = {"clean": [1, 2, 3], "corrupted": [4, 2, 3], "answer": 5, "distractor": 6}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 2)
    return folder


COMMANDS: dict[str, Callable[[Path, Path, Path], list[Any]]] = {
    "generate": lambda model, texts, out: ["generate", "--model", model, "def", "--max-new-tokens", 3],
    "eval": lambda model, texts, out: ["eval", "--model", model, "--documents", texts / "corpus.jsonl", "--out", out],
    "ladder size": lambda model, texts, out: ["ladder", "size", model],
    "circuits find": lambda model, texts, out: [
        "circuits", "find", "--model", model, "--data", texts / "pairs.jsonl", "--method", "random", "--num-edges", 3,
        "--force", "--out", out / "circuit.json",
    ],
    "quality score": lambda model, texts, out: [
        "quality", "score", "ppl", "--in", texts / "corpus.jsonl", "--model", model, "--out", out,
    ],
    "long rope": lambda model, texts, out: ["long", "rope", model, "--to", 512],
    "retrieval encode": lambda model, texts, out: [
        "retrieval", "encode", "--data", texts, "--encoder", model, "--pooling", "mean", "--cache", out,
    ],
    "poison craft": lambda model, texts, out: [
        "poison", "craft", "--data", texts, "--split", "test", "--encoder", model, "--pooling", "mean", "--k", 1,
        "--optimizer", "none", "--length", 8, "--precision", "fp32", "--cache", out / "cache", "--out", out,
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_model_in_every_form(
    command: str, places: dict[str, Path], texts: Path, lmlab: Callable[..., Any], tmp_path: Path
) -> None:
    for form in FORMS:
        done = lmlab(*COMMANDS[command](places[form], texts, tmp_path / form))
        assert done.code == 0, (form, done.out + done.err)
