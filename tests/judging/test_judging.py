"""Votes, soft labels, judges, and all pairs of groups."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging_parts import CLARITY, DEPTH, LONGER, REASONED

from lmlab import plugins
from lmlab.endpoints import ChatRequest, Choice, Endpoint, MockBackend, Reply, TokenLogProb
from lmlab.errors import LmlabError, UserError
from lmlab.judging import (
    EndpointJudge,
    JudgePairs,
    Marks,
    NoVerdicts,
    PlainText,
    RuleJudge,
    grade,
    make_judge,
    order_effects,
    parse_vote,
    preference,
    require_verdicts,
    soft_labels,
    summarize,
)
from lmlab.judging.votes import parse_reasons


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", 0),
        (" B\n", 1),
        ("**Option A**", 0),
        ("Option **B**", 1),
        ("The answer is B.", 1),
        ("Answer: A", 0),
        ("(a)", 0),
        ("'B'", 1),
        ("\uff21", 0),
        ("<think>maybe B</think>A", 0),
        ("[Option B]", 1),
        ("option a.", 0),
        ("\u201cB\u201d", 1),
        ("<think>B", None),
        ("A A", None),
        ("A\nB", None),
        ("A and B", None),
        ("B is better", None),
        ("", None),
        ("C", None),
        ("optional", None),
        ("A\nA", None),
        ("AB", None),
    ],
)
def test_votes_are_one_label_or_void(text: str, expected: int | None) -> None:
    assert parse_vote(text) == expected


def test_soft_labels_need_more_than_half_of_the_votes_in_both_orders() -> None:
    a = np.array([[-100, 6, 4], [3, -100, 5], [10, 0, -100]], float)
    b = np.array([[-100, 14, 6], [9, -100, 15], [10, 0, -100]], float)
    labels = soft_labels(a, b, 20)
    assert labels[0, 1] == pytest.approx((14 / 20 + 1 - 9 / 12) / 2)
    assert labels[0, 2] == -100 == labels[2, 0], "4 + 6 votes are no more than 10"
    assert labels[1, 2] == -100 == labels[2, 1]
    known = labels >= 0
    assert known.sum() == 2 and np.allclose((labels + labels.T)[known], 1) and (np.diag(labels) == -100).all()
    assert soft_labels([[-100, 0], [1, -100]], [[-100, 1], [0, -100]], 1)[0, 1] == 1.0


def test_both_orders_cancel_a_preference_for_a_place() -> None:
    rng = np.random.default_rng(0)
    u, bias, votes = rng.standard_normal((4000, 2)) @ np.diag([1, 1]), 0.6, 20
    d = u[:, 1] - u[:, 0]
    b = np.stack([rng.binomial(votes, 1 / (1 + np.exp(-d - bias))), rng.binomial(votes, 1 / (1 + np.exp(d - bias)))])
    matrices, labels = [], []
    for forward, backward in b.T:
        vb = np.array([[-100, forward], [backward, -100]], float)
        va = np.where(vb >= 0, votes - vb, -100)
        matrices.append(preference(va, vb, votes))
        labels.append(soft_labels(va, vb, votes)[0, 1])
    assert abs(np.mean(labels - 1 / (1 + np.exp(-d)))) < 0.004
    effects = order_effects(matrices)
    bias_found, same = effects.position_bias, effects.swap_consistency
    assert effects.pairs == 4000 and 0.08 < bias_found.value < 0.14 and 0.5 < same.value < 1
    assert bias_found.low < bias_found.value < bias_found.high < 0.14


def second_wins(request: ChatRequest) -> Reply:
    """A model that prefers the text with more r's, and needs no place."""
    content = request.messages[1]["content"]
    a, b = content.split("[Option B]")[0].split("[Option A]")[1], content.split("[Option B]")[1].split("Now you")[0]
    p = 0.9 if b.count("r") > a.count("r") else 0.1
    top = (
        ("B", float(np.log(p))),
        (" A", float(np.log((1 - p) / 2))),
        ("a", float(np.log((1 - p) / 2))),
        ("The", -9.0),
    )
    logged = (TokenLogProb("B", top[0][1], top),) if request.top_logprobs else None
    return Reply("ok", (Choice("B" if p > 0.5 else "A", "stop", logged),) * request.n)


