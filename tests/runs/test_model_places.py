"""A model is named in one way everywhere: a run, a stage, a checkpoint, a Hugging Face directory, a GGUF file."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import typer
import yaml
from typer.testing import CliRunner

from every_command import commands, flag_of
from forked import Forkserver
from lmlab import cli
from lmlab.commandline.model_place import takes_model
from lmlab.models import ModelConfig, Transformer, save_pretrained
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
    asked = [{"_id": f"q{n}", "text": f"def f{n}"} for n in range(4)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "qrels").mkdir()
    for split, first in (("train", 0), ("test", 2)):
        found = "".join(f"q{n}\td{n}\t1\n" for n in (first, first + 1))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{found}")
    pair = {"clean": [1, 2, 3], "corrupted": [4, 2, 3], "answer": 5, "distractor": 6}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 2)
    lookup = {"context": '{"a": "1", "b": "2"}', "question": "a", "answer": "1", "num_kvs": 2, "depth": 0.5}
    (folder / "kv.jsonl").write_text(json.dumps(lookup | {"demos": [["x", "8"]]}) + "\n")
    helmet = {"datasets": "json_kv", "input_max_length": "512", "generation_max_length": "4", "test_files": "kv.jsonl"}
    (folder / "helmet.yaml").write_text(
        yaml.safe_dump(helmet | {"demo_files": "", "use_chat_template": False, "shots": 1})
    )
    return folder


@pytest.fixture(scope="module")
def made(places: dict[str, Path], texts: Path) -> Path:
    """What commands read beside a model: a circuit, a compressor, passages and a gate, questions, an instance."""
    from lmlab.methods.autocompressor import AutoCompressor
    from lmlab.methods.swebench.instances.instance import Instance
    from lmlab.methods.swebench.instances.load import write_instances

    plain = places["directory"]
    _call("circuits", "find", *_circuit(plain, texts), "--out", texts / "circuit.json")
    _call("circuits", "convert", texts / "circuit.json", "--to", "edge-list", "--out", texts / "edges.json")
    AutoCompressor.from_base(plain, summary_length=2).save(texts / "compressor", companions=plain)
    _call(
        "compress",
        "encode",
        texts / "compressor",
        "--in",
        texts / "corpus.jsonl",
        "--independent",
        "--out",
        texts / "store",
    )
    learned = ModelConfig(vocab_size=9, num_layers=1, d_model=8, num_heads=1, max_seq_len=32, positions="learned")
    save_pretrained(Transformer(learned).initialize(0), texts / "learned" / "model")
    (texts / "encoder").symlink_to(plain)
    _call(*_poison("craft", plain, texts), *ATTACK, "--out", texts / "attack")
    _call("poison", "export", texts / "attack", "--encoder", plain, "--name", "a", "--out", texts / "reference")
    _call(*_poison("detect fit", plain, texts), *DETECTOR, "--rate", "0.5", "--out", texts / "gate")
    answer = {"id": "a", "question": "What?", "answer": "def f0(x)", "key_points": ["it is f0", "x"]}
    rows = {
        "answers": answer,
        "asked": {"prompt": "def"},
        "tutoring": answer | {"chapter": "f0 adds.", "closed_book": True},
        "words": {"tokens": ["def", "x"], "labels": ["a", "b"]},
    }
    for name, row in rows.items():
        (texts / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * (12 if name == "words" else 1))
    (texts / "one.txt").write_text("def f0(x): return x\n" * 9)
    (texts / "long.jsonl").write_text(
        "".join(json.dumps({"text": f"def f{n}(x): return x + {n}\n" * 20}) + "\n" for n in range(4))
    )
    (texts / "chapters").mkdir()
    (texts / "chapters" / "f0.md").write_text("# f0\n\n" + "The function f0 adds a number to x. " * 30)
    judged = [{"texts": [f"def f{n}(x)", f"{n}"], "quality_average": [[-100, 0.9], [0.1, -100]]} for n in range(40)]
    (texts / "judgments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    targeted = {"id": "q0", "question": "def f0", "correct answer": "x", "incorrect answer": "y", "adv_texts": ["y"]}
    (texts / "targeted.json").write_text(json.dumps({"q0": targeted}))
    commit = _repository(texts / "repositories" / "o__r")
    patch = "--- a/f0.py\n+++ b/f0.py\n@@ -1,2 +1,2 @@\n def f0(x):\n-    return x\n+    return x + 2\n"
    issue = Instance(
        "o__r-1", "o/r", commit, patch=f"diff --git a/f0.py b/f0.py\n{patch}", problem_statement="f0 errs."
    )
    write_instances(texts / "instances.jsonl", [issue])
    return texts


def _call(*arguments: Any) -> None:
    """Run a command, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lmlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code, arguments


