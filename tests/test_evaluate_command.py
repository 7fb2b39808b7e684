"""`lmlab eval` as a user meets it: tables, rows, kills, workers, comparisons, mistakes."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.evals import read_rows
from lmlab.files import read_json
from lmlab.models import ModelConfig, Transformer, save_pretrained

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "log", "red", "blue", "ran", "over", "under", "house", "tree"]


def sentence(generator, length):
    return " ".join(generator.choice(WORDS) for _ in range(length))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models with one tokenizer, and a task with its YAML file."""
    directory = tmp_path_factory.mktemp("eval")
    generator = random.Random(0)
    tokenizer = Tokenizer.train([sentence(generator, 200) for _ in range(20)], 300)
    for name, seed in (("first", 1), ("second", 2)):
        model = Transformer(
            ModelConfig(vocab_size=300, num_layers=2, d_model=64, num_heads=2, max_seq_len=128)
        ).initialize(seed)
        save_pretrained(model, directory / name)
        tokenizer.save(directory / name, 128)
    with (directory / "task.jsonl").open("w") as file:
        for number in range(400):
            question = {
                "id": f"q{number}",
                "context": f"{sentence(generator, 20)} {number}:",
                "options": [f" {sentence(generator, 3)}" for _ in range(4)],
                "gold": number % 4,
                "domain": ("odd", "even")[number % 2],
            }
            file.write(json.dumps(question) + "\n")
    (directory / "words.yaml").write_text("name: words\ntitle: Words\nrequests: task.jsonl\nlicense: CC0\n")
    return directory


def command(place, model="first", *further):
    return ["eval", "--model", place / model, "--tasks", place / "words.yaml", "--precision", "fp32", *further]


def rows_of(run):
    return list(read_rows([run / "evaluation" / "tasks" / "words.jsonl"]))


def test_a_task_of_the_users_is_measured_without_code(lmlab, place, tmp_path):
    done = lmlab(*command(place, "first", "--out", tmp_path / "run"))
    assert done.code == 0, done.err
    assert "words" in done.out and "25.0 %" in done.out and "±" in done.out
    rows = rows_of(tmp_path / "run")
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(400)]
    assert set(rows[0]) == {"id", "domain", "gold", "log_probs", "tokens", "characters", "bytes", "greedy"}
    found = read_json(tmp_path / "run" / "results.json")["evaluation"]["tasks"]["words"]
    assert found["questions"] == found["figures"]["accuracy"]["count"] == 400
    assert found["domains"]["odd"]["count"] == 200
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Benchmarks" in page and "words by domain" in page