@pytest.mark.parametrize(("mode", "expected"), [("votes", 1.0), ("logprobs", 0.9)])
def test_an_endpoint_judges_by_votes_or_log_probabilities(mode: Any, expected: float) -> None:
    judge = EndpointJudge(Endpoint(model="m"), mode, 5, backend=MockBackend(second_wins))
    found = JudgePairs(judge, CLARITY).run([["aaa", "rrr"], ["rrr", "aaa", "r"]])
    assert found.judgments[0].average["clarity"][0, 1] == pytest.approx(expected)
    three = found.judgments[1].average["clarity"]
    assert (
        three.shape == (3, 3) and three[1, 2] == pytest.approx(expected) and three[0, 2] == pytest.approx(1 - expected)
    )


def test_an_endpoint_without_log_probabilities_is_told_and_how_to_ask_it() -> None:
    judge = EndpointJudge(Endpoint(model="m"), "logprobs", backend=MockBackend(lambda request: "B"))
    with pytest.raises(LmlabError, match="4 without log-probabilities.*ask by votes"):
        require_verdicts(JudgePairs(judge, CLARITY).run([["aaa", "rrr"], ["c", "d"]]))


def test_a_judge_says_why_before_it_chooses_and_its_words_are_kept() -> None:
    asked: list[ChatRequest] = []

    def reply(request: ChatRequest) -> str:
        asked.append(request)
        shown = request.messages[-1]["content"].partition("[Option A]\n")[2][:1]
        if shown == "v":
            return "I choose A."
        return f'Let me see. {{"reasons": "It is \\"{shown}\\".", "choice": "{"B" if shown == "a" else "A"}"}} Done.'

    judge = EndpointJudge(Endpoint(model="m", concurrency=1), "reasons", 20, backend=MockBackend(reply))
    found = JudgePairs(judge, REASONED).run([[PlainText("1", "a"), PlainText("2", "b")], ["v", "w"]])
    assert found.judgments[0].average["clarity"][0, 1] == 1
    assert found.reasons == [
        {"criterion": "clarity", "first": "1", "second": "2", "votes": [0, 1], "reasons": 'It is "a".'},
        {"criterion": "clarity", "first": "2", "second": "1", "votes": [1, 0], "reasons": 'It is "b".'},
        {**found.reasons[2], "votes": [1, 0], "reasons": 'It is "w".'},
    ]
    assert found.missing == {("clarity", "", "only void votes"): 1}
    assert found.judgments[0].prompts["clarity"] == REASONED.reasons_hash != REASONED.prompt_hash
    schema = asked[0].response_format["json_schema"]["schema"]  # type: ignore[index]
    assert schema["properties"]["choice"]["enum"] == ["A", "B"] and {each.n for each in asked} == {1}
    with pytest.raises(UserError, match="no 'pair_reasons'"):
        JudgePairs(judge, CLARITY).run([["x", "y"]])


def test_answers_that_an_endpoint_without_n_leaves_out_are_asked_one_by_one() -> None:
    asked: list[int] = []

    def one(request: ChatRequest) -> Reply:
        asked.append(request.n)
        return Reply("ok", (Choice("B", "stop"),))

    judge = EndpointJudge(Endpoint(model="m"), "votes", 4, backend=MockBackend(one))
    found = JudgePairs(judge, CLARITY).run([["x", "y"]])
    assert found.judgments[0].votes["clarity"][1][0, 1] == 4 and sorted(asked) == [1] * 6 + [4] * 2


def test_groups_of_one_are_skipped_and_equal_texts_are_equally_good() -> None:
    found = JudgePairs(LONGER, CLARITY).run([["alone"], ["same text", "same text"]])
    assert found.skipped == 1 and found.identical == 1
    assert found.judgments[0].average["clarity"][0, 1] == 0.5


