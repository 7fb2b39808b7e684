"""The whole path on a small real corpus: run, skip, resume, report."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from forked import Forked
from lmlab.files import read_json, read_jsonl
from lmlab.train import read_metrics
from small_recipes import cut_after, small_recipe


@pytest.fixture(scope="module")
def finished(forkserver, library, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe with every kind of stage, and its run, which is done."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(yaml.safe_dump(small_recipe(library), sort_keys=False))
    done = forkserver.run("run", folder / "small.yaml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "small.yaml", folder / "run"


def test_a_recipe_goes_from_text_to_report_and_is_skipped_the_second_time(lmlab, finished):
    path, out = finished
    results = read_json(out / "results.json")
    assert set(results) == {
        "documents",
        "tokenizer",
        "tokens",
        "heldout_tokens",
        "questions",
        "baselines",
        "model",
        "evaluation",
        "samples",
        "export",
        "report",
    }
    measured = results["evaluation"]["measured"]
    assert set(measured) == {"model", "untrained", "n-gram", "xz", "xz after training text"}
    assert measured["model"]["bits_per_byte"]["code"]["value"] < measured["untrained"]["bits_per_byte"]["code"]["value"]
    assert results["export"]["largest_difference"] < 1e-4
    page = (out / "report.html").read_text("utf-8")
    assert "Bits per byte" in page
    assert "argparse" in page or "Held-out groups" in page

    start = time.monotonic()
    second = lmlab("run", path, "--out", out)
    assert second.code == 0
    assert time.monotonic() - start < 10
    assert second.err.count("done before") == 11
    assert read_json(out / "results.json") == results


def test_bits_per_byte_of_an_untrained_model_are_those_of_a_uniform_guess(finished):
    _, out = finished
    rows = list(read_jsonl(out / "evaluation" / "documents-untrained.jsonl"))
    counts = read_json(out / "tokens" / "manifest.json")["counts"]["code"]
    tokens_per_byte = counts["tokens"] / counts["bytes"]
    code = [row for row in rows if row["domain"] == "code"]
    measured = sum(row["bits"] for row in code) / sum(row["bytes"] for row in code)
    assert measured == pytest.approx(math.log2(400) * tokens_per_byte, rel=0.1)


def test_changing_a_value_in_an_old_run_is_refused_until_redo(lmlab, recipe, tmp_path):
    out = tmp_path / "run"
    path = recipe(until="model")
    assert lmlab("run", path, "--out", out).code == 0
    before = (out / "model" / "metrics.jsonl").read_text()
    refused = lmlab("run", path, "--out", out, "--set", "model.trainer.steps=8")
    assert refused.code == 2
    assert "6 -> 8 steps" in refused.err
    assert "--redo" in refused.err
    assert (out / "model" / "metrics.jsonl").read_text() == before
    redone = lmlab("run", path, "--out", out, "--set", "model.trainer.steps=8", "--redo")
    assert redone.code == 0
    assert redone.err.count("done before") == 6
    assert len(read_metrics(out / "model" / "metrics.jsonl")) == 8
    assert (next((out / "superseded").iterdir()) / "metrics.jsonl").read_text() == before


STEPS = ("--set", "model.trainer.steps=120")


def _wait_for(condition, process: Forked, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.read_error()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _losses(out: Path) -> list[tuple[float, ...]]:
    return [
        (row["step"], row["loss"], row["gradient_norm"], row["learning_rate"])
        for row in read_metrics(out / "model" / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(forkserver, library, tmp_path_factory) -> Path:
    """A run to the model that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    data = cut_after(small_recipe(library), "model")
    (folder / "small.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    done = forkserver.run("run", folder / "small.yaml", "--out", folder / "run", *STEPS)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_while_training_goes_on_to_the_same_losses(forkserver, lmlab, recipe, whole, tmp_path, number):
    path, cut = recipe(until="model"), tmp_path / "cut"
    (process,) = forkserver.start("run", path, "--out", cut, *STEPS)
    _wait_for(
        lambda: (
            (cut / "model" / "checkpoints" / "step-00000010").exists()
            or len(read_metrics(cut / "model" / "metrics.jsonl")) >= 10
        ),
        process,
    )
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    assert len(_losses(cut)) < 120
    if number != signal.SIGKILL:
        assert "Run the same command again" in err
    again = lmlab("run", path, "--out", cut, *STEPS)
    assert again.code == 0, again.err
    assert _losses(cut) == _losses(whole)


@pytest.mark.parametrize("stage", ["documents", "tokens", "baselines"])
def test_ctrl_c_in_a_short_stage_keeps_the_stages_before_it(forkserver, lmlab, recipe, tmp_path, stage):
    out, path = tmp_path / "run", recipe(until="model")
    (process,) = forkserver.start("run", path, "--out", out, *STEPS)
    _wait_for(lambda: (out / stage / "stage.json").exists(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    again = lmlab("run", path, "--out", out, *STEPS)
    assert again.code == 0, again.err


@pytest.mark.parametrize("stage", ["documents", "tokens", "baselines"])
def test_a_kill_in_a_short_stage_leaves_nothing_behind(forkserver, lmlab, recipe, tmp_path, stage):
    out, path = tmp_path / "run", recipe(until="model")
    (process,) = forkserver.start("run", path, "--out", out, *STEPS)
    _wait_for(lambda: (out / stage / "stage.json").exists(), process)
    process.kill()
    process.communicate(timeout=60)
    (out / stage / ".train.jsonl.12345.tmp").write_text("half")
    (out / stage / ".step-00000001.tmp").mkdir()
    again = lmlab("run", path, "--out", out, *STEPS)
    assert again.code == 0, again.err
    assert not list(out.rglob(".*.tmp"))


def test_dry_run_prints_the_plan_and_writes_nothing(lmlab, recipe, tmp_path):
    out = tmp_path / "run"
    plan = lmlab("run", recipe(), "--out", out, "--dry-run")
    assert plan.code == 0
    text = re.sub(r"\s+", " ", plan.err)
    for word in ("parameters", "FLOP", "memory", "time"):
        assert word in text
    assert not out.exists()


def test_the_commands_work_on_a_finished_run(lmlab, finished, tmp_path):
    _, out = finished
    text = lmlab("generate", "def f(", "--model", out / "model", "--max-new-tokens", "5", "--temperature", "0")
    assert text.code == 0
    assert text.out.startswith("def f(")
    assert (
        lmlab("generate", "def f(", "--model", out / "model", "--max-new-tokens", "5", "--temperature", "0").out
        == text.out
    )
    measured = lmlab(
        "eval",
        "--model",
        out / "model",
        "--documents",
        out / "documents",
        "--task",
        out / "questions" / "task.jsonl",
        "--out",
        tmp_path / "eval",
    )
    assert measured.code == 0, measured.err
    again = json.loads((tmp_path / "eval" / "results.json").read_text())["evaluation"]["measured"]["model"][
        "bits_per_byte"
    ]
    assert again == read_json(out / "results.json")["evaluation"]["measured"]["model"]["bits_per_byte"]
    (out / "report.html").unlink()
    assert lmlab("report", out).code == 0
    assert (out / "report.html").exists()
    assert lmlab("doctor").code == 0


def test_train_and_tokenize_work_without_a_recipe(lmlab, library, tmp_path):
    out = tmp_path / "tokens"
    done = lmlab(
        "tokenize", library / "*.py", "--vocab-size", "300", "--out", out, "--set", "documents.heldout_fraction=0.3"
    )
    assert done.code == 0, done.err
    config = tmp_path / "train.yaml"
    config.write_text(
        f"tokens: {out}/tokens\ntokenizer: {out}/tokenizer\nseq_len: 32\nmodel: {{vocab_size: 300, num_layers: 1,"
        " d_model: 16, num_heads: 1}\ntrainer: {steps: 2, batch_size: 2, precision: fp32}\n"
    )
    trained = lmlab("train", config, "--out", tmp_path / "trained", "--set", "trainer.steps=3")
    assert trained.code == 0, trained.err
    assert read_json(tmp_path / "trained" / "results.json")["model"]["steps"] == 3
    assert (tmp_path / "trained" / "model" / "model" / "config.json").exists()


def test_stages_of_one_kind_are_told_apart_in_the_report(lmlab, recipe, tmp_path):
    def change(data):
        stages = data["stages"]
        stages["others"] = stages["documents"] | {"heldout_fraction": 0.5}
        stages["report"] = {"kind": "report"}

    assert lmlab("run", recipe(change, until="documents"), "--out", tmp_path / "run").code == 0
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert ">Data: documents<" in page and ">Data: others<" in page and ">Data<" not in page
    glance = page[page.index("At a glance</h2>") : page.index(">Data: documents</h2>")]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", glance)
    assert cells[:3] == ["collect", "Training text", "documents"] and cells[4] == "others" and len(cells) == 6


@pytest.mark.parametrize("command", ["demo", "run", "tokenize", "train", "eval", "generate", "report", "doctor"])
def test_every_help_shows_an_example(lmlab, command):
    shown = lmlab(command, "--help")
    assert shown.code == 0
    assert f"lmlab {command}" in shown.out.split("Example")[1]


def test_a_report_needs_neither_the_sources_nor_the_directory_that_the_run_was_started_from(
    lmlab, recipe, library, tmp_path, monkeypatch
):
    source = shutil.copytree(library, tmp_path / "start" / "library")
    monkeypatch.chdir(source.parent)

    def only_text(data):
        stages = {name: data["stages"][name] for name in ("documents", "tokenizer", "tokens")}
        stages["documents"]["sources"] = [{"kind": "text", "path": "library/*.py", "domain": "[/bad] :smile: \x1b[2J"}]
        data["stages"] = stages | {"report": {"kind": "report", "title": "The report"}}

    path, out = recipe(only_text), tmp_path / "run"
    assert lmlab("run", path, "--out", out).code == 0
    for file in source.iterdir():
        os.utime(file)
    again = lmlab("run", path, "--out", out)
    assert again.code == 0 and again.err.count("done before") == 4
    assert "[/bad] :smile: [2J" in (out / "report.html").read_text("utf-8").replace("\x1b", "")
    shutil.rmtree(source)
    monkeypatch.chdir(tmp_path)
    (out / "report.html").unlink()
    assert lmlab("report", out).code == 0
    assert "The report" in (out / "report.html").read_text("utf-8")


def test_a_run_keeps_no_secrets(lmlab, recipe, tmp_path):
    def with_secret(key):
        def change(data):
            stages = {name: data["stages"][name] for name in ("documents", "tokenizer", "tokens")}
            stages["documents"]["sources"][0]["tests"] = False
            title = f"Of s3://me:{key}@bucket/x"
            data["stages"] = stages | {"report": {"kind": "report", "title": title}}
            data["description"] = f"What https://host/x?X-Amz-Signature={key}&n=3 has."

        return change

    out, secret = tmp_path / "run", "sEcr3t-of-mine"
    first = lmlab("run", recipe(with_secret(secret)), "--out", out)
    assert first.code == 0, first.err
    assert not [path.name for path in out.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert "***@" in (out / "recipe.yaml").read_text() and "***@" in (out / "report.html").read_text("utf-8")
    again = lmlab("run", recipe(with_secret("another")), "--out", out)  # a new key is no new configuration
    assert again.code == 0 and again.err.count("done before") == 4


def test_a_stored_recipe_whose_source_had_secrets_asks_for_them(lmlab, recipe, tmp_path):
    def change(data):
        data["stages"] = {"documents": data["stages"]["documents"]}
        data["stages"]["documents"]["sources"] = [{"kind": "text", "path": "s3://***@bucket/x.txt"}]

    found = lmlab("run", recipe(change), "--out", tmp_path / "run")
    assert found.code == 2 and "stored without its secrets" in found.err and "environment" in found.err
