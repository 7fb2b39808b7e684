"""A model that is tuned to answer, and then to prefer: conversations and preferences through the same loop."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lmlab.data import TULU_TEMPLATE, TokenizedCorpus, Tokenizer
from lmlab.files import read_json, read_jsonl
from lmlab.models import GenerationConfig, ModelConfig, Transformer, from_pretrained, generate, save_pretrained
from lmlab.train import read_metrics

_COLORS = {"grass": "green", "blood": "red", "snow": "white", "coal": "black", "sky": "blue", "sun": "yellow"}
_LOOP = {"batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 5, "checkpoint_every": 50}


def _ask(thing: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What color has {thing}?"}]


def _conversation(thing: str, color: str) -> dict:
    return {"messages": [*_ask(thing), {"role": "assistant", "content": f"It is {color}."}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model with fresh weights, and a tokenizer that has a chat template."""
    directory = tmp_path_factory.mktemp("base")
    texts = [
        message["content"] for thing, color in _COLORS.items() for message in _conversation(thing, color)["messages"]
    ] * 4
    trained = Tokenizer.train(texts, 320)
    tokenizer = Tokenizer(trained.backend, trained.bos_token, trained.eos_token, TULU_TEMPLATE)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=64, num_heads=4, max_seq_len=128)
    save_pretrained(
        Transformer(config).initialize(0),
        directory,
        tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id},
    )
    tokenizer.save(directory)
    return directory


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tuned(base, forkserver, tmp_path_factory):
    """The run of a recipe that tunes it on conversations."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = [_conversation(thing, color) for thing, color in _COLORS.items()] * 20 + [
        {"messages": []},
        {"messages": "?"},
    ]
    data = _write(folder / "chats.jsonl", rows)
    stages = {
        "tokens": {"kind": "tokenize_chat", "records": data, "tokenizer": str(base), "chat": {"max_len": 96}},
        "model": {
            "kind": "train",
            "tokens": "tokens",
            "tokenizer": str(base),
            "start": str(base),
            "seq_len": 96,
            "packing": "best_fit",
            "max_epochs": 60,
            "trainer": {**_LOOP, "epochs": 50, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0}},
        },
        "report": {"kind": "report"},
    }
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump({"name": "sft", "stages": stages}, sort_keys=False))
    done = forkserver.run("run", path, "--out", folder / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run"


def _answer(directory, thing: str) -> str:
    model, tokenizer = from_pretrained(directory), Tokenizer.load(directory)
    ids = tokenizer.encode_chat(_ask(thing))
    (completion,) = generate(
        model, [ids], GenerationConfig(max_new_tokens=12, temperature=0, eos_ids=(tokenizer.eos_id,))
    )
    return tokenizer.decode(completion[0].ids if isinstance(completion, list) else completion.ids).strip()


def test_a_tuned_model_answers_as_it_was_taught(tuned, base):
    assert [_answer(tuned / "model" / "model", thing) for thing in _COLORS] == [
        f"It is {color}." for color in _COLORS.values()
    ]
    assert _answer(base, "grass") != "It is green."
    results = read_json(tuned / "results.json")
    assert results["tokens"]["rejects"] == 2 and results["tokens"]["read"] == 122
    assert {row["reason"] for row in read_jsonl(tuned / "tokens" / "rejects.jsonl")} == {
        "the messages are empty",
        "the messages are not a list",
    }
    corpus = TokenizedCorpus(tuned / "tokens")
    shard = corpus.shards[0]
    learned = corpus.tokenizer.backend.decode(
        shard.tokens[: shard.ends[0]][shard.mask[: shard.ends[0]] == 1].tolist(), skip_special_tokens=False
    )
    assert learned.strip().startswith("It is green.") and "color" not in learned


@pytest.mark.parametrize(
    ("method", "processes"),
    [
        ({"kind": "dpo", "beta": 0.5}, 1),
        ({"kind": "simpo"}, 1),
        ({"kind": "kto", "beta": 0.5}, 1),
        ({"kind": "dpo", "beta": 0.5}, 2),
    ],
)
def test_a_model_comes_to_prefer_what_it_is_shown(forkserver, tuned, tmp_path, method, processes):
    """Before, it says the true color; after learning from preferences for the question it says another."""
    things = list(_COLORS)
    other = {thing: _COLORS[things[(number + 1) % len(things)]] for number, thing in enumerate(things)}
    say = lambda color: [{"role": "assistant", "content": f"It is {color}."}]  # noqa: E731
    if method["kind"] == "kto":
        rows = [
            {"prompt": _ask(t), "completion": say(c), "label": label}
            for t in things
            for c, label in ((other[t], True), (_COLORS[t], False))
        ] * 8
    else:
        rows = [{"prompt": _ask(t), "chosen": say(other[t]), "rejected": say(_COLORS[t])} for t in things] * 16
    trainer = {
        **_LOOP,
        "steps": 50,
        "log_every": 1,
        "evaluate_every": 10,
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 0},
    }
    stage = {
        "kind": "prefer",
        "records": _write(tmp_path / "p.jsonl", rows),
        "start": str(tuned / "model"),
        "method": method,
        "seq_len": 96,
    }
    path = tmp_path / "prefer.yaml"
    path.write_text(
        yaml.safe_dump(
            {"name": "prefer", "stages": {"model": {**stage, "trainer": trainer}, "report": {"kind": "report"}}}
        )
    )
    done = forkserver.run("run", path, "--out", tmp_path / "run", processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    logged = read_metrics(tmp_path / "run" / "model" / "metrics.jsonl")
    if method["kind"] == "dpo":
        assert logged[0]["loss"] == pytest.approx(
            torch.log(torch.tensor(2.0)).item(), abs=1e-3
        )  # the model is its reference
    assert logged[-1]["heldout_loss"] < logged[0]["loss"] / 2
    if method["kind"] != "kto":
        assert logged[-1]["heldout_accuracies"] == 1.0
    answers = [_answer(tmp_path / "run" / "model" / "model", thing) for thing in things]
    changed = sum(answer != f"It is {_COLORS[thing]}." for answer, thing in zip(answers, things, strict=True))
    assert changed >= 5


_PAIRS = [_conversation(thing, color) for thing, color in _COLORS.items()]


def _store(kind, folder):
    """The same conversations in a file or folder of a kind; what `records` is then."""
    if kind == "jsonl.gz":
        (folder / "chats.jsonl.gz").write_bytes(
            gzip.compress("".join(json.dumps(row) + "\n" for row in _PAIRS).encode())
        )
        return str(folder / "chats.jsonl.gz")
    if kind == "parquet":
        pq.write_table(pyarrow.Table.from_pylist(_PAIRS), folder / "part-0.parquet")
        return str(folder / "*.parquet")
    if kind == "arrow":
        pytest.importorskip("datasets").Dataset.from_list(_PAIRS).save_to_disk(str(folder / "saved"))
        return str(folder / "saved")
    if kind == "webdataset":
        with tarfile.open(folder / "chats-0.tar", "w") as archive:
            for number, row in enumerate(_PAIRS):
                data = json.dumps(row).encode()
                member = tarfile.TarInfo(f"{number:04d}.json")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return {"kind": "webdataset", "path": str(folder / "*.tar")}
    if kind == "csv":
        with (folder / "chats.txt").open("w", newline="") as file:
            rows = csv.writer(file, delimiter=";")
            rows.writerow(["question", "answer"])
            rows.writerows([message["content"] for message in row["messages"]] for row in _PAIRS)
        return {"kind": "csv", "path": str(folder / "chats.txt"), "delimiter": ";"}
    _write(folder / "chats.jsonl", _PAIRS)
    return {"url": f"file://{folder}/chats.jsonl", "source": {"kind": "jsonl", "path": f"file://{folder}/*.jsonl"}}[
        kind
    ]


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet", "arrow", "webdataset", "url", "source", "csv"])
def test_conversations_come_from_every_kind_of_source(lmlab, base, tmp_path, kind):
    (tmp_path / "data").mkdir()
    stage = {"kind": "tokenize_chat", "records": _store(kind, tmp_path / "data"), "tokenizer": str(base)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"tokens": stage}}))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    corpus = TokenizedCorpus(tmp_path / "run" / "tokens")
    found = [corpus.shards[0].tokens[start:end] for start, end in itertools.pairwise([0, *corpus.shards[0].ends])]
    expected = [corpus.tokenizer.encode_chat(row["messages"], add_generation_prompt=False) for row in _PAIRS]
    assert [each.tolist() for each in found] == expected


def test_the_stage_checks_what_is_learned_and_says_so(lmlab, base, tmp_path):
    rows = [
        *_PAIRS,
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"messages": [*_PAIRS[0]["messages"], *_ask("sky"), {"role": "assistant", "content": "no", "weight": 0}]},
        {"question": "a", "answer": "b " * 400},
        {"text": "no conversation"},
    ]  # fmt: skip
    data = _write(tmp_path / "chats.jsonl", rows)
    stage = {"kind": "tokenize_chat", "records": str(data), "tokenizer": str(base), "max_reject_fraction": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"tokens": {**stage, "chat": {"max_len": 200}}}}))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    results = json.loads((tmp_path / "run" / "tokens" / "stage.json").read_text())["results"]
    expected = {"turns": len(_PAIRS) + 2, "turns_stopped": len(_PAIRS) + 2, "turns_not_learned": 1, "rejects": 2}
    assert {name: results[name] for name in expected} == expected
    assert results["shortest_prompt"] > 0
    said = " ".join((shown.out + shown.err).split())
    assert f"in {len(_PAIRS) + 2} turns, of which {len(_PAIRS) + 2} end with a stop token; 1 turn not learned" in said
    assert "2 records set aside (1 too long" in said and "see rejects.jsonl" in said
    rejects = [json.loads(line)["reason"] for line in (tmp_path / "run/tokens/rejects.jsonl").open()]
    assert "too long" in rejects[0] and "its fields: text" in rejects[1]


def test_records_of_other_splits_are_told_and_are_not_unfit(lmlab, base, tmp_path):
    rows = [{**row, "split": split} for split in ("train", "test", "test") for row in _PAIRS]
    data = _write(tmp_path / "chats.jsonl", rows)
    stage = {"kind": "tokenize_chat", "records": str(data), "tokenizer": str(base), "max_reject_fraction": 0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"tokens": stage}}))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    results = json.loads((tmp_path / "run" / "tokens" / "stage.json").read_text())["results"]
    assert (results["read"], results["rejects"], results["other_splits"]) == (len(_PAIRS), 0, 2 * len(_PAIRS))
    assert f"{2 * len(_PAIRS)} records of other splits left out" in " ".join((shown.out + shown.err).split())


def test_a_damaged_file_of_conversations_is_a_sentence(lmlab, base, tmp_path):
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in _PAIRS).encode())
    (tmp_path / "chats.jsonl.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "broken.jinja").write_text("{% if %}")
    stage = {"kind": "tokenize_chat", "records": str(tmp_path / "chats.jsonl.gz"), "tokenizer": str(base)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"tokens": stage}}))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 2
    assert "chats.jsonl.gz" in shown.err and "cannot be told" in shown.err and "Traceback" not in shown.err
    for name, expected in (("nothing.jinja", "chat.template"), ("broken.jinja", "chat template is broken")):
        shown = lmlab("run", path, "--out", tmp_path / "other", "--set", f"tokens.chat.template={tmp_path / name}")
        assert shown.code == 2 and expected in shown.err
    shown = lmlab("run", path, "--out", tmp_path / "url", "--set", "tokens.records=s4://bucket/x.jsonl")
    assert shown.code == 2 and "s4" in shown.err


def test_the_recipe_for_chat_tunes_and_prefers(lmlab, recipe, tmp_path, library):
    """recipes/chat.yaml on a dozen modules and a model of a few steps: the template goes with the shards to the tuned
    models.
    """
    assert lmlab("run", recipe(until="model"), "--out", tmp_path / "demo").code == 0
    data = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "chat.yaml").read_text())
    for name in ("questions", "pairs"):
        data["stages"][name]["source"] = {"path": str(library)}
    for name in ("tokens", "heldout_tokens"):
        data["stages"][name]["tokenizer"] = str(tmp_path / "demo" / "tokenizer")
    data["stages"]["model"]["start"] = str(tmp_path / "demo" / "model")
    data["stages"]["model"]["trainer"] |= {"device": "cpu", "precision": "fp32"}
    data["stages"]["preferred"] |= {"seq_len": 256}  # the tokens of a vocabulary of 400 are short
    data["stages"]["preferred"]["trainer"] |= {"device": "cpu", "precision": "fp32", "steps": 4}
    data["stages"]["samples"] |= {"max_new_tokens": 4, "device": "cpu"}
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    results = read_json(tmp_path / "run" / "results.json")
    assert results["questions"]["records"] > 50 and results["pairs"]["records"] > 50
    assert results["tokens"]["read"] + results["heldout_tokens"]["read"] == results["questions"]["records"]
    logged = read_metrics(tmp_path / "run" / "model" / "metrics.jsonl")
    assert logged[-1]["heldout_loss"] < logged[0]["loss"]
    for name in ("model", "preferred"):
        tokenizer = Tokenizer.load(tmp_path / "run" / name / "model")
        assert tokenizer.chat_template is not None and tokenizer.chat_template.source == TULU_TEMPLATE
    pairs = list(read_jsonl(tmp_path / "run" / "pairs" / "records.jsonl"))
    right = {
        row["messages"][0]["content"]: row["messages"][1]["content"]
        for row in read_jsonl(tmp_path / "run" / "questions" / "records.jsonl")
    }
    for row in pairs:
        answer = right[row["prompt"][0]["content"]]
        assert row["chosen"][0]["content"] == answer
        assert row["rejected"][0]["content"].removeprefix(f"{answer} ") in set(right.values()) - {answer}