def test_one_order_says_nothing_of_a_taste_for_places() -> None:
    """The votes of the other order were made up before: no bias and full consistency were reported."""
    first_always = RuleJudge(lambda question: 0.1, "likes the first place")
    found = JudgePairs(first_always, CLARITY, both_orders=False).run([["a", "b", "c"]])
    assert found.judgments[0].average["clarity"][0, 1] == pytest.approx(0.1)
    assert found.judgments[0].average["clarity"][1, 0] == pytest.approx(0.9)
    effects = order_effects([preference(*found.judgments[0].votes["clarity"], 1)])
    assert effects.pairs == 0 and np.isnan(effects.position_bias.value) and np.isnan(effects.swap_consistency.value)
    figures = summarize(found, 1)["criteria"]["clarity"]
    assert figures["position_bias"] is None and figures["swap_consistency"] is None and figures["labels"] == 3
    both = summarize(JudgePairs(first_always, CLARITY).run([["a", "b", "c"]]), 1)["criteria"]["clarity"]
    assert both["position_bias"] == pytest.approx(-0.4) and both["swap_consistency"] == 0


def test_equal_texts_are_not_shown_and_count_for_no_effect_of_order() -> None:
    asked = []
    judge = RuleJudge(lambda question: asked.append(question) or 0.9, "likes the second place")
    judging, seen = JudgePairs(judge, [CLARITY, DEPTH]), []
    found = judging.run([["same", "same", "other"]], seen.append)
    groups = [[PlainText("1", "same"), PlainText("2", "same"), PlainText("3", "other")]]
    assert len(asked) == len(seen) == sum(found.asked.values()) == judging.num_questions(groups) == 8
    assert found.judgments[0].average["clarity"][0, 1] == found.judgments[0].average["clarity"][1, 0] == 0.5
    effects = order_effects([preference(*found.judgments[0].votes["clarity"], 1)])
    assert effects.pairs == 2 and effects.position_bias.value == pytest.approx(0.4)


def test_who_decides_in_neither_order_is_neither_consistent_nor_inconsistent() -> None:
    undecided, decided, half = (np.array([[np.nan, a], [b, np.nan]]) for a, b in ((0.5, 0.5), (0.9, 0.2), (0.5, 0.9)))
    assert np.isnan(order_effects([undecided]).swap_consistency.value)
    assert order_effects([undecided, decided]).swap_consistency.value == 1
    assert order_effects([undecided, decided, half]).swap_consistency.value == 0.5


@pytest.mark.parametrize(
    ("name", "kind"), [("mock:m", EndpointJudge), ("offline", RuleJudge), ("openai:some-model", EndpointJudge)]
)
def test_judges_are_found_by_their_entry_points(name: str, kind: type) -> None:
    found = make_judge(name, "votes", 3)
    assert isinstance(found, kind) and (found.generations, bool(found.name)) == (1 if name == "offline" else 3, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ofline", "Did you mean 'offline'"), ("exact:", "names no model"), ("openai", "openai:MODEL")],
)
def test_a_judge_that_is_not_there_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_judge(name)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda text, options: object(), "makes no judge: it lacks name, generations, compare"),
        (lambda text: object(), "makes no judge of what it is given .TypeError"),
    ],
)
def test_what_another_package_adds_must_be_a_judge(monkeypatch: pytest.MonkeyPatch, made: Any, message: str) -> None:
    monkeypatch.setattr(plugins, "load", lambda place: made)
    with pytest.raises(UserError, match=message):
        make_judge("offline")


