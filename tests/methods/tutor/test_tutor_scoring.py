"""Figures of graded answers: by hand, by chapters, and never a zero for what could not be read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.judging import RuleJudge, fit_bradley_terry
from lmlab.methods.tutor.answering.run import begin_run
from lmlab.methods.tutor.config import AnswerConfig, ScoreConfig
from lmlab.methods.tutor.items.item import TutorItem, read_item
from lmlab.methods.tutor.report import headline, ranking_section, sections
from lmlab.methods.tutor.scoring.compare import compare_rows, compare_until_known, equal_length_verdict
from lmlab.methods.tutor.scoring.grade import keep_items, kept_items
from lmlab.methods.tutor.scoring.judges import is_same_model
from lmlab.methods.tutor.scoring.rank import criterion_of, rank
from lmlab.methods.tutor.scoring.reference import import_answers
from lmlab.methods.tutor.scoring.score import breakdowns, mean_figure, score, too_many_ungraded
from lmlab.reports import Page

JUDGE = {
    "name": "j",
    "prompt_hash": "h",
    "headline": "correctness",
    "criteria": ["presentation", "correctness"],
    "maximum": 3.0,
}


def row(number, grade, status="ok", cluster=None, **columns):
    chapter = f"c{number // 2}" if cluster is None else cluster
    return {
        "id": f"q{number}",
        "question": f"q{number}?",
        "cluster": chapter,
        "key_points": ["p"],
        "domain": "physics",
        "difficulty": "easy",
        "misleading_question": False,
        "answer_in_chapter": True,
        "closed_book": True,
        "chapter_words": 100 + 10 * int(chapter[1:]),
        "tutor": {"model": "m", "output": "o", "prompt_tokens": 10, "completion_tokens": 2},
        "judge": JUDGE,
        "grades": {"presentation": None if grade is None else 3.0, "correctness": grade},
        "status": status,
        "flags": [],
        **columns,
    }


def test_totals_by_hand():
    rows = [row(0, 3.0), row(1, 1.5, domain="biology"), row(2, 0.0, difficulty="hard"), row(3, None, "missing")]
    rows += [row(4, 0.0, "empty_answer"), row(5, None, "partial")]
    found = score(rows)
    assert (found["n"], found["n_graded"], found["n_ungraded"]) == (6, 4, 2)
    assert found["total"]["value"] == pytest.approx((3 + 1.5 + 0 + 0) / 4 * 100 / 3)
    assert found["total_ungraded_as_zero"] == pytest.approx((3 + 1.5 + 0 + 0) / 6 * 100 / 3)
    assert found["breakdowns"]["domain"]["biology"]["value"] == pytest.approx(50)
    assert found["breakdowns"]["domain"]["physics"]["value"] == pytest.approx(100 / 3)
    assert found["breakdowns"]["hard slice"]["hard"]["value"] == 0
    assert found["breakdowns"]["domain x difficulty"]["biology, easy"]["n"] == 1
    assert set(found["breakdowns"]["chapter length"]) == {
        "1 short (100 to 100 words)",
        "2 middle (110 to 110 words)",
        "3 long (120 to 120 words)",
    }
    assert found["by_status"] == {"empty_answer": 1, "missing": 1, "ok": 3, "partial": 1}
    assert too_many_ungraded(found, ScoreConfig()) and not too_many_ungraded(found, ScoreConfig(max_ungraded=0.5))
    assert "2 of 6 answers have no grade" in found["warnings"][0]
    json.dumps(found, allow_nan=False)


def test_the_interval_is_that_of_a_bootstrap_over_chapters():
    rows = [row(n, float(n % 4)) for n in range(12)]
    found = score(rows, ScoreConfig(seed=5, resamples=3000))["total"]
    sums = np.array([sum(100 / 3 * (n % 4) for n in (2 * c, 2 * c + 1)) for c in range(6)])
    drawn = np.random.default_rng(5).integers(0, 6, (3000, 6))
    low, high = np.quantile(sums[drawn].sum(1) / 12, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found == score(rows, ScoreConfig(seed=5, resamples=3000))["total"]


def test_chapters_that_differ_make_intervals_wider_than_questions_alone():
    draw = np.random.default_rng(0)
    effects = draw.normal(0, 20, 20)
    values = [50 + effects[c] + draw.normal(0, 5) for c in range(20) for _ in range(8)]
    by_chapter = mean_figure(values, [c for c in range(20) for _ in range(8)], ScoreConfig())
    alone = mean_figure(values, list(range(160)), ScoreConfig())
    assert by_chapter["high"] - by_chapter["low"] > 2 * (alone["high"] - alone["low"])


def test_one_chapter_has_no_interval_but_a_reason():
    found = score([row(0, 1.0, cluster="c0"), row(1, 2.0, cluster="c0")])
    assert found["total"]["low"] is None and "one chapter" in found["total"]["reason"]
    with pytest.raises(UserError, match="no graded answers"):
        score([])


def other(rows, change):
    return [{**each, "tutor": {**each["tutor"], "model": "n"}, "grades": change(each)} for each in rows]


def test_tutors_are_compared_on_what_both_have_a_grade_for():
    first = [row(n, 1.0) for n in range(20)] + [row(20, None, "missing")]
    better = other(first, lambda each: {**each["grades"], "correctness": 2.0})
    found = compare_rows(first, better)
    assert found["n"] == 20 and found["difference"] == pytest.approx(100 / 3) and found["low"] > 0
    assert (found["better"], found["worse"]) == (20, 0)
    with pytest.raises(UserError, match="different judges"):
        compare_rows(first, [{**each, "judge": {**JUDGE, "prompt_hash": "other"}} for each in better])


def test_a_tutor_that_only_talks_more_is_no_better_at_equal_length():
    """The judge gives a point of three for each hundred characters beyond the first hundred."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(100, 400, (60, 2))
    sizes[:, 1] = np.minimum(400, sizes[:, 1] + 60)
    rows = [[{**row(n, (size - 100) / 100), "tutor": {"model": name, "output": "x" * size}}
             for n, size in enumerate(sizes[:, place].tolist())] for place, name in enumerate("ab")]  # fmt: skip
    found = compare_rows(rows[0], rows[1])
    at = found["equal_length"]
    assert found["low"] > 0 and at["low"] < 0 < at["high"] and abs(at["difference"]) < 4 and at["slope"] > 0
    assert at["second_length"] > at["first_length"] + 20 and "At equal length" in equal_length_verdict(found)
    assert abs(at["wins_at_equal_length"] - 0.5) < abs(at["wins"] - 0.5)
    always = [{**each, "tutor": {"model": "c", "output": each["tutor"]["output"] + "x" * 9}} for each in rows[0]]
    assert "not known" in equal_length_verdict(compare_rows(rows[0], always))


