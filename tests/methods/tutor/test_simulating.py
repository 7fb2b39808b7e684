"""A simulated student talks with a tutor: turns alternate, leaks are counted, conversations are graded as a whole."""

from __future__ import annotations

import json

from lmlab.endpoints import Endpoint, MockBackend
from lmlab.judging import Asking, RubricJudge
from lmlab.methods.tutor.config import AnswerConfig, StudentConfig
from lmlab.methods.tutor.items.item import load_items
from lmlab.methods.tutor.scoring.score import score
from lmlab.methods.tutor.simulating.converse import Conversation, converse, grade_conversations, leaks, rubric

ANSWERS = AnswerConfig(max_new_tokens=8)


def endpoint(name, tmp_path):
    return Endpoint(model=name, backend="mock", replies=tmp_path / "none")


def test_conversations_alternate_end_when_understood_and_are_paid_for_once(questions, tmp_path):
    items, seen = load_items(questions)[:3], {"tutor": [], "student": []}

    def speak(who):
        def answer(request):
            seen[who].append(request.messages)
            turn = sum(message["role"] == "assistant" for message in request.messages)
            end = " I see. [UNDERSTOOD]" if who == "student" and turn == 2 else ""
            return f"the {who} in turn {turn} of {len(request.messages)}.{end}"

        return MockBackend(answer, who)

    def talk():
        return converse(
            items, endpoint("t", tmp_path), endpoint("s", tmp_path), StudentConfig(turns=5), ANSWERS, tmp_path / "out",
            (speak("tutor"), speak("student")),
        )  # fmt: skip

    rows = talk()
    assert [row["stop_reason"] for row in rows] == ["understood"] * 3
    assert all(len(row["turns"]) == 5 and "UNDERSTOOD" not in row["tutor"]["output"] for row in rows)
    assert all(
        m[0]["content"].startswith("You are a kind") and items[0].chapter[:9] in m[1]["content"]
        for m in seen["tutor"][:1]
    )
    assert all("it is not so that" in m[0]["content"] and "- it shines" in m[0]["content"] for m in seen["student"])
    assert all(m[-1]["role"] == "user" for each in seen.values() for m in each)
    count = len(seen["tutor"]) + len(seen["student"])
    assert talk() == rows and len(seen["tutor"]) + len(seen["student"]) == count
    (tmp_path / "out" / "conversations.jsonl").unlink()
    assert talk() == rows and len(seen["tutor"]) + len(seen["student"]) == count

    def grade(request):
        assert "Turn 2 (tutor)" in request.messages[-1]["content"]
        return "\n".join(f"{name}: seen in turn 2. GRADE: 1/2" for name in rubric().names)

    judge = RubricJudge(rubric(), endpoint("j", tmp_path), Asking(), None, MockBackend(grade))
    found = score(grade_conversations(rows, items, judge, "open"))
    assert found["n_graded"] == 3 and all(each["value"] == 50 for each in found["criteria"].values())
    assert len(found["criteria"]) == 6


def test_an_answer_that_is_given_before_the_student_tries_is_a_leak(tmp_path):
    record = {
        "question": "How far is it?",
        "chapter": "c",
        "key_points": ["A parsec equals 3.26 light years of distance"],
    }
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    (item,) = load_items(tmp_path / "q.jsonl")
    gives, hints = "One parsec equals 3.26 light years distance.", "What unit do you know?"

    def of(*turns):
        return leaks(Conversation(item, "m", list(turns)))

    assert of("How far?", gives, "Why?", gives) == [2, 4]
    assert of("How far?", hints, "I think it is a light year.", gives) == []
    assert of("How far?", hints, "Which one?", gives) == [4]