def test_another_package_adds_a_judge(tmp_path: Path) -> None:
    """A package is installed that names one, and a new process finds it."""
    (tmp_path / "coin.py").write_text(
        "from lmlab.judging import RuleJudge\n"
        "def make(text, options):\n"
        "    return RuleJudge(lambda question: float(text.partition(':')[2]), 'a coin')\n"
    )
    (tmp_path / "coin-1.dist-info").mkdir()
    (tmp_path / "coin-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: coin\nVersion: 1\n")
    (tmp_path / "coin-1.dist-info" / "entry_points.txt").write_text("[lmlab.judges]\ncoin = coin:make\n")
    code = (
        "from lmlab.judging import Question, make_judge\n"
        "make_judge('coin:0.25').compare([Question(None, 'x', 'y')], lambda number, verdict: print(verdict.votes_b))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0.25\n"


@dataclass(frozen=True)
class TwoGrades:
    """A rubric of two criteria whose answers are two numbers."""

    criteria: tuple[str, ...] = ("presentation", "correctness")
    prompt_hash: str = "two"

    def request(self, item: dict[str, str], generations: int) -> ChatRequest:
        return ChatRequest(({"role": "user", "content": f"{item['question']} {item['answer']}"},), n=generations)

    def read(self, text: str) -> Marks:
        parts = text.split()
        if len(parts) != 2:
            return Marks((None, None), "missing", ("odd",))
        return Marks((float(parts[0]), float(parts[1])))


def test_a_rubric_of_several_criteria_reads_every_answer_and_failures_are_no_grades() -> None:
    def answer(request: ChatRequest) -> Reply:
        if "refuse" in request.messages[0]["content"]:
            return Reply("content_filter", error="no")
        return Reply("ok", (Choice("2 3", "stop"), Choice("no idea at all", "stop")))

    judge = EndpointJudge(Endpoint(model="m"), "votes", 2, backend=MockBackend(answer))
    found: dict[int, tuple[Marks, ...]] = {}
    items = [{"question": "why?", "answer": "so"}, {"question": "refuse", "answer": "x"}]
    judge.grade(TwoGrades(), items, found.__setitem__)
    assert found[0] == (Marks((2.0, 3.0)), Marks((None, None), "missing", ("odd",)))
    assert found[1] == (Marks((None, None), "content_filter"),)


def test_plain_texts_can_be_graded() -> None:
    answers = iter(["7", "7 of 10"])
    judge = EndpointJudge(Endpoint(model="m", concurrency=1), backend=MockBackend(lambda request: next(answers)))
    good, bad = grade(judge, CLARITY, ["a text", "another"])
    assert good.average == 7 and good.row()["scores"] == [7.0] and bad.average == -100


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("</think>\nB", 1),
        ("A is shorter.</think>B", 1),
        ("<think>A <think>x</think> y</think>A", 0),
        ("</think>B <think>", None),
    ],
)
def test_a_thought_may_begin_in_the_prompt(text: str, vote: int | None) -> None:
    assert parse_vote(text) == vote


def test_a_judging_without_any_verdict_is_an_error_with_its_reasons() -> None:
    def refuse(request: ChatRequest) -> Reply:
        return Reply("rejected", error="no such model")

    def sometimes(request: ChatRequest) -> Reply | str:
        return refuse(request) if "zebra" in request.messages[-1]["content"] else "A"

    for answer, missing in ((refuse, 4), (sometimes, 2)):
        judge = EndpointJudge(Endpoint(model="m"), "votes", 1, backend=MockBackend(answer))
        found = JudgePairs(judge, CLARITY).run([["zebra", "two"], ["three", "four"]])
        assert sum(found.missing.values()) == missing
        if missing == 4:
            with pytest.raises(NoVerdicts, match=r"4 rejected.*no such model"):
                require_verdicts(found)
        else:
            require_verdicts(found)


def test_reasons_that_are_no_text_are_void_and_half_characters_can_be_written() -> None:
    assert parse_reasons('{"reasons": "\\ud83d is half", "choice": "B"}') == (1, "? is half")
    assert parse_reasons('{"reasons": "\\ud83e\\udd9c is whole", "choice": "A"}') == (0, "\U0001f99c is whole")
    assert parse_reasons('{"reasons": ["short.", "plain."], "choice": "A"}') == (0, "short. plain.")
    assert parse_reasons('{"reasons": "both", "choice": "C"}') == (None, "both")
    for value in ("null", "3", '{"a": 1}', "[1]"):
        assert parse_reasons(f'{{"reasons": {value}, "choice": "A"}}') == (None, "")
