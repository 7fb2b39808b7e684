"""A simulated student talks with a tutor: turns alternate, leaks are counted, conversations are graded as a whole."""

from __future__ import annotations

import hashlib
import json

import pytest

from lmlab.endpoints import Endpoint, MockBackend
from lmlab.errors import Interrupted, UserError
from lmlab.judging import Asking, RubricJudge
from lmlab.methods.tutor.config import AnswerConfig, StudentConfig
from lmlab.methods.tutor.items.item import TutorItem, load_items
from lmlab.methods.tutor.scoring.score import score
from lmlab.methods.tutor.simulating.converse import (
    Conversation,
    converse,
    grade_conversations,
    leaks,
    rubric,
    student_request,
)

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


def test_a_talk_that_was_killed_goes_on_and_others_are_not_mixed_with_it(questions, tmp_path):
    items, calls = load_items(questions)[:4], []

    def talk(out, stop_after=None, tutor="t", turns=3, items=items):
        def answer(request):
            calls.append(1)
            if stop_after is not None and len(calls) > stop_after:
                raise KeyboardInterrupt  # nothing is tidied up, as after a kill
            return f"a turn after {len(request.messages)} messages, {hash_of(request)}."

        ends = [endpoint(name, tmp_path).model_copy(update={"concurrency": 1}) for name in (tutor, "s")]
        return converse(
            items, ends[0], ends[1], StudentConfig(turns=turns), ANSWERS, tmp_path / out, (MockBackend(answer),) * 2
        )

    whole = talk("whole")
    asked = len(calls)
    assert asked == 4 * 3 * 2
    calls.clear()
    for stop_after in (5, 14):
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            talk("killed", stop_after)
    assert talk("killed") == whole
    assert len(calls) <= asked + 2  # those that were under way were asked again, and no other
    files = [(tmp_path / out / "conversations.jsonl").read_bytes() for out in ("whole", "killed")]
    assert files[0] == files[1]
    for words, changed in (("of mock:t with mock:s", {"tutor": "other"}), ("by other settings", {"turns": 2})):
        with pytest.raises(UserError, match=f"holds conversations {words}"):
            talk("whole", **changed)
    assert (tmp_path / "whole" / "conversations.jsonl").read_bytes() == files[0]
    calls.clear()
    assert talk("whole", items=items[:2]) == whole[:2] and not calls  # fewer questions are no other settings


def hash_of(request):
    return hashlib.sha256(json.dumps(request.messages).encode()).hexdigest()[:6]


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


def test_marks_of_templates_in_a_question_stay_what_they_are():
    item = TutorItem("i", "What do {points}, {done} and {x} stand for?", key_points=("the {level} of it",))
    talk = Conversation(item, "that {goal} is all")
    said = student_request(talk, StudentConfig(), AnswerConfig()).messages[0]["content"]
    assert item.question in said and "that {goal} is all" in said and "- the {level} of it" in said
    assert said.count("[UNDERSTOOD]") == 1
