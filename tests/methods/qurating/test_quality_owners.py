"""Folders and files of judgments, raters and weights belong to what wrote them; places may be written in any way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from quality_parts import make_rater, pair, sentence

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import locked
from lmlab.judging import Judgment
from lmlab.methods.qurating import RaterConfig, train_rater


@pytest.fixture
def place(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    rng = np.random.default_rng(0)
    (tmp_path / "corpus").mkdir()
    for shard in range(2):
        texts = [sentence(rng, 40) for _ in range(8)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "corpus" / f"{shard}.jsonl").write_text(lines)
    return tmp_path


def judge(lmlab: Callable[..., Any], corpus: str | Path, out: Path, *more: str) -> Any:
    given = ["--tokenizer", out.parent / "tokenizer", "--pairs", 6, "--design", "random", "--tokens", "16,32"]
    return lmlab("quality", "judge", corpus, *given, "--out", out, *more)


def test_another_judging_replaces_the_first_and_no_other_command_s_folder(
    place: Path, lmlab: Callable[..., Any]
) -> None:
    out = place / "judged"
    assert judge(lmlab, place / "corpus", out).code == 0
    assert judge(lmlab, place / "corpus", out, "--criterion", "style=is finer.").code == 0
    columns = pq.read_table(out / "judgments.parquet").column_names
    assert "style_average" in columns and "educational_value_average" not in columns
    assert json.loads((out / "lmlab-files.json").read_text())["data"] == ["judgments.parquet"]
    refused = lmlab("quality", "filter", "--in", place / "corpus", "--min", "text=1", "--out", out)
    assert refused.code == 2 and "`lmlab quality judge` wrote" in refused.err
    inside = judge(lmlab, place / "corpus", place / "corpus")
    assert inside.code == 2 and "what is read" in inside.err
    with open(out / "lmlab-files.json") as _:
        descriptor = os.open(out, os.O_RDONLY)
        assert locked(descriptor)
        busy = judge(lmlab, place / "corpus", out)
        os.close(descriptor)
    assert busy.code == 2 and "Another process is writing" in busy.err


def test_a_corpus_is_the_same_however_its_place_is_written(
    place: Path, tokenizer: Tokenizer, lmlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for name, corpus in (("one", "corpus"), ("two", place / "corpus"), ("three", "./corpus/../corpus/*.jsonl")):
        assert judge(lmlab, corpus, place / name).code == 0
    one, two, three = (pq.read_table(place / name / "judgments.parquet") for name in ("one", "two", "three"))
    assert one.equals(two) and one.equals(three)
    make_rater(tokenizer).save(place / "rater")
    for corpus in ("corpus", place / "corpus", "./corpus/../corpus"):
        rated = lmlab("quality", "annotate", corpus, "--rater", "rater", "--precision", "fp32", "--out", "rated")
        assert rated.code == 0, rated.err
    assert "0 were rated now" in rated.out  # the third found all of it
    other = lmlab("quality", "annotate", "corpus/0.jsonl", "--rater", "rater", "--precision", "fp32", "--out", "rated")
    assert other.code == 2


def test_a_rater_s_folder_is_for_one_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    judgments = [pair(sentence(rng, 12), sentence(rng, 12), 0.9, ids=(f"a{n}", f"b{n}")) for n in range(6)]
    config = RaterConfig(
        size={"num_layers": 1, "d_model": 16, "num_heads": 2},
        epochs=1,
        validation=0,
        max_tokens=32,
        batch_pairs=4,
        row_tokens=64,
        trainer={"precision": "fp32", "keep_best": None, "evaluate_every": None},
    )

    def train(found: list[Judgment] = judgments, own: RaterConfig = config, names: tuple[str, ...] = ("one",)) -> Any:
        return train_rater(found, names, tokenizer, own, tmp_path / "out").results["pairs"]

    count = train()
    weights = (tmp_path / "out" / "rater" / "model.safetensors").read_bytes()
    assert train() == count  # it goes on, and there is nothing left to do
    assert train(own=config.model_copy(update={"trainer": {**config.trainer, "device": "cpu"}})) == count
    with pytest.raises(UserError, match=r"another training\. What differs: judgments"):
        train(judgments[:4])
    with pytest.raises(UserError, match=r"settings\.lr \(5e-05, now 0\.001\)"):
        train(own=config.model_copy(update={"lr": 1e-3}))
    assert (tmp_path / "out" / "rater" / "model.safetensors").read_bytes() == weights


def test_fitted_weights_are_not_written_over_anything_else(tmp_path: Path, lmlab: Callable[..., Any]) -> None:
    runs, out = tmp_path / "runs.csv", tmp_path / "weights.yaml"
    assert lmlab("quality", "propose-weights", "a", "b", "--runs", 8, "--out", runs).code == 0
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join([lines[0], *(f"{line}{n % 3}" for n, line in enumerate(lines[1:]))]) + "\n")
    out.write_text("code: 0.5\ntext: 0.5\n")  # by hand, for --domain-weights
    refused = lmlab("quality", "fit-weights", runs, "--out", out)
    assert refused.code == 2 and "something else" in refused.err and out.read_text().startswith("code")
    out.unlink()
    for _ in range(2):  # its own it may write again
        assert lmlab("quality", "fit-weights", runs, "--out", out).code == 0
