"""A model is named in one way everywhere: a run, a stage, a checkpoint, a Hugging Face directory, a GGUF file."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from forked import Forkserver
from lmlab.runs import Recipe, run_recipe
from small_recipes import cut_after, small_recipe

FORMS = ("run", "stage", "checkpoint", "directory", "gguf")


def _trained(library: Path, folder: Path, forms: tuple[str, ...] = FORMS, **model: Any) -> dict[str, Path]:
    """A trained model with a chat template, in every form."""
    from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer
    from lmlab.models import convert

    run = folder / "run"
    recipe = cut_after(small_recipe(library), "model")
    for name in ("questions", "baselines", "heldout_tokens"):
        del recipe["stages"][name]
    del recipe["stages"]["model"]["heldout_tokens"]
    recipe["stages"]["model"]["model"] |= model
    run_recipe(Recipe.parse(cut_after(recipe, "tokenizer"), "the test"), run)
    tokenizer = run / "tokenizer"
    chat_tokenizer(Tokenizer.load(tokenizer), ChatConfig(template="tulu")).save(tokenizer)
    run_recipe(Recipe.parse(recipe, "the test"), run)
    file = folder / "model.gguf"
    if "gguf" in forms:
        convert(run / "model" / "model", file, gguf="fp32")
    (checkpoint, *_) = sorted((run / "model" / "checkpoints").glob("step-*"), reverse=True)
    every = dict(zip(FORMS, (run, run / "model", checkpoint, run / "model" / "model", file), strict=True))
    return {form: every[form] for form in forms}


@pytest.fixture(scope="module")
def places(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model."""
    return _trained(library, tmp_path_factory.mktemp("places"), max_seq_len=1024)


@pytest.fixture(scope="module")
def mixtures(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A mixture of experts, which is not written as GGUF."""
    experts = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 32}
    return _trained(library, tmp_path_factory.mktemp("mixtures"), FORMS[:-1], ffn="moe", moe=experts)


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
    lookup = {"context": '{"a": "1", "b": "2"}', "question": "a", "answer": "1", "num_kvs": 2, "depth": 0.5}
    (folder / "kv.jsonl").write_text(json.dumps(lookup | {"demos": [["x", "8"]]}) + "\n")
    helmet = {"datasets": "json_kv", "input_max_length": "512", "generation_max_length": "4", "test_files": "kv.jsonl"}
    (folder / "helmet.yaml").write_text(
        yaml.safe_dump(helmet | {"demo_files": "", "use_chat_template": False, "shots": 1})
    )
    return folder


SUITE = ["--task", "json_kv", "--length", 512, "--contexts", 1, "--questions", 1]
COMMANDS: dict[str, Callable[[Path, Path, Path], list[Any]]] = {
    "generate": lambda model, texts, out: ["generate", "--model", model, "def", "--max-new-tokens", 3],
    "chat": lambda model, texts, out: ["chat", model, "--max-new-tokens", 3],
    "convert": lambda model, texts, out: ["convert", model, out],
    "eval": lambda model, texts, out: ["eval", "--model", model, "--documents", texts / "corpus.jsonl", "--out", out],
    "ladder size": lambda model, texts, out: ["ladder", "size", model],
    "ladder flops": lambda model, texts, out: ["ladder", "flops", model, "--length", "1xC"],
    "circuits find": lambda model, texts, out: [
        "circuits", "find", "--model", model, "--data", texts / "pairs.jsonl", "--method", "random", "--num-edges", 3,
        "--force", "--out", out / "circuit.json",
    ],
    "olmoe trace": lambda model, texts, out: [
        "olmoe", "trace", model, texts / "corpus.jsonl", "--length", 16, "--out", out / "trace.npz",
    ],
    "quality score": lambda model, texts, out: [
        "quality", "score", "ppl", "--in", texts / "corpus.jsonl", "--model", model, "--out", out,
    ],
    "long build": lambda model, texts, out: ["long", "build", model, *SUITE, "--out", out / "suite.jsonl"],
    "long eval": lambda model, texts, out: ["long", "eval", model, *SUITE, "--mode", "forced", "--out", out],
    "long helmet": lambda model, texts, out: [
        "long", "helmet", model, "--data", texts, "--config", texts / "helmet.yaml", "--out", out,
    ],
    "long ppl": lambda model, texts, out: [
        "long", "ppl", model, "--length", 128, "--context", 32, "--texts", 1, "--keys", out / "keys.json",
    ],
    "long rope": lambda model, texts, out: ["long", "rope", model, "--to", 2048],
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
    command: str,
    request: pytest.FixtureRequest,
    texts: Path,
    lmlab: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = request.getfixturevalue("mixtures" if command.startswith("olmoe") else "places")
    for form, model in places.items():
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        done = lmlab(*COMMANDS[command](model, texts, tmp_path / form))
        assert done.code == 0, (form, done.out + done.err)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_served(form: str, places: dict[str, Path], forkserver: Forkserver) -> None:
    (process,) = forkserver.start("serve", places[form], "--port", 0)
    try:
        until = time.monotonic() + 60
        while " at http://" not in process.read_error() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        address = process.read_error().partition(" at ")[2].split(" ")[0]
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "model": places[form].name}
        answer = httpx.post(f"{address}/chat/completions", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait() == 0, process.read_error()
