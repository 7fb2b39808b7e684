"""Every public function that takes a path takes a string too."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import is_dataclass

import pytest

import lmlab
from lmlab.data import Document, TokenizedCorpus, Tokenizer, read_documents, tokenize_documents
from lmlab.evals import read_questions, read_rows
from lmlab.models import ModelConfig, Transformer, convert, from_pretrained, read_config, save_pretrained
from lmlab.runs import Artifact, Model, Recipe, Stage, run_recipe, stored_stages
from lmlab.train import read_metrics

_PACKAGES = sorted(each.name for each in pkgutil.walk_packages(lmlab.__path__, "lmlab.") if each.ispkg)


def _public_functions(package: str) -> Iterator[tuple[str, object]]:
    """The functions and methods that a package exports. What a stage is given, lmlab itself calls."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if inspect.isfunction(found):
            yield name, found
        if inspect.isclass(found) and not issubclass(found, (Artifact, Stage)):
            for key, member in dict(vars(found)).items():  # a look at a signature may build its validators
                function = getattr(member, "__func__", member)
                written = key != "__init__" or not is_dataclass(found)  # a dataclass is what functions return
                if inspect.isfunction(function) and (key == "__init__" or not key.startswith("_")) and written:
                    yield f"{name}.{key}", function


@pytest.mark.parametrize("package", _PACKAGES)
def test_a_path_may_be_a_string_in_every_signature(package):
    refusing = [
        f"{name}({each.name}: {each.annotation})"
        for name, function in _public_functions(package)
        for each in inspect.signature(function).parameters.values()
        if "Path" in str(each.annotation) and "str" not in str(each.annotation)
    ]
    assert not refusing


@pytest.fixture
def directory(tmp_path):
    tokenizer = Tokenizer.train(["def f(x):\n    return x\n"], 270)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=32)
    save_pretrained(Transformer(shape).initialize(0), str(tmp_path / "model"))
    tokenizer.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_models_and_tokenizers_by_strings(directory, tmp_path):
    assert read_config(directory) == from_pretrained(directory).config == Model.find(directory).config
    assert Tokenizer.load(directory).decode(Tokenizer.load(directory).encode("def", "as_text")) == "def"
    copy = str(tmp_path / "copy")
    assert convert(directory, copy).parameters == sum(each.numel() for each in from_pretrained(copy).parameters())


def test_documents_and_shards_by_strings(directory, tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps(Document("a", "def f(x)").row()) + "\n", "utf-8")
    assert [each.text for each in read_documents(str(file))] == ["def f(x)"]
    tokenize_documents(str(file), Tokenizer.load(directory), str(tmp_path / "tokens"))
    assert TokenizedCorpus(str(tmp_path / "tokens")).num_documents == 1


def test_rows_questions_and_metrics_by_strings(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "bits": 1}\n')
    assert [row["id"] for row in read_rows([str(tmp_path / "rows.jsonl")])] == ["a"]
    (tmp_path / "q.jsonl").write_text('{"id": "a", "context": "x", "options": ["y", "z"], "gold": 0}\n')
    assert read_questions(str(tmp_path / "q.jsonl"))[0].gold == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert read_metrics(str(tmp_path / "metrics.jsonl"))[0]["loss"] == 2.0


def test_a_recipe_by_strings(recipe, tmp_path):
    found = Recipe.load(str(recipe(until="tokenizer")))
    run_recipe(found, str(tmp_path / "run"))
    assert [each.entry.name for each in stored_stages(Recipe.stored(str(tmp_path / "run")), str(tmp_path / "run"))] == [
        "documents",
        "tokenizer",
    ]