def test_a_killed_evaluation_loses_no_row(forkserver, place, tmp_path, lmlab):
    run = tmp_path / "run"
    part = run / "evaluation" / "tasks" / "words.part-0.jsonl"
    kept = 0
    for kill in range(3):
        (process,) = forkserver.start(*command(place, "first", "--out", run))
        deadline = time.monotonic() + 120
        while (
            time.monotonic() < deadline
            and process.poll() is None
            and (not part.exists() or part.read_bytes().count(b"\n") < kept + 20)
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not part.exists():  # it was faster than the kill
            break
        now = part.read_bytes().count(b"\n")
        assert now >= kept, f"kill {kill} lost rows"
        kept = now
        with part.open("ab") as file:
            file.write(b'{"id": "q399", "gol')  # as if the kill had come within a write
    before = {row["id"]: row for row in read_rows([part])} if part.exists() else {}
    assert lmlab(*command(place, "first", "--out", run)).code == 0
    rows = {row["id"]: row for row in rows_of(run)}
    assert len(rows) == 400
    assert all(rows[id] == row for id, row in before.items())
    assert not list(part.parent.glob("*.part-*"))
    assert lmlab(*command(place, "first", "--out", tmp_path / "whole")).code == 0
    for row in rows_of(tmp_path / "whole"):
        assert row["log_probs"] == pytest.approx(rows[row["id"]]["log_probs"], abs=1e-5)


def test_workers_give_the_same_rows_and_may_change_between_attempts(lmlab, place, tmp_path):
    assert lmlab(*command(place, "first", "--out", tmp_path / "one")).code == 0
    done = lmlab(*command(place, "first", "--workers", "2", "--out", tmp_path / "two"))
    assert done.code == 0, done.err
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert one["id"] == two["id"]
        assert one["log_probs"] == pytest.approx(two["log_probs"], abs=1e-5)
    done = lmlab(*command(place, "first", "--workers", "1", "--out", tmp_path / "two"))
    assert (done.code, "[1/2] evaluation" in done.err) == (0, True)


@pytest.mark.slow
def test_a_cluster_gives_the_same_rows(lmlab, place, tmp_path):
    pytest.importorskip("ray")
    assert lmlab(*command(place, "first", "--out", tmp_path / "one")).code == 0
    done = lmlab(*command(place, "first", "--workers", "2", "--backend", "ray", "--out", tmp_path / "two"))
    assert done.code == 0, done.err
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert one["log_probs"] == pytest.approx(two["log_probs"], abs=1e-5)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_processes_of_a_job_share_the_questions(forkserver, lmlab, place, tmp_path):
    assert lmlab(*command(place, "first", "--out", tmp_path / "one")).code == 0
    done = forkserver.run(*command(place, "first", "--out", tmp_path / "two"), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert one["log_probs"] == pytest.approx(two["log_probs"], abs=1e-5)


def test_two_models_are_compared_question_by_question(lmlab, place, tmp_path):
    for name in ("first", "second"):
        assert lmlab(*command(place, name, "--out", tmp_path / name)).code == 0
    done = lmlab("eval", "compare", tmp_path / "first", tmp_path / "second", "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "words" in done.out and "accuracy" in done.out
    assert "McNemar" in (tmp_path / "page.html").read_text()
    both = ["--model", place / "first", "--model", place / "second"]
    done = lmlab("eval", *both, "--tasks", place / "words.yaml", "--precision", "fp32", "--out", tmp_path / "both")
    assert done.code == 0, done.err
    assert done.out.count("words") == 2 and str(place / "second") in done.out
    stages = lmlab("eval", "compare", tmp_path / "both" / "evaluation-1", tmp_path / "both" / "evaluation-2")
    assert (
        stages.out.splitlines()[1:]
        == lmlab("eval", "compare", tmp_path / "first", tmp_path / "second").out.splitlines()[1:]
    )
    same = lmlab("eval", "compare", tmp_path / "first", tmp_path / "first")
    assert "1.000" in same.out


def test_what_cannot_be_compared_is_told(lmlab, place, tmp_path):
    assert lmlab(*command(place, "first", "--limit", "50", "--out", tmp_path / "some")).code == 0
    assert lmlab(*command(place, "first", "--out", tmp_path / "all")).code == 0
    assert "0 / 350" in lmlab("eval", "compare", tmp_path / "some", tmp_path / "all").out
    both = ["--model", place / "first", "--model", place / "second", "--limit", "5"]
    assert lmlab("eval", *both, "--tasks", place / "words.yaml", "--out", tmp_path / "both").code == 0
    done = lmlab("eval", "compare", tmp_path / "both", tmp_path / "all")
    assert (done.code, "holds several evaluations" in done.err) == (2, True)
    (tmp_path / "task.jsonl").write_text((place / "task.jsonl").read_text())
    (tmp_path / "words.yaml").write_text((place / "words.yaml").read_text() + "normalization: none\n")
    assert lmlab(*command(tmp_path, place / "first", "--out", tmp_path / "other")).code == 0
    done = lmlab("eval", "compare", tmp_path / "all", tmp_path / "other")
    assert (done.code, "was measured in two ways" in done.err) == (2, True)


def test_questions_with_one_option_have_bits_and_no_accuracy(lmlab, place, tmp_path):
    (tmp_path / "task.jsonl").write_text(
        json.dumps({"id": "a", "context": "the cat", "options": [" sat on the mat"], "gold": 0}) + "\n"
    )
    (tmp_path / "words.yaml").write_text("name: words\nrequests: task.jsonl\n")
    done = lmlab(*command(tmp_path, place / "first", "--out", tmp_path / "run"))
    assert done.code == 0, done.err
    assert "bits per byte" in done.out
    done = lmlab("eval", "--model", place / "first", "--task", tmp_path / "task.jsonl", "--out", tmp_path / "file")
    assert (done.code, "no question has several options" in done.err) == (2, True)
    (tmp_path / "words.yaml").write_text("name: words\nrequests: task.jsonl\nmetric: accuracy\n")
    done = lmlab(*command(tmp_path, place / "first", "--out", tmp_path / "again"))
    assert (done.code, "one option alone" in done.err) == (2, True)


def test_another_way_to_measure_is_a_changed_task(lmlab, place, tmp_path):
    (tmp_path / "task.jsonl").write_text((place / "task.jsonl").read_text())
    (tmp_path / "words.yaml").write_text((place / "words.yaml").read_text())
    arguments = command(tmp_path, place / "first", "--limit", "5", "--out", tmp_path / "run")
    assert lmlab(*arguments).code == 0
    with (tmp_path / "words.yaml").open("a") as file:
        file.write("normalization: none\n")
    done = lmlab(*arguments)
    assert (done.code, "has changed" in done.err) == (2, True)


def test_a_limit_takes_fewer_questions(lmlab, place, tmp_path):
    assert lmlab(*command(place, "first", "--limit", "10", "--out", tmp_path / "run")).code == 0
    assert [row["id"] for row in rows_of(tmp_path / "run")] == [f"q{number}" for number in range(0, 400, 40)]


def test_the_policy_for_long_questions_is_counted_in_the_result(lmlab, place, tmp_path):
    (tmp_path / "task.jsonl").write_text(
        json.dumps({"id": "endless", "context": "the cat " * 200, "options": [" sat", " ran"], "gold": 0})
        + "\n"
        + json.dumps({"id": "short", "context": "the cat", "options": [" sat", " ran"], "gold": 0})
        + "\n"
    )
    (tmp_path / "long.yaml").write_text("name: long\nrequests: task.jsonl\n")
    arguments = ["eval", "--model", place / "first", "--tasks", tmp_path / "long.yaml", "--precision", "fp32"]
    done = lmlab(*arguments, "--out", tmp_path / "a")
    assert (done.code, "Question 'endless' has" in done.err, "truncate" in done.err) == (2, True, True)
    for policy, counted in (("truncate", "truncated"), ("skip", "skipped")):
        done = lmlab(*arguments, "--too-long", policy, "--out", tmp_path / policy)
        assert done.code == 0, done.err
        assert f"1 {counted}" in done.out
        assert read_json(tmp_path / policy / "results.json")["evaluation"]["tasks"]["long"][counted] == 1
        assert f"1 {counted}" in (tmp_path / policy / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "words.yaml"], "Nothing to measure"),
        (["--model", "MODEL"], "Give --tasks"),
        (["--model", "MODEL", "--tasks", "nothing.yaml"], "nothing.yaml"),
        (["--model", "nowhere", "--tasks", "TASK"], "nowhere"),
        (["--model", "MODEL", "--tasks", "TASK", "--too-long", "shorten"], "too_long"),
        (["--model", "MODEL", "--tasks", "TASK", "--precision", "fp8"], "precision"),
        (["compare", "nowhere", "elsewhere"], "'nowhere' is not the directory of a finished evaluation"),
    ],
)
def test_mistakes_are_one_sentence(lmlab, place, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": place / "first", "TASK": place / "words.yaml"}
    done = lmlab("eval", *[known.get(each, each) for each in arguments])
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_changed_task_file_is_noticed(lmlab, place, tmp_path):
    (tmp_path / "task.jsonl").write_text((place / "task.jsonl").read_text())
    (tmp_path / "words.yaml").write_text((place / "words.yaml").read_text())
    assert lmlab(*command(tmp_path, place / "first", "--limit", "5", "--out", tmp_path / "run")).code == 0
    with (tmp_path / "task.jsonl").open("a") as file:
        file.write('{"id": "new", "context": "the", "options": [" a", " cat"], "gold": 0}\n')
    done = lmlab(*command(tmp_path, place / "first", "--limit", "5", "--out", tmp_path / "run"))
    assert done.code == 2 and "has changed" in done.err
