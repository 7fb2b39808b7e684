"""The commands, the stages and the pipeline as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lmlab.files import read_json

CRITERIA = ("educational_value", "clarity")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    """200 documents: pieces of modules of the standard library."""
    place = tmp_path_factory.mktemp("quality")
    lines = []
    for path in sorted(library.glob("*.py")):
        text = path.read_text("utf-8")
        for start in range(0, min(len(text), 24_000), 1200):
            lines.append(
                {
                    "doc_id": f"{path.stem}-{start}",
                    "text": text[start : start + 1200],
                    "meta": {"source": "ab"[len(lines) % 2]},
                }
            )
    (place / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:200]))
    return place


def pipeline_file(folder: Path) -> Path:
    path = folder / "quality.yaml"
    settings: dict[str, Any] = {
        "corpus": {"path": str(folder / "corpus.jsonl"), "id": "doc_id", "domain": "meta.source", "vocab_size": 512},
        "criteria": {"educational_value": {}, "clarity": {"clause": "is clearer."}},
        "judge": {"backend": "offline"},
        "pairs": {"design": "random", "n": 60, "tokens": [32, 64]},
        "rater": {
            "init": {"num_layers": 1, "d_model": 32, "num_heads": 2},
            "lr": 3e-3,
            "epochs": 2,
            "batch_pairs": 16,
            "row_tokens": 256,
            "confidence": 0.1,
            "val": 0.2,
        },
        "annotate": {"segment": 64, "dtype": "float32"},
        "select": {"mode": "sample", "tau": 1.0, "tokens": "30%"},
        "report": {"clusters": 4, "groups": ["domain"], "examples": 1},
    }
    path.write_text(yaml.safe_dump({"quality": settings}))
    return path


@pytest.fixture(scope="session")
def finished(folder: Path) -> Path:
    """A pipeline that has run, from nothing."""
    from lmlab.files import read_yaml
    from lmlab.methods.qurating.commands.pipeline import pipeline_recipe
    from lmlab.runs import run_recipe

    run_recipe(pipeline_recipe(read_yaml(pipeline_file(folder)), "quality.yaml"), folder / "run", False)
    return folder / "run"


def test_a_pipeline_goes_from_a_folder_to_a_chosen_shard_and_a_report(finished: Path, lmlab: Any, folder: Path) -> None:
    results = read_json(finished / "results.json")
    assert results["ratings"]["rows"] == 200 and 0 < results["selection"]["rows"] < 120
    chosen = [json.loads(line) for line in (finished / "selection" / "train.jsonl").read_text().splitlines()]
    manifest = pq.read_table(finished / "selection" / "manifest.parquet")
    assert sorted(row["id"] for row in chosen) == sorted(manifest.column("id").to_pylist())
    page = (finished / "report.html").read_text("utf-8")
    for words in (
        "Judgments",
        "Rater",
        "Ratings",
        "Selection",
        "Topics by their strongest terms",
        "Ratings and rate of selection by domain",
        "neither literary",
    ):
        assert re.search(words, page), words
    again = lmlab("quality", "pipeline", folder / "quality.yaml", "--out", finished)
    assert again.code == 0 and again.err.count("done before") == 7


def test_a_wrong_key_names_the_nearest(folder: Path, lmlab: Any) -> None:
    pipeline_file(folder)
    done = lmlab("quality", "pipeline", folder / "quality.yaml", "--set", "quality.select.taus=1")
    assert done.code == 2 and "Did you mean 'tau'" in done.err
    done = lmlab(
        "quality", "pipeline", folder / "quality.yaml", "--set", "quality.select.tau=-1", "--out", folder / "no"
    )
    assert done.code == 2 and "--invert" in done.err


def test_the_commands_do_the_same_step_by_step(finished: Path, folder: Path, tmp_path: Path, lmlab: Any) -> None:
    corpus, tokenizer = folder / "corpus.jsonl", finished / "tokenizer"
    judged = lmlab(
        "quality",
        "judge",
        corpus,
        "--tokenizer",
        tokenizer,
        "--criterion",
        "educational_value",
        "--criterion",
        "clarity=is clearer.",
        "--pairs",
        60,
        "--design",
        "random",
        "--tokens",
        "32,64",
        "--id-field",
        "doc_id",
        "--domain-field",
        "meta.source",
        "--out",
        tmp_path / "judged",
    )
    assert judged.code == 0, judged.err
    ours, theirs = (pq.read_table(path / "judgments.parquet") for path in (tmp_path / "judged", finished / "judgments"))
    assert ours.column("texts").to_pylist() == theirs.column("texts").to_pylist()
    assert lmlab("quality", "judge-report", tmp_path / "judged", "--out", tmp_path / "judged.html").code == 0
    assert "position bias" in (tmp_path / "judged.html").read_text("utf-8")
    trained = lmlab(
        "quality",
        "train",
        tmp_path / "judged",
        "--tokenizer",
        tokenizer,
        "--out",
        tmp_path / "rater",
        "--set",
        "size.num_layers=1",
        "--set",
        "size.d_model=32",
        "--set",
        "size.num_heads=2",
        "--set",
        "epochs=1",
        "--set",
        "confidence=0.1",
        "--set",
        "max_tokens=64",
    )
    assert trained.code == 0, trained.err
    rated = lmlab(
        "quality",
        "annotate",
        corpus,
        "--rater",
        tmp_path / "rater",
        "--id-field",
        "doc_id",
        "--out",
        tmp_path / "rated",
    )
    assert rated.code == 0 and "200 rows" in rated.out
    common = (
        "--in",
        tmp_path / "rated",
        "--metric",
        "educational_value_average",
        "--id",
        "doc_id",
        "--domain",
        "meta.source",
        "--tokens",
        "30%",
    )
    planned = lmlab("quality", "plan", *common, "--out", tmp_path / "plan.json")
    assert planned.code == 0 and "tau=0.5" in planned.out and len(read_json(tmp_path / "plan.json")["outlooks"]) == 6
    chosen = lmlab("quality", "select", *common, "--mode", "sample", "--tau", "1", "--out", tmp_path / "chosen")
    assert chosen.code == 0 and "Gumbel noise of 1.28" in chosen.out
    table = pq.read_table(tmp_path / "chosen" / "0-of-1.parquet")
    assert len(table) == len(pq.read_table(tmp_path / "chosen" / "manifest.parquet"))
    report = lmlab(
        "quality",
        "report",
        "--in",
        tmp_path / "rated",
        "--selection",
        tmp_path / "chosen",
        "--clusters",
        3,
        "--examples",
        1,
        "--out",
        tmp_path / "q.html",
    )
    assert report.code == 0, report.err
    assert "## clarity, a: highest" in (tmp_path / "chosen" / "extremes.md").read_text("utf-8")
    ordered = lmlab(
        "quality",
        "order",
        "--in",
        tmp_path / "chosen" / "0-of-1.parquet",
        "--metric",
        "clarity_average",
        "--out",
        tmp_path / "order",
    )
    values = [
        json.loads(line)["clarity_average"] for line in (tmp_path / "order" / "0-of-1.jsonl").read_text().splitlines()
    ]
    assert ordered.code == 0 and values == sorted(values)
    filtered = lmlab(
        "quality",
        "filter",
        "--in",
        tmp_path / "rated",
        "--min",
        f"clarity_average={np.median(values)}",
        "--out",
        tmp_path / "filtered",
    )
    assert filtered.code == 0 and 0 < len(pq.read_table(tmp_path / "filtered" / "0-of-1.parquet")) < 200
    scored = lmlab(
        "quality",
        "score",
        "dsir",
        "--in",
        tmp_path / "rated",
        "--target",
        tmp_path / "order" / "0-of-1.jsonl",
        "--out",
        tmp_path / "scored",
    )
    assert scored.code == 0, scored.err
    tiers = lmlab(
        "quality",
        "score",
        "buckets",
        "--in",
        tmp_path / "scored",
        "--columns",
        "dsir_average,clarity_average",
        "--out",
        tmp_path / "tiers",
    )
    assert tiers.code == 0 and "buckets_tier" in pq.read_table(tmp_path / "tiers" / "00000.parquet").column_names
    mixed = lmlab(
        "quality",
        "select",
        "--in",
        tmp_path / "rated",
        "--mode",
        "mixture",
        "--weights",
        "clarity_average=1,educational_value_average=1",
        "--tokens",
        "20%",
        "--manifest-only",
        "--out",
        tmp_path / "mixed",
    )
    assert mixed.code == 0, mixed.err


def write(tmp_path: Path, **changes: Any) -> Path:
    table = {"id": ["a", "b", "c"], "length": [5, 5, 5], "r_average": [1.0, 2.0, 4.0], **changes}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"r_average": [1.0, float("nan"), 4.0]}, (), "--drop-nonfinite"),
        ({"r_average": [1.0, 1.0, 1.0]}, (), "r_average"),
        ({}, ("--tokens", "1k"), "1,000 tokens are asked for, and the corpus has 15"),
        ({"length": [5, 0, 5]}, (), "--skip-empty"),
        ({"id": ["a", "b", "a"]}, (), "a"),
        ({}, ("--tau", "-1"), "--invert"),
        ({}, ("--tau", "nan"), "--invert"),
        ({}, ("--metric", "r_averag"), "r_average"),
        ({}, ("--tokens", "many"), "30B"),
        ({}, ("--mode", "best"), "mode"),
        ({}, ("--cap-duplicates", "id"), "NAME=NUMBER"),
    ],
)
def test_mistakes_are_one_sentence_with_a_remedy(
    changes: Any, options: Any, message: str, tmp_path: Path, lmlab: Any
) -> None:
    given = {
        "--in": write(tmp_path, **changes),
        "--metric": "r_average",
        "--mode": "sample",
        "--tokens": "6",
        "--id": "id",
        "--out": tmp_path / "out",
    }
    given |= dict(zip(options[::2], options[1::2], strict=True))
    done = lmlab("quality", "select", *(each for pair in given.items() for each in pair))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_selection_without_a_mode_is_refused(tmp_path: Path, lmlab: Any) -> None:
    done = lmlab("quality", "select", "--in", write(tmp_path), "--metric", "r_average", "--tokens", "6")
    assert done.code != 0 and "--mode" in done.err


def test_unknown_judges_and_missing_corpora_are_told(tmp_path: Path, lmlab: Any, finished: Path, folder: Path) -> None:
    done = lmlab("quality", "judge", tmp_path / "none", "--tokenizer", finished / "tokenizer", "--out", tmp_path / "o")
    assert done.code == 2 and "matches no file" in done.err
    done = lmlab(
        "quality",
        "judge",
        folder / "corpus.jsonl",
        "--tokenizer",
        finished / "tokenizer",
        "--judge",
        "oracle",
        "--out",
        tmp_path / "o",
    )
    assert done.code == 2 and "offline" in done.err
    done = lmlab(
        "quality", "annotate", folder / "corpus.jsonl", "--rater", finished / "tokenizer", "--out", tmp_path / "o"
    )
    assert done.code == 2 and "does not hold a rater" in done.err


def test_text_in_reports_is_escaped(tmp_path: Path, lmlab: Any) -> None:
    path = write(tmp_path, text=["<script>alert(1)</script> word word", "b word", "c word"])
    common = ("--in", path, "--metric", "r_average")
    assert (
        lmlab(
            "quality", "select", *common, "--mode", "top_k", "--tokens", "6", "--id", "id", "--out", tmp_path / "out"
        ).code
        == 0
    )
    assert (
        lmlab(
            "quality",
            "report",
            "--in",
            path,
            "--selection",
            tmp_path / "out",
            "--clusters",
            "2",
            "--out",
            tmp_path / "q.html",
        ).code
        == 0
    )
    assert "<script>alert(1)" not in (tmp_path / "q.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["qurating-laptop", "demo-quality", "qurating-paper"])
def test_the_recipes_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.runs import Recipe

    for needed in ("models/sheared-llama-1.3b", "slimpajama"):  # what the paper's recipe names
        (tmp_path / needed).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Recipe.load(Path(__file__).parents[3] / "recipes" / f"{name}.yaml", []).stages