def answers(name, texts):
    return [{"id": f"q{n}", "cluster": f"c{n // 2}", "question": f"What is {n}?", "key_points": [f"point {n}"],
             "answer_status": "ok", "tutor": {"model": name, "output": text}}
            for n, text in enumerate(texts)]  # fmt: skip


def test_tutors_are_ranked_by_what_a_judge_prefers_in_both_orders():
    seen = []

    def prefers_second(question):
        seen.append(question)
        a, b = (text.rpartition("Answer: ")[2] for text in (question.text_a, question.text_b))
        return 0.9 if len(set(b)) > len(set(a)) else 0.1 if len(set(a)) > len(set(b)) else 0.8

    judge = RuleJudge(prefers_second, "more letters")
    tutors = {"poor": answers("p", ["aa"] * 20), "good": answers("g", ["abc"] * 20), "fair": answers("f", ["ab"] * 20)}
    tutors["good"][3]["tutor"]["output"] = " "  # loses by rule
    tutors["fair"][4]["tutor"]["output"] = "aa"  # as good as the same words
    tutors["fair"][5]["tutor"]["output"] = "cc"  # the judge likes the second place there
    tutors["fair"][6]["answer_status"] = "endpoint_error"
    found, rows = rank(judge, criterion_of(), tutors)
    assert [each["tutor"] for each in found["tutors"]] == ["good", "fair", "poor"]
    by_names = {(each["first"], each["second"]): each for each in found["pairs"]}
    pair = by_names["poor", "fair"]
    assert (pair["n"], pair["by_rule"], pair["wins"]["value"]) == (19, 1, pytest.approx(1 / 19))
    assert (pair["orders_disagree"], pair["ties"]) == (pytest.approx(1 / 18), pytest.approx(2 / 19))
    assert by_names["poor", "good"]["wins"]["value"] == pytest.approx(1 / 20)
    assert by_names["poor", "good"]["first_place"] == pytest.approx(0.5)
    assert not any(question.text_a == question.text_b or "Answer:  " in question.text_a for question in seen)
    assert any("- point 3" in question.text_a for question in seen) and len(rows) == 20 + 19 + 19
    wins = np.zeros((3, 3)) + 0.1
    for row in rows:
        i, j = (list(tutors).index(row[side]) for side in ("first", "second"))
        wins[i, j] += row["wins"]
        wins[j, i] += 1 - row["wins"]
    scores = {each["tutor"]: each["score"]["value"] for each in found["tutors"]}
    assert [scores[name] for name in tutors] == pytest.approx(fit_bradley_terry(wins).tolist())
    hidden = [answers("a", ["one\u200b two", "x"]), answers("b", ["three 555-0199", "y"])]
    seen.clear()
    rank(judge, criterion_of(), dict(zip("ab", hidden, strict=True)), redact=[r"\d{3}-\d{4}"])
    assert not any(mark in question.text_a + question.text_b for question in seen for mark in ("\u200b", "0199"))
    longer = {"a": answers("a", ["x"] * 3), "b": answers("b", ["xyz"] * 3)}
    found, _ = rank(judge, criterion_of(), longer)  # each longer by the same: by length, or better?
    assert found["pairs"][0]["at_equal_length"] is None
    assert "not known" in Page("Ranked", sections=[ranking_section(found)]).to_html()
    with pytest.raises(UserError, match="share no question"):
        rank(judge, criterion_of(), {"a": tutors["poor"][:1], "b": tutors["fair"][1:]})


