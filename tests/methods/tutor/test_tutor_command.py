"""`lmlab tutor`: from questions to a report, and the same again for nothing."""

from __future__ import annotations

import json
import re
import socket

import pytest
from tutor_questions import question

from lmlab.judging.rubrics.forms import reminder

SHORT = ("--max-new-tokens", "8", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_from_questions_to_a_report_and_again_for_nothing(lmlab, tutor, questions, judge_script, tmp_path, no_network):
    out = tmp_path / "run"
    done = lmlab("tutor", "generate", "--model", tutor, "--data", questions, "--out", out, *SHORT)
    assert done.code == 0, done.err
    grade = ("tutor", "grade", out, "--judge", "mock:script", "--replies", judge_script)
    told = lmlab(*grade)
    assert told.code == 0, told.err
    report = json.loads((out / "report.json").read_text())
    grades = {1: 1.5, 4: 1.5, 7: 1.5, 2: 3, 5: 3}
    expected = sum(grades.get(n, 2) for n in range(12)) / 12 * 100 / 3
    assert report["total"]["value"] == pytest.approx(expected) and report["n_graded"] == 12
    before = {name: (out / name).read_bytes() for name in ("report.json", "report.html", "answers.jsonl")}
    assert lmlab("tutor", "generate", "--model", tutor, "--data", questions, "--out", out, *SHORT).code == 0
    again = lmlab(*grade)
    assert again.code == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    dry = lmlab(*grade, "--dry-run")
    assert "12 requests, 12 of them answered already" in dry.out


def test_unreadable_grades_are_counted_and_end_with_code_3(lmlab, tutor, questions, tmp_path):
    out = tmp_path / "run"
    lmlab("tutor", "generate", "--model", tutor, "--data", questions, "--out", out, *SHORT)
    script = tmp_path / "bad.jsonl"
    rows = [
        {"match": r"of 3\?", "text": "no grade at all"},
        {"match": re.escape(reminder("grades")), "text": "nor now"},
    ]
    rows += [{"match": "", "text": "PRESENTATION: GRADE: 1/3\nCORRECTNESS: GRADE: 3/3"}]
    script.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = lmlab("tutor", "grade", out, "--judge", "mock:x", "--replies", script)
    report = json.loads((out / "report.json").read_text())
    assert (told.code, report["n_ungraded"], report["total"]["value"]) == (3, 1, pytest.approx(100))
    assert report["total_ungraded_as_zero"] == pytest.approx(100 * 11 / 12)
    assert lmlab("tutor", "grade", out, "--judge", "mock:other", "--replies", script).code == 2
    assert lmlab("tutor", "grade", out, "--judge", "mock:other", "--replies", script, "--new-run").code in (0, 3)


def test_all_key_points_reach_the_judge_as_bullets(tutor, questions, tmp_path):
    from lmlab.endpoints import Endpoint, MockBackend
    from lmlab.judging import Asking, GradingRubric, RubricJudge
    from lmlab.methods.tutor.answering.run import answer_locally
    from lmlab.methods.tutor.config import AnswerConfig
    from lmlab.methods.tutor.items.item import load_items
    from lmlab.methods.tutor.scoring.grade import grade_run, keep_items

    items = load_items(questions)
    keep_items(items, tmp_path / "run")
    answer_locally(str(tutor), items, AnswerConfig(max_new_tokens=4, precision="fp32"), tmp_path / "run")
    seen = []

    def answer(request):
        seen.append(request.messages[-1]["content"])
        return "PRESENTATION: GRADE: 1/3\nCORRECTNESS: GRADE: 1/3"

    endpoint = Endpoint(model="x", backend="mock", replies=questions)
    judge = RubricJudge(GradingRubric.load("tutoreval-v1"), endpoint, Asking(), None, MockBackend(answer))
    grade_run(tmp_path / "run", judge)
    for number, item in enumerate(items):
        shown = [text for text in seen if item.question in text]
        assert any(f"- point {number}\n- it shines" in text for text in shown)


def test_two_tutors_are_compared_and_a_page_is_written(lmlab, tutor, questions, judge_script, tmp_path):
    for name in ("a", "b"):
        lmlab("tutor", "generate", "--model", tutor, "--data", questions, "--out", tmp_path / name, *SHORT)
        lmlab("tutor", "grade", tmp_path / name, "--judge", "mock:s", "--replies", judge_script)
    told = lmlab("tutor", "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "two.html")
    assert told.code == 0 and "no difference is shown" in told.out and (tmp_path / "two.html").exists()
    assert "At equal length: +0.0 points" in told.out
    exported = lmlab("tutor", "export", tmp_path / "a", "--out", tmp_path / "generations")
    assert exported.code == 0, exported.err
    (file,) = (tmp_path / "generations" / "openbook").rglob("*.json")
    assert json.loads(file.read_text())[0]["correctness"] == 2.0
    assert lmlab("tutor", "import", file, "--out", tmp_path / "back").code == 0
    votes = tmp_path / "votes.jsonl"
    votes.write_text('{"match": "", "text": "A"}\n')
    ranked = ("tutor", "rank", tmp_path / "a", tmp_path / "b", "--judge", "mock:first", "--mode", "votes",
              "--generations", "1", "--replies", votes, "--out", tmp_path / "ranked")  # fmt: skip
    assert "0 pairs of answers" in lmlab(*ranked, "--dry-run").out  # all their answers are equal
    told = lmlab(*ranked)
    assert told.code == 0 and "1. " in told.out and "+0.00" in told.out, told.err
    report = json.loads((tmp_path / "ranked" / "report.json").read_text())
    assert report["pairs"][0]["by_rule"] == 12 and (tmp_path / "ranked" / "report.html").exists()
    assert lmlab("tutor", "rank", tmp_path / "a", "--judge", "mock:x", "--out", tmp_path / "r").code == 2
    assert lmlab("tutor", "report", tmp_path / "back").code == 0


@pytest.mark.parametrize("arguments", [("grade", "nowhere"), ("report", "nowhere"), ("compare", "a", "b")])
def test_a_folder_without_answers_is_refused(lmlab, tmp_path, arguments):
    told = lmlab("tutor", arguments[0], *(tmp_path / each for each in arguments[1:]))
    assert told.code == 2 and "Traceback" not in told.err


def test_offline_judges_need_nobody_and_prices_are_read_before_anything_is_asked(
    lmlab, tutor, questions, tmp_path, no_network
):
    out = tmp_path / "run"
    lmlab("tutor", "generate", "--model", tutor, "--data", questions, "--out", out, *SHORT)
    likely = lmlab("tutor", "grade", out, "--judge", f"likelihood:{tutor}")
    assert likely.code == 0, likely.err
    report = (out / "report.json").read_bytes()
    assert lmlab("tutor", "grade", out, "--judge", f"likelihood:{tutor}").code == 0
    assert (out / "report.json").read_bytes() == report and json.loads(report)["n_graded"] == 12
    prices = tmp_path / "prices.yaml"
    for text in ("x: {prompt: .nan, completion: 1}", "x: {prompt: -1, completion: 1}", "x: cheap"):
        prices.write_text(text)
        told = lmlab("tutor", "grade", out, "--judge", "openai:x", "--prices", prices, "--new-run")
        assert told.code == 2 and "BadPriceTable" in told.err
    told = lmlab("tutor", "grade", out, "--judge", "openai:x", "--base-url", "http://u:s3cret@h/v1", "--new-run")
    assert told.code == 2 and "holds a secret" in told.err and "s3cret" not in told.err


def test_what_must_not_be_sent_is_not(tutor, questions, tmp_path):
    from lmlab.endpoints import Endpoint, MockBackend
    from lmlab.methods.tutor.answering.run import answer_by_endpoint
    from lmlab.methods.tutor.config import AnswerConfig
    from lmlab.methods.tutor.items.item import load_items

    seen = []

    def answer(request):
        seen.append(request.messages[-1]["content"])
        return "fine"

    endpoint = Endpoint(model="x", backend="mock", replies=questions)
    config = AnswerConfig(max_new_tokens=4)
    rows = answer_by_endpoint(
        endpoint, load_items(questions), config, tmp_path / "api", MockBackend(answer), (r"star \d",)
    )
    assert len(rows) == 12 and all("[redacted] shines" in text and "star 1" not in text for text in seen)
    again = len(seen)
    answer_by_endpoint(endpoint, load_items(questions), config, tmp_path / "api", MockBackend(answer), (r"star \d",))
    assert len(seen) == again


def test_a_tutor_that_judges_itself_and_questions_that_are_there_twice_are_told(lmlab, questions, tmp_path):
    lines = questions.read_text().splitlines()[:3]
    questions.write_text("\n".join([*lines, lines[0]]) + "\n")
    script, out = tmp_path / "script.jsonl", tmp_path / "run"
    script.write_text(json.dumps({"match": "", "text": "PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 1/3"}) + "\n")
    who = ("--replies", script)
    assert lmlab("tutor", "generate", "--model", "mock:same", "--data", questions, "--out", out, *who).code == 0
    told = lmlab("tutor", "grade", out, "--judge", "mock:same", *who)
    report = json.loads((out / "report.json").read_text())
    assert told.code == 0 and "self_judging" in told.err
    assert (report["n"], report["n_graded"]) == (4, 4)
    assert any("1 question is there more than once" in each for each in report["warnings"]), report["warnings"]
    rows = [json.loads(line) for line in next((out / "grades").glob("*.jsonl")).read_text().splitlines()]
    assert rows[0]["grades"] == rows[3]["grades"] and rows[0]["id"] == rows[3]["id"]
    assert "6 replies" in lmlab("judge", "cache-stats", out).out  # three answers and their grades
    for name in ("own", "other"):
        assert lmlab("tutor", "generate", "--model", f"mock:{name}", "--data", questions, "--out", tmp_path / name,
                     *who).code == 0  # fmt: skip
    told = lmlab("tutor", "compare", tmp_path / "other", tmp_path / "own", "--judge", "mock:own", *who)
    assert told.code == 0 and "self_judging" in told.err
    assert "self_judging" in lmlab("tutor", "report", tmp_path / "own").err  # compare has graded all of it
    votes = tmp_path / "votes.jsonl"
    votes.write_text('{"match": "", "text": "A"}\n')
    ranked = ("tutor", "rank", tmp_path / "other", tmp_path / "own", "--mode", "votes", "--generations", "1",
              "--replies", votes, "--out", tmp_path / "ranked")  # fmt: skip
    told = lmlab(*ranked, "--judge", "mock:own")
    assert told.code == 0 and f"{tmp_path / 'own'}: self_judging" in " ".join(told.err.split()), told.err
    assert json.loads((tmp_path / "ranked" / "report.json").read_text())["self_judged"] == [str(tmp_path / "own")]
    assert "self_judging" in (tmp_path / "ranked" / "report.html").read_text()
    assert "self_judging" not in lmlab(*ranked, "--judge", "mock:stranger").err
    for name, marked in (("own", True), ("other", False)):  # what compare has graded is not asked for again
        told = lmlab("tutor", "grade", tmp_path / name, "--judge", "mock:own", "--replies", tmp_path / "none")
        assert told.code == 0 and ("self_judging" in told.err) is marked, told.err


def test_an_endpoint_that_is_down_ends_with_code_5_and_the_run_goes_on_later(lmlab, tmp_path, monkeypatch):
    async def no_wait(self, seconds):
        return None

    monkeypatch.setattr("lmlab.endpoints.client.client.Client._sleep", no_wait)
    data, script, out = tmp_path / "q.jsonl", tmp_path / "script.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(question(n, n)) + "\n" for n in range(30)))
    script.write_text(json.dumps({"match": "", "text": "PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 1/3"}) + "\n")
    assert lmlab("tutor", "generate", "--model", "mock:t", "--data", data, "--out", out, "--replies", script).code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = lmlab("tutor", "grade", out, "--judge", "openai:m", "--base-url", f"http://127.0.0.1:{port}/v1")
    assert told.code == 5 and "in a row have failed" in told.err, told.err
    assert not (out / "report.json").exists()  # nobody has said anything: there is no score
    told = lmlab("tutor", "grade", out, "--judge", "mock:m", "--replies", script, "--new-run")
    assert told.code == 0 and json.loads((out / "report.json").read_text())["n_graded"] == 30
