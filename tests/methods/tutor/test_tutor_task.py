"""`tutoreval` is a task of the evaluator like any other: by file, by name of its kind, resumable, comparable."""

from __future__ import annotations

import json

import pytest
import yaml

from lmlab.errors import UserError
from lmlab.evals import Evaluator, Settings, find_tasks, make_task, own_texts, run_task, task_figures, task_summary


def task(questions, script, **fields):
    return make_task(
        {
            "name": "own",
            "kind": "tutoreval",
            "requests": str(questions),
            "format": "plain",
            "max_new_tokens": 8,
            "judge": ["mock:j"],
            "endpoint": {"replies": str(script)},
            **fields,
        }
    )


@pytest.fixture(scope="module")
def evaluator(tutor):
    return Evaluator.load(str(tutor), "cpu", "fp32")


def test_rows_carry_grades_and_the_error_is_over_chapters(evaluator, questions, judge_script, tmp_path):
    made = task(questions, judge_script)
    rows = run_task(evaluator, made, Settings(), tmp_path / "rows.jsonl")
    assert [row["id"] for row in rows] == [item.id for item in made.items()] and len(rows) == 12
    known = {"1": 1.5, "4": 1.5, "7": 1.5, "2": 3.0, "5": 3.0}
    for row in rows:
        number = row["question"].split()[-1].rstrip("?")
        assert row["grades"]["correctness"] == known.get(number, 2.0) and not row.get("skipped")
    figures = task_figures(made, rows)
    mean = sum(known.get(str(n), 2.0) for n in range(12)) / 12 / 3
    assert figures["score"].value == pytest.approx(mean) and figures["score"].count == 12
    chapters = [sum(known.get(str(n), 2.0) / 3 for n in range(3 * of, 3 * of + 3)) / 3 for of in range(4)]
    middle = sum(chapters) / 4
    expected = (sum((each - middle) ** 2 for each in chapters) / 16) ** 0.5  # of the mean of four drawn chapters
    assert figures["score"].standard_error == pytest.approx(expected, rel=0.1)
    told = task_summary(made, rows)
    assert told["further"]["breakdowns"]["domain"].keys() == {"physics", "biology"}
    assert json.loads(json.dumps(told))["judge"] == ["mock:j"]


def test_an_unreadable_grade_is_skipped_and_no_zero(evaluator, questions, tmp_path):
    script = tmp_path / "bad.jsonl"
    lines = [
        {"match": r"said of 3\?", "text": "I would rather not say."},
        {"match": "What is said", "text": "PRESENTATION: GRADE: 3/3\nCORRECTNESS: GRADE: 3/3"},
        {"match": "", "text": "No, thank you."},
    ]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = task(questions, script)
    rows = run_task(evaluator, made, Settings(), tmp_path / "rows.jsonl")
    assert [row["question"] for row in rows if row.get("skipped")] == ["What is said of 3?"]
    assert task_figures(made, rows)["score"].value == 1 and task_summary(made, rows)["skipped"] == 1


def test_what_an_endpoint_owes_is_asked_for_again(evaluator, questions, tmp_path):
    script = tmp_path / "part.jsonl"
    grades = "PRESENTATION: GRADE: 3/3\nCORRECTNESS: GRADE: 3/3"
    script.write_text(json.dumps({"match": r"said of (?!3\?)", "text": grades}) + "\n")
    made = task(questions, script)
    with pytest.raises(UserError, match="1 answer has no grade"):
        run_task(evaluator, made, Settings(), tmp_path / "rows.jsonl")
    script.write_text(json.dumps({"match": "", "text": grades}) + "\n")
    rows = run_task(evaluator, made, Settings(), tmp_path / "rows.jsonl")
    assert len(rows) == 12 and not any(row.get("skipped") for row in rows)


def test_a_question_that_does_not_fit(evaluator, questions, judge_script, tmp_path):
    made = task(questions, judge_script, max_new_tokens=1023)
    with pytest.raises(UserError, match="ContextOverflow"):
        run_task(evaluator, made, Settings(), tmp_path / "rows.jsonl")
    rows = run_task(evaluator, made, Settings(too_long="skip"), tmp_path / "other.jsonl")
    assert all(row["skipped"] for row in rows) and task_figures(made, rows) == {}


def test_by_kind_and_file_on_the_command_line(lmlab, tutor, questions, judge_script, tmp_path):
    (task_found,) = find_tasks([f"tutoreval_closedbook:{questions}"])
    assert task_found.book == "closed" and task_found.name == "tutoreval_closedbook-questions"
    assert len(task_found.items()) == 6
    assert any("point 3" in text for _, text in own_texts(find_tasks([f"tutoreval:{questions}"])[0]))
    with pytest.raises(UserError, match="is a kind of task, and needs a file"):
        find_tasks(["tutoreval"])
    with pytest.raises(UserError, match="do not exist|does not exist"):
        find_tasks(["tutoreval:nowhere.jsonl"])
    fields = {"name": "own", "kind": "tutoreval", "requests": str(questions), "format": "plain", "max_new_tokens": 8}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(fields | {"judge": ["mock:j"], "endpoint": {"replies": str(judge_script)}}))
    out = tmp_path / "run"
    told = lmlab("eval", "--model", tutor, "--model", tutor, "--tasks", path, "--precision", "fp32", "--out", out)
    assert told.code == 0, told.err
    assert "score" in told.out and "biology" in (out / "report.html").read_text()
    compared = lmlab("eval", "compare", out / "evaluation-1", out / "evaluation-2")
    assert compared.code == 0 and "+0.000" in compared.out