def test_sequential_comparison_stops_when_it_knows_and_keeps_its_level():
    draw = np.random.default_rng(1)
    first = {f"q{n}": row(n, float(draw.integers(0, 4))) for n in range(120)}
    chapters = {f"c{c}": [f"q{2 * c}", f"q{2 * c + 1}"] for c in range(60)}
    asked = []

    def grade(table):
        return lambda ids: (asked.extend(ids), [table[id] for id in ids])[1]

    far = {key: {**each, "grades": {**each["grades"], "correctness": 3.0}} for key, each in first.items()}
    found = compare_until_known(grade(first), grade(far), chapters, ScoreConfig())
    assert found["low"] > 0 and found["chapters_seen"] == 12 and len(asked) == 48
    false = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        same = {key: row(int(key[1:]), float(draw.integers(0, 4))) for key in first}
        twin = {key: row(int(key[1:]), float(draw.integers(0, 4))) for key in first}
        config = ScoreConfig(seed=trial, resamples=400)
        found = compare_until_known(lambda ids, t=same: [t[i] for i in ids], lambda ids, t=twin: [t[i] for i in ids],
                                    chapters, config)  # fmt: skip
        false += found["low"] > 0 or found["high"] < 0
    assert false <= 18  # 5 % of 200, and three standard deviations


def test_files_of_the_published_scripts_are_read_strictly_or_as_they_read_them(tmp_path):
    base = {"chapter": "c", "question": "q", "key_points": ["k"], "closedbook_eval": False, "model": "m"}
    replies = ["PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 1/3", "ERROR", "PRESENTATION: 3/3\nCORRECTNESS: 3/3"]
    rows = [{**base, "question": f"q{n}", "output": "a", "grading_out": reply} for n, reply in enumerate(replies)]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    from lmlab.methods.tutor.scoring.grade import graded_rows

    import_answers(tmp_path / "m.json", tmp_path / "strict")
    strict = score(graded_rows(tmp_path / "strict"))
    assert (strict["n_graded"], strict["total"]["value"]) == (2, pytest.approx((1 + 3) / 2 * 100 / 3))
    import_answers(tmp_path / "m.json", tmp_path / "compat", compat=True)
    compat = score(graded_rows(tmp_path / "compat"))
    assert compat["total"]["value"] == pytest.approx(np.mean([1, 0, 3]) * 100 / 3)  # its formula, failures as 0


