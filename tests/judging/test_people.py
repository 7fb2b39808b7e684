"""What people say: published sets with their labels, and the queue in which people grade."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from judging_parts import CLARITY

from browser import drawn, needs_browser
from lmlab.errors import UserError
from lmlab.judging import AnswerItem, GradingRubric, RuleJudge
from lmlab.judging.people.judgebench import read_judgebench, score_pairs
from lmlab.judging.people.mrbench import dimension_table, read_mrbench
from lmlab.judging.people.review import joined_with_rows, read_review, write_review_csv, write_review_page
from lmlab.judging.people.tables import GradeTable

EVIL = '</pre><script>document.title="taken"</script><img src=x onerror=alert(1)> {{ 7*7 }} & "quoted"'
ITEMS = [
    AnswerItem("q1", EVIL, EVIL, (EVIL, "by air"), EVIL, system="a<b", group="c"),
    AnswerItem("q2", "=1+1", "@SUM(A1)", (), None, system="s"),
]
CRITERIA = GradingRubric.load("tutoreval-v1").criteria


def test_a_review_goes_through_csv(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    assert write_review_csv(path, ITEMS, list(CRITERIA)) == 2
    text = path.read_text()
    assert "'=1+1" in text and "'@SUM" in text  # no spreadsheet computes them
    assert read_review(path, list(CRITERIA)) == []
    filled = text.replace("@SUM(A1),,,", '@SUM(A1),"2,5",3,nice')
    path.write_text(filled)
    (found,) = read_review(path, list(CRITERIA))
    assert found.grades == {"presentation": 2.5, "correctness": 3.0} and found.note == "nice" and found.item_id == "q2"
    assert found.content_hash == ITEMS[1].content_hash
    path.write_text(text.replace("@SUM(A1),,,", "@SUM(A1),4,3,"))
    with pytest.raises(UserError, match="row 2: .*'presentation' is no grade from 0 to 3"):
        read_review(path, list(CRITERIA))
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no review"):
        read_review(path, list(CRITERIA))


def test_grades_of_people_stand_beside_those_of_the_judge(tmp_path: Path) -> None:
    path = tmp_path / "grades.json"
    row = {"item_id": "q2", "system": "s", "content_hash": ITEMS[1].content_hash, "correctness": 2}
    path.write_text(json.dumps({"grades": [row]}))
    people = read_review(path, list(CRITERIA))
    judged = {"content_hash": ITEMS[1].content_hash, "grades": {"correctness": 1.5}}
    known = {"item_id": "q2", "system": "s", "group": "", "answer_length": 8}
    (both,) = joined_with_rows(people, [judged | known], "correctness")
    assert both["judge"] == 1.5 and both["human"] == 2.0
    with pytest.raises(UserError, match="'q2'"):
        joined_with_rows(people, [], "correctness")


def test_the_page_escapes_everything(tmp_path: Path) -> None:
    page = tmp_path / "review.html"
    assert write_review_page(page, ITEMS, CRITERIA) == 2
    text = page.read_text()
    assert text.count("<script>") == 1 and "<img" not in text and "{{ 7*7 }}" in text
    assert "http" not in text.replace("http-equiv", "")  # it needs no network


@needs_browser
def test_a_person_grades_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "review.html"
    write_review_page(page, ITEMS, CRITERIA)
    clicks = """
    const inputs = Array.from(document.querySelectorAll("article:nth-of-type(2) input"));
    for (const [name, value] of [["presentation", "2.5"], ["correctness", "3"], ["correctness", "1"]]) {
      inputs.find(each => each.dataset.criterion === name && each.value === value).click();
    }
    const note = document.querySelector("article:nth-of-type(2) .note");
    note.value = "short"; note.dispatchEvent(new Event("change", {bubbles: true}));
    const shown = document.createElement("output");
    shown.id = "result"; shown.textContent = window.exportedGrades(); document.body.append(shown);
    """
    text = drawn(page, clicks)
    assert "<title>Answers to grade</title>" in text and "1 of 2 graded." in text
    result = re.search(r'<output id="result">(.*?)</output>', text, re.DOTALL)
    assert result is not None
    saved = tmp_path / "grades.json"
    saved.write_text(result[1])
    (found,) = read_review(saved, list(CRITERIA))
    assert found.grades == {"presentation": 2.5, "correctness": 1.0} and found.note == "short"
    assert found.content_hash == ITEMS[1].content_hash


def test_mrbench(tmp_path: Path) -> None:
    label = {"Mistake_Identification": "Yes", "Providing_Guidance": "To some extent"}
    dialogue = {
        "conversation_id": "7",
        "conversation_history": "Student: 2 + 2 = 5",
        "Ground_Truth_Solution": "4",
        "anno_llm_responses": {
            "A": {"response": "Look again.", "annotation": label},
            "B": {"response": "Well done!", "annotation": {**label, "Mistake_Identification": "No"}},
        },
    }
    path = tmp_path / "mrbench.json"
    path.write_text(json.dumps([dialogue]))
    responses = read_mrbench(path)
    assert [(each.id, each.system) for each in responses] == [("7", "A"), ("7", "B")]
    said = {("7", "A", "Mistake_Identification"): "yes", ("7", "B", "Mistake_Identification"): "no"}
    said |= {("7", "A", "Providing_Guidance"): "Yes"}
    rows = {row["dimension"]: row for row in dimension_table(responses, said)}
    assert rows["Mistake_Identification"]["macro_f1"] == 1 and rows["Mistake_Identification"]["published_best"] == 71.8
    guidance = rows["Providing_Guidance"]
    assert guidance["n_unjudged"] == 1 and guidance["macro_f1"] == 0
    assert guidance["macro_f1_lenient"] == pytest.approx(2 / 3)
    del dialogue["anno_llm_responses"]
    path.write_text(json.dumps([dialogue]))
    with pytest.raises(UserError, match="dialogue 1 has no anno_llm_responses"):
        read_mrbench(path)


def test_judgebench(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pairs = [("long answer", "x", "A>B"), ("y", "longer", "B>A"), ("long one", "z", "B>A"), ("w", "long two", "A<B")]
    lines = [
        {"pair_id": n, "question": "?", "response_A": a, "response_B": b, "label": label}
        for n, (a, b, label) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_judgebench(path)
    longer = RuleJudge(lambda question: 0.8 if len(question.text_b) > len(question.text_a) else 0.2, "the longer one")
    found = score_pairs(longer, CLARITY, read)
    assert found.accuracy.value == 0.75 and found.missing == 0
    assert found.orders.disagreements == 0 and found.orders.first_place == pytest.approx(0.5)
    second = RuleJudge(lambda question: 0.9, "always the second")
    found = score_pairs(second, CLARITY, read)
    assert (
        found.accuracy.value == 0.5
        and found.orders.disagreements == 1
        and found.orders.first_place == pytest.approx(0.1)
    )
    path.write_text('{"question": "?", "response_A": "a", "response_B": "b", "label": "A=B"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_judgebench(path)


def test_tables_have_columns_of_any_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('who,grade\na,2\nb,\nc,NA\nd,"2,5"\n')
    read = GradeTable.read(path)
    grades = read.numbers("grade")
    assert grades[0] == 2 and grades[3] == 2.5 and [each != each for each in grades] == [False, True, True, False]
    with pytest.raises(UserError, match="no column 'grades'. Did you mean 'grade'"):
        read.numbers("grades")
    lines = path.with_suffix(".jsonl")
    lines.write_text('{"grade": 2, "samples": 3}\n{"grade": 1, "samples": [{"correctness": 1}]}\n')
    assert list(GradeTable.read(lines).numbers("grade")) == [2, 1]
    assert GradeTable.read(lines).rows[1]["correctness_1"] == 1
    path.write_text("grade\ngood\n")
    with pytest.raises(UserError, match="row 1: 'good' in 'grade' is no number"):
        GradeTable.read(path).numbers("grade")