def _repository(folder: Path) -> str:
    """A git repository of one file; its only commit."""
    folder.mkdir(parents=True)
    (folder / "f0.py").write_text("def f0(x):\n    return x\n")
    git = ("git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def _poison(command: str, encoder: Path, at: Path, **named: Any) -> list[Any]:
    options = {"data": at, "cache": at / "vectors", "precision": "fp32"} | named
    given = [each for name, value in options.items() if value is not None for each in (f"--{name}", value)]
    return ["poison", *command.split(), "--encoder", encoder, "--pooling", "mean", *given]


def _circuit(model: Path, at: Path, *how: Any) -> list[Any]:
    how = how or ("--method", "random", "--num-edges", 3)
    return ["--model", model, "--data", at / "pairs.jsonl", *how, "--force"]


SUITE = ["--task", "json_kv", "--length", 512, "--contexts", 1, "--questions", 1]
ATTACK = ["--k", 1, "--optimizer", "none", "--length", 8]
DETECTOR = ["--detector", "norm"]
SHORT = ["--max-tokens", 3]

Command = Callable[[Path, Path, Path], list[Any]]
"""From a model, the folder of what is read beside it, and a place for what is written, to the words of a command."""

EVERY_FORM: dict[str, Command] = {
    "generate --model": lambda model, at, out: ["generate", "--model", model, "def", "--max-new-tokens", 3],
    "chat MODEL": lambda model, at, out: ["chat", model, "--max-new-tokens", 3],
    "convert SOURCE": lambda model, at, out: ["convert", model, out],
    "eval --model": lambda model, at, out: [
        "eval", "--model", model, "--documents", at / "corpus.jsonl", "--out", out,
    ],
    "ladder size MODEL": lambda model, at, out: ["ladder", "size", model],
    "ladder flops MODEL": lambda model, at, out: ["ladder", "flops", model, "--length", "1xC"],
    "circuits find --model": lambda model, at, out: ["circuits", "find", *_circuit(model, at), "--out", out / "c.json"],
    "olmoe trace MODEL": lambda model, at, out: [
        "olmoe", "trace", model, at / "corpus.jsonl", "--tokenizer", model, "--length", 16, "--out",
        out / "trace.npz",
    ],
    "quality score --model": lambda model, at, out: [
        "quality", "score", "ppl", "--in", at / "corpus.jsonl", "--model", model, "--out", out,
    ],
    "long build MODEL": lambda model, at, out: ["long", "build", model, *SUITE, "--out", out / "suite.jsonl"],
    "long eval MODEL": lambda model, at, out: ["long", "eval", model, *SUITE, "--mode", "forced", "--out", out],
    "long helmet MODEL": lambda model, at, out: [
        "long", "helmet", model, "--data", at, "--config", at / "helmet.yaml", "--out", out,
    ],
    "long ppl MODEL": lambda model, at, out: [
        "long", "ppl", model, "--length", 128, "--context", 32, "--texts", 1, "--keys", out / "keys.json",
    ],
    "long search MODEL": lambda model, at, out: [
        "long", "search", model, "--to", 1200, "--candidates", 5, "--task", "json_kv", "--contexts", 1, "--out", out,
    ],
    "long rope MODEL": lambda model, at, out: ["long", "rope", model, "--to", 2048],
    "retrieval encode --encoder": lambda model, at, out: [
        "retrieval", "encode", "--data", at, "--encoder", model, "--pooling", "mean", "--cache", out,
    ],
    "poison craft --encoder": lambda model, at, out: [*_poison("craft", model, at), *ATTACK, "--out", out],
}  # fmt: skip

# The others, in the forms in which no directory with a model's files is named: what looks for files by itself fails
OTHER_FORMS = ("run", "checkpoint", "gguf")
# What was made with a model belongs to its tokenizer, which a GGUF file keeps in another form
OF_ONE_TOKENIZER = (
    "circuits evaluate --model",
    "circuits report --model",
    "compress ppl --base",
    "poison gate --encoder",
    "poison detect score --encoder",
)
COMMANDS: dict[str, Command] = EVERY_FORM | {
    "ask --endpoint": lambda model, at, out: [
        "ask", at / "asked.jsonl", "--endpoint", f"local:{model}", *SHORT, "--out", out / "replies.jsonl",
    ],
    "judge run --judge": lambda model, at, out: [
        "judge", "run", at / "answers.jsonl", "--judge", f"likelihood:{model}", "--judge", f"coverage:{model}",
        "--out", out,
    ],
    "circuits evaluate --model": lambda model, at, out: [
        "circuits", "evaluate", at / "circuit.json", *_circuit(model, at, "--batch-size", 2),
    ],
    "circuits report --model": lambda model, at, out: [
        "circuits", "report", at / "circuit.json", *_circuit(model, at, "--prompts", 1), "--out", out / "c.html",
    ],
    "circuits convert --model": lambda model, at, out: [
        "circuits", "convert", at / "edges.json", "--from", "edge-list", "--model", model, "--out", out / "c.json",
    ],
    "circuits compare --model": lambda model, at, out: ["circuits", "compare", *_circuit(model, at)],
    "circuits neurons --model": lambda model, at, out: [
        "circuits", "neurons", *_circuit(model, at, "--ig-steps", 1), "--out", out / "n.json",
    ],
    "circuits sweep --model": lambda model, at, out: [
        "circuits", "sweep", *_circuit(model, at, "--method", "random", "--edge-counts", 3), "--out", out,
    ],
    "compress ppl --base": lambda model, at, out: [
        "compress", "ppl", at / "compressor", "--data", at / "long.jsonl", "--context", "0,8", "--target", 8,
        "--segment", 8, "--base", model, "--out", out,
    ],
    "compress rag --retriever": lambda model, at, out: [
        "compress", "rag", at / "compressor", "--data", at / "long.jsonl", "--passages", at / "corpus.jsonl",
        "--store", at / "store", "--retriever", model, "--k", 1, "--context", 16, "--continuation", 16, "--out", out,
    ],
    "compress extend MODEL": lambda model, at, out: ["compress", "extend", at / "learned", out / "o", "--to", 64],
    "compress compare MODEL": lambda model, at, out: [
        "compress", "compare", model, "--task", "arithmetic", "--length", 96, "--contexts", 2, "--kind", "prune:norm",
        "--out", out,
    ],
    "compress probe MODEL": lambda model, at, out: [
        "compress", "probe", model, at / "one.txt", "--kind", "prune:norm", "--tokens", 32,
    ],
    "compress memory MODEL": lambda model, at, out: [
        "compress", "memory", model, at / "one.txt", "--kind", "prune:norm", "--out", out / "m",
    ],
    "compress cartridge MODEL": lambda model, at, out: [
        "compress", "cartridge", model, at / "one.txt", "--rows", 4, "--steps", 1, "--excerpt", 16, "--out", out / "c",
    ],
    "olmoe upcycle SOURCE": lambda model, at, out: ["olmoe", "upcycle", model, out / "moe", "--num-experts", 2],
    "retrieval search --encoder": lambda model, at, out: [
        "retrieval", "search", "--data", at, "--split", "test", "--encoder", model, "--pooling", "mean",
        "--cache", out,
        "--out", out / "run.txt",
    ],
    "retrieval search --query-encoder": lambda model, at, out: [
        "retrieval", "search", "--data", at, "--split", "test", "--encoder", at / "encoder", "--query-encoder", model,
        "--pooling", "mean", "--cache", out, "--out", out / "run.txt",
    ],
    "retrieval evaluate --encoder": lambda model, at, out: [
        "retrieval", "evaluate", "--data", at, "--split", "test", "--encoder", model, "--pooling", "mean",
        "--cache", out,
    ],
    "poison evaluate --encoder": lambda model, at, out: [
        *_poison("evaluate", model, at), "--passages", at / "attack", "--k", 1,
    ],
    "poison transfer --encoder": lambda model, at, out: [
        *_poison("transfer", model, at), "--passages", at / "attack", "--k", 1,
    ],
    "poison answers --language-model": lambda model, at, out: [
        *_poison("answers", model, at), "--language-model", model, "--k", 1, at / "targeted.json",
    ],
    "poison gate --encoder": lambda model, at, out: [
        *_poison("gate", model, at, data=None, cache=None, precision=None), "--gate", at / "gate",
        at / "corpus.jsonl",
    ],
    "poison report --encoder": lambda model, at, out: [
        *_poison("report", model, at), "--passages", at / "attack", "--k", 1, "--no-defenses", "--out", out,
    ],
    "poison import --encoder": lambda model, at, out: [
        "poison", "import", at / "reference", "--encoder", model, "--pooling", "mean", "--out", out,
    ],
    "poison export --encoder": lambda model, at, out: [
        "poison", "export", at / "attack", "--encoder", model, "--pooling", "mean", "--name", "a", "--out", out,
    ],
    "poison harden --encoder": lambda model, at, out: [
        *_poison("harden", model, at), *ATTACK, "--rounds", 1, "--steps", 1, "--depth", 1, "--out", out,
    ],
    "poison detect fit --language-model": lambda model, at, out: [
        *_poison("detect fit", model, at), "--detector", "perplexity", "--language-model", model, "--rate", "0.5",
        "--out", out,
    ],
    "poison detect score --encoder": lambda model, at, out: [
        *_poison("detect score", model, at), "--passages", at / "attack", "--gate", at / "gate",
    ],
    "poison detect sweep --encoder": lambda model, at, out: [
        *_poison("detect sweep", model, at), "--passages", at / "attack", *DETECTOR,
    ],
    "quality train --init": lambda model, at, out: [
        "quality", "train", at / "judgments.jsonl", "--init", model, "--set", "trainer.steps=1", "--set",
        "trainer.batch_size=4", "--out", out,
    ],
    "programs train --init-embeddings": lambda model, at, out: [
        "programs", "train", "--data", at / "words.jsonl", "--init-embeddings", model, "--embedding-vars", 1,
        "--epochs", 1, "--out", out,
    ],
    "quality judge --judge": lambda model, at, out: [
        "quality", "judge", at / "corpus.jsonl", "--judge", f"exact:{model}", "--tokenizer", model, "--tokens", "4,8",
        "--out", out,
    ],
    "swe memorized --model": lambda model, at, out: [
        "swe", "memorized", "--instances", at / "instances.jsonl", "--model", model, "--alternatives", 1,
        "--repositories", at / "repositories", "--cache", out / "cache", "--out", out / "memorized.jsonl",
    ],
    "swe infer --model": lambda model, at, out: [
        "swe", "infer", "--instances", at / "instances.jsonl", "--model", f"local:{model}", "--context", "none",
        "--repositories", at / "repositories", "--cache", out / "cache", "--tokenizer", model, *SHORT, "--out", out,
    ],
    "tutor generate --model": lambda model, at, out: [
        "tutor", "generate", "--model", model, "--data", at / "tutoring.jsonl", "--max-new-tokens", 3, "--out", out,
    ],
    "tutor dialogue-eval --tutor": lambda model, at, out: [
        "tutor", "dialogue-eval", "--tutor", f"local:{model}", "--student", f"local:{model}", "--judge",
        f"local:{model}", "--data", at / "tutoring.jsonl", "--turns", 1, *SHORT, "--max-new-tokens", 3,
        "--max-ungraded", 1, "--out", out,
    ],
    "tutor chat-generate --teacher": lambda model, at, out: [
        "tutor", "chat-generate", at / "chapters", "--scheme", "two_llm", "--teacher", f"local:{model}", "--student",
        f"local:{model}", "--kinds",
        "openbook", "--num-turns", 1, *SHORT, "--out", out,
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_model_in_every_form(
    command: str,
    request: pytest.FixtureRequest,
    made: Path,
    lmlab: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = request.getfixturevalue("mixtures" if command == "olmoe trace MODEL" else "places")
    for form, model in places.items():
        if command not in EVERY_FORM and form not in OTHER_FORMS:
            continue
        if command in OF_ONE_TOKENIZER and form == "gguf":
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        (tmp_path / form).mkdir()
        done = lmlab(*COMMANDS[command](model, made, tmp_path / form))
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


# What looks as if it named a model, and has no row: with where it is tried, or what it is
NO_ROW = {
    "serve MODEL": "below",
    "eval harness --model": "tests/evals/test_harness.py: its library takes long to import",
    "swe agent --model": "the reader of `swe infer`; an agent needs a sandbox",
    "tutor grade --judge": "the reader of `judge run`",
    "tutor compare --judge": "the reader of `judge run`",
    "tutor rank --judge": "the reader of `judge run`",
    "judge cost --judge": "the reader of `judge run`",
    "judge judgebench --judge": "the reader of `judge run`",
    **{
        f"swe {name} --encoder": "the reader of `retrieval search`"
        for name in ("export", "infer", "prompt", "retrieve", "train-data")
    },
    "long judge --judge": "the reader of `judge run`",
    "tutor report --judge": "the name of one that has graded",
    "quality annotate --rater": "a rater, which has a `find` of its own",
    "olmoe convert SOURCE": "a checkpoint of OLMo or OLMo-core",
    "olmoe report --tokenizer": "a tokenizer",
    "programs decompile MODEL": "tests/methods/transformer_programs/test_decompile.py: not a model of this family",
    "convert TARGET": "what is written",
    "compress convert SOURCE": "a checkpoint of the reference",
    "compress convert --base": "beside adapters of the reference",
    **{f"compress {name} COMPRESSOR": "a compressor" for name in ("encode", "icl", "ppl", "rag", "rerank", "text")},
    **{  # fields of configurations that have a row in another command, or in this one beside another option
        f"poison {name}": "declared and read once for all commands"
        for name in (
            "answers --query-encoder",
            "craft --language-model",
            "craft --query-encoder",
            "detect fit --query-encoder",
            "detect score --language-model",
            "detect score --query-encoder",
            "detect sweep --language-model",
            "detect sweep --query-encoder",
            "evaluate --query-encoder",
            "export --query-encoder",
            "gate --language-model",
            "gate --query-encoder",
            "harden --language-model",
            "harden --query-encoder",
            "import --query-encoder",
            "memory --encoder",
            "memory --query-encoder",
            "report --language-model",
            "report --query-encoder",
        )
    },
    **{
        f"poison {name} --masked-model": "a masked language model, of `transformers`"
        for name in ("gate", "report", "detect fit", "detect score", "detect sweep")
    },
    **{
        f"retrieval {name} --query-encoder": "declared and read once for all commands"
        for name in ("encode", "evaluate")
    },
}
_A_MODEL_BY_NAME = re.compile(r"(^|_)(model|encoder|retriever|compressor|rater|teacher|tutor|student|judge|base|init)$")
_A_MODEL_BY_HELP = re.compile(r"GGUF|local:|a model's directory|or a model|of a dense model|checkpoint of")


def _like_a_model() -> Iterator[str]:
    """What may name a model, of every command."""
    for path, command in commands():
        for parameter in command.params:
            told = _A_MODEL_BY_NAME.search(parameter.name) or _A_MODEL_BY_HELP.search(parameter.help or "")
            if told and parameter.name != "model_named":  # that is the argument MODEL
                yield f"{path} {flag_of(parameter)}"


def _tried() -> Iterator[str]:
    """What the rows give a model to."""
    here = Path("THE-MODEL")
    for name, row in COMMANDS.items():
        command, words = name.rpartition(" ")[0], [str(each) for each in row(here, Path("at"), Path("out"))]
        yield name
        yield from (f"{command} {flag}" for flag, word in pairwise(words) if str(here) in word)


def test_every_option_that_names_a_model_has_a_row() -> None:
    found, tried = {*_like_a_model()}, {*_tried()}
    assert sorted(found - tried - set(NO_ROW)) == [], "give it a row, or say in NO_ROW what it is"
    assert sorted(set(NO_ROW) - found) == []
    assert sorted(set(NO_ROW) & tried) == []
    known = {path for path, _ in commands()}
    assert not {name for name in COMMANDS if name.rpartition(" ")[0] not in known}


def test_every_argument_called_model_is_an_option_too() -> None:
    names = {path: {parameter.name for parameter in command.params} for path, command in commands()}
    arguments = [
        path
        for path, command in commands()
        for parameter in command.params
        if parameter.param_type_name == "argument" and parameter.name == "model"
    ]
    assert len(arguments) > 8 and not [path for path in arguments if "model_named" not in names[path]]


@pytest.mark.parametrize("files", [["one.txt"], ["one.txt", "two.txt"]])
def test_a_model_behind_its_option_leaves_the_other_words_in_their_order(files: list[str]) -> None:
    seen = []

    @takes_model
    def probe(
        model: Annotated[str, typer.Argument()],
        texts: Annotated[list[Path], typer.Argument()],
        most: Annotated[int, typer.Option()] = 3,
    ) -> None:
        seen.append((model, texts, most))

    app = typer.Typer()
    app.command()(probe)
    for words in (["m", *files], ["--model", "m", *files, "--most", "3"]):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert seen == [("m", [Path(each) for each in files], 3)] * 2