def test_questions_of_a_command_that_asked_nothing_do_not_stay_beside_other_answers(tmp_path):
    """Judges would see the key points of before."""
    item = TutorItem("1", "q", "c", ("old",))
    keep_items([item], tmp_path)
    keep_items([replace(item, key_points=("new",))], tmp_path)
    begin_run(tmp_path, "m", "m", "h", AnswerConfig(), [item])
    keep_items([item], tmp_path)
    assert kept_items(tmp_path)["1"].key_points == ("new",)


def test_imported_answers_bring_their_own_questions_and_replace_none_that_were_asked(tmp_path):
    for point in ("one", "two"):
        row = {"question": "q", "chapter": "c", "key_points": [point], "output": "a", "model": "m"}
        (tmp_path / "m.json").write_text(json.dumps([row]))
        import_answers(tmp_path / "m.json", tmp_path / "out")
        assert [each.key_points for each in kept_items(tmp_path / "out").values()] == [(point,)]
    begin_run(tmp_path / "asked", "m", "m", "h", AnswerConfig(), [])
    with pytest.raises(UserError, match="that was asked"):
        import_answers(tmp_path / "m.json", tmp_path / "asked")


def offline(number, grade, **columns):
    judged = {"raw": (), "requests": 0, "cost_usd": None, "usage": {}}
    return row(number, grade, **columns) | {"judged": judged}


def test_a_judge_that_asks_nobody_costs_nothing_and_its_percentages_only_order():
    rows = [offline(0, 1.30131), offline(2, 3.0)]
    found = score(rows)
    assert found["cost_usd"] == 0
    assert found["only_orders"]
    page = Page("t", sections=sections(found, rows)).to_html()
    assert "$0" in page
    assert "order answers to one question" in page
    assert "1.3 of 3" in page
    assert "1.30131" not in page


def test_a_judge_that_was_asked_without_a_known_price_has_no_known_cost():
    asked = {"raw": ("3",), "requests": 1, "cost_usd": None, "usage": {}}
    found = score([offline(0, 3.0), row(2, 1.0) | {"judged": asked}])
    assert found["cost_usd"] is None
    assert not found["only_orders"]
    imported = row(0, 3.0) | {"tutor": {"model": "m", "output": "o", "format": "imported"}}
    assert score([imported, row(2, 1.0)])["cost_usd"] is None


def test_what_questions_do_not_say_is_unknown_and_not_no():
    silent = read_item({"question": "q", "chapter": "c"}).about()
    assert silent["misleading_question"] is None
    assert silent["answer_in_chapter"] is None
    said = read_item({"question": "q", "chapter": "c", "misleading_question": "no", "answer_in_chapter": 1}).about()
    assert said["misleading_question"] is False
    assert said["answer_in_chapter"] is True
    columns = {name: silent[name] for name in ("misleading_question", "answer_in_chapter")}
    found = breakdowns([row(0, 1.0, **columns), row(1, 1.0, **columns)])
    assert "misleading_question" not in found
    assert "answer_in_chapter" not in found
    (value,) = breakdowns([row(0, 1.0, **columns), row(1, 1.0)])["misleading_question"].items()
    assert value[0] == "no"
    assert value[1]["n"] == 1


def test_one_answer_about_one_chapter_is_told_in_the_singular():
    assert "over 1 answer about 1 chapter;" in headline(score([row(0, 3.0)]))


def test_a_judge_is_the_tutor_however_its_folder_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for tutor in ("model", "./model", "local:model", f"local:{tmp_path}/model"):
        assert is_same_model("local:model/", tutor) and is_same_model(f"local:{tmp_path}/model", tutor)
        assert not is_same_model("local:other", tutor) and not is_same_model("coverage", tutor)
    assert is_same_model("openai:m", "openai:m") and not is_same_model("openai:m", "openai:n")
