"""Summaries by claims and answers by the expected ones, as a judge says them; scores by hand."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from lmlab.data import Tokenizer
from lmlab.evals.long import (
    Asking,
    LongSettings,
    Written,
    build_instances,
    header_of,
    measure_written,
    read_instances,
    run_suite,
    write_instances,
)
from lmlab.evals.long.texts import passages
from lmlab.evals.tasks import olmes
from lmlab.files import read_json
from lmlab.methods.prolong.judged import judged_score

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")
OUTPUT = "We propose a model. It fails on the moon. Nothing else is said."


class _Writer:
    max_seq_len = None

    def write(self, instances, contexts):
        return [Written(OUTPUT if each.task == "summ" else each.answer[0]) for each in instances]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    asking = Asking(Tokenizer.train((passage.text for passage in passages()[:100]), 800))
    settings = LongSettings(tasks=["summ", "rag"], lengths=[900], contexts=2, questions=1)
    path = tmp_path_factory.mktemp("measured") / "instances.jsonl"
    write_instances(path, header_of(asking, settings), build_instances(asking, settings))
    out = path.parent / "out"
    run_suite(
        read_instances(path),
        lambda group: measure_written(_Writer(), group, controls=False),
        out,
        model="w",
        mode="generate",
        max_seq_len=None,
    )
    return out


@pytest.fixture
def measured(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path / "out"))


def test_scores_are_those_of_helmet():
    assert judged_score({"fluency": 1, "correctness": 2 / 3}, summary=False) == pytest.approx(2 / 3)
    assert judged_score({"fluency": 0}, summary=False) == judged_score({"fluency": 0}, summary=True) == 0
    assert judged_score({"fluency": 1, "recall": 0.5, "precision": 1.0}, summary=True) == pytest.approx(2 / 3)
    assert judged_score({"recall": 0.0, "precision": 0.0}, summary=True) == 0
    # a grade that is missing is none, and never the lowest one
    assert judged_score({"fluency": 1, "recall": 0.5, "precision": None}, summary=True) is None
    assert judged_score({"fluency": None, "correctness": 1.0}, summary=False) is None


def test_a_judge_that_is_asked_says_fluency_claims_and_correctness(measured, lmlab, tmp_path):
    script = [
        {"match": "Assess only whether its text can be read", "text": "FLUENCY:\nfine\nGRADE: 1/1"},
        {"match": "Assess an answer by the expected answers", "text": "CORRECTNESS:\nnearly\nGRADE: 2/3"},
        # claims of the summary are shown one by one; those of the abstract stand beside the whole summary
        {"match": r"(?s)The claim:\W+It fails on the moon", "text": "VERDICT: contradicted"},
        {"match": r"(?s)The claim:\W+We propose a model", "text": "VERDICT: met"},
        {"match": r"(?s)The claim:\W+Nothing else is said", "text": "VERDICT: met"},
        {"text": "VERDICT: met"},
    ]
    path = tmp_path / "script.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in script))
    how = ("--judge", "mock:script", "--replies", path, "--task", "summ", "--task", "rag")
    done = lmlab("long", "judge", measured, *how)
    assert done.code == 0, done.err
    found = read_json(measured / "judged.json")
    cell = found["tasks"]["rag"]["900"]
    page = (measured / "report.html").read_text()
    assert "Judged" in page and "reader-points-v1" in page
    assert (cell["fluency"], cell["correctness"], cell["graded"]) == (1, pytest.approx(2 / 3), 2)
    assert cell["score"] == pytest.approx(2 / 3)
    summary = found["tasks"]["summ"]["900"]
    assert summary["precision"] == pytest.approx(1 / 3)  # two of three claims are borne out, and one contradicted
    assert summary["recall"] == 1 and summary["score"] == pytest.approx(0.5)
    before = (measured / "judged" / "recall" / "grades.jsonl").read_bytes()
    assert lmlab("long", "judge", measured, *how).code == 0
    assert (measured / "judged" / "recall" / "grades.jsonl").read_bytes() == before
    other = lmlab("long", "judge", measured, "--judge", "coverage")
    assert other.code == 2 and "holds grades by mock:script" in other.err


def test_a_judge_without_words_gives_no_fluency_and_unreadable_replies_no_grade(measured, lmlab, tmp_path):
    assert lmlab("long", "judge", measured, "--judge", "coverage").code == 0
    cell = read_json(measured / "judged.json")["tasks"]["summ"]["900"]
    assert cell["fluency"] is None and 0 < cell["recall"] <= 1 and cell["graded"] == 2
    path = tmp_path / "script.jsonl"
    path.write_text(json.dumps({"text": "I give no grade."}) + "\n")
    done = lmlab("long", "judge", measured, "--judge", "mock:x", "--replies", path, "--reasks", "0", "--new-run")
    assert done.code == 0
    cell = read_json(measured / "judged.json")["tasks"]["summ"]["900"]
    assert cell["graded"] == 0 and "score" not in cell
    refused = lmlab("long", "judge", measured, "--task", "longqa")
    assert refused.code == 2 and "has no answers of longqa" in refused.err


def test_the_ceiling_of_the_cost_holds_for_all_parts_together(measured, lmlab, tmp_path):
    path = tmp_path / "script.jsonl"
    script = [{"match": "The claim:", "text": "VERDICT: met"}, {"text": "FLUENCY:\nfine\nGRADE: 1/1"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in script))
    again = shutil.copytree(measured, tmp_path / "again")
    how = ("--judge", "mock:script", "--replies", path, "--price", "1000,0")
    done = lmlab("long", "judge", measured, *how)
    assert done.code == 0, done.err
    with contextlib.closing(sqlite3.connect(measured / "judged" / "replies.sqlite")) as known:
        paid = known.execute("select sum(cost_usd) from replies").fetchone()[0]
    assert paid > 0
    # each part alone costs less than this, and replies, which are set aside at their longest, cost nothing
    short = lmlab("long", "judge", again, *how, "--max-cost-usd", str(0.9 * paid))
    assert short.code != 0 and "max_cost_usd" in short.err, short.err
