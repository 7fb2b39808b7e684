"""Ranked tasks: rows and the figures made from them, against closed forms and a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import ModelScorer, Question, chance_level, option_scores, question_row, rank_questions, ranked_figures
from lmlab.evals.tasks.questions import encode_pairs, read_questions
from lmlab.models import ModelConfig, Transformer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["the cat sat on the mat and the dog sat on the log " * 20, "Question: what? Answer: that."], 300
    )


@pytest.fixture(scope="module")
def scorer():
    return ModelScorer(
        Transformer(ModelConfig(vocab_size=300, num_layers=1, d_model=32, num_heads=2, max_seq_len=48)).initialize(0),
        "fp32",
    )


def rows_of(values, gold=None):
    return [
        question_row(
            Question(id=str(n), context="c", options=["ab", "é", "abcd"], gold=0 if gold is None else gold[n]), each
        )
        for n, each in enumerate(values)
    ]


def test_normalizations_divide_by_length_or_by_the_prior():
    (row,) = rows_of([[-2.0, -2.0, -3.0]])
    row["tokens"], row["unconditional"] = [1, 2, 3], [-1.0, -4.0, -3.0]
    assert option_scores(row, "none").tolist() == [-2, -2, -3]
    assert option_scores(row, "characters").tolist() == [-1, -2, -0.75]
    assert option_scores(row, "bytes").tolist() == [-1, -1, -0.75]
    assert option_scores(row, "tokens").tolist() == [-2, -1, -1]
    assert option_scores(row, "unconditional").tolist() == [-1, 2, 0]


def test_figures_are_what_their_definitions_say():
    rows = rows_of([[-2.0, -6.0, -8.0], [-9.0, -1.0, -8.0]])  # by characters: [-1, -6, -2] and [-4.5, -1, -2]
    figures = ranked_figures(rows, "characters")
    soft = [1 / (1 + math.exp(-5) + math.exp(-1)), math.exp(-3.5) / (math.exp(-3.5) + 1 + math.exp(-1))]
    wrong = 1 / (math.exp(-3.5) + 1 + math.exp(-1))
    assert figures["accuracy"].value == 0.5
    assert figures["soft"].value == pytest.approx(sum(soft) / 2)
    assert figures["log_soft"].value == pytest.approx(sum(map(math.log, soft)) / 2)
    assert figures["cross_entropy"].value == pytest.approx(-sum(map(math.log, soft)) / 2)
    assert figures["bits_per_byte"].value == pytest.approx((2 / 2 + 9 / 2) / 2 / math.log(2))
    assert figures["accuracy/none"].value == 0.5
    # confidences 0.73 (right) and 0.71 (wrong) share a bin: their means differ by this
    assert figures["calibration_error"].value == pytest.approx(abs((soft[0] + wrong) / 2 - 0.5))
    assert chance_level(rows) == pytest.approx(1 / 3)


def test_standard_errors_agree_with_a_bootstrap():
    generator = np.random.default_rng(0)
    rows = rows_of(generator.normal(-6, 2, (400, 3)).tolist(), generator.integers(0, 3, 400).tolist())
    figures = ranked_figures(rows, "characters")
    drawn = [[rows[i] for i in generator.integers(0, len(rows), len(rows))] for _ in range(200)]
    for name in ("accuracy", "bits_per_byte", "cross_entropy", "soft"):
        values = [ranked_figures(each, "characters")[name].value for each in drawn]
        assert figures[name].standard_error == pytest.approx(np.std(values), rel=0.2), name


def test_one_option_alone_has_bits_but_no_accuracy():
    row = question_row(Question(id="a", context="c", options=["abcd"], gold=0), [-4 * math.log(2)])
    assert {name: value.value for name, value in ranked_figures([row], "none").items()} == {
        "bits_per_byte": pytest.approx(1.0)
    }
    assert chance_level([row]) is None


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tokenizer):
    with_space, without = encode_pairs(tokenizer, [("the cat ", "sat"), ("the cat", " sat")])
    assert list(with_space.ids) == list(without.ids)
    assert with_space.num_scored == without.num_scored == len(tokenizer.encode(" sat"))


def test_an_empty_context_is_the_begin_token(tokenizer):
    (window,) = encode_pairs(tokenizer, [("", "the cat")])
    assert list(window.ids) == [tokenizer.bos_id, *tokenizer.encode("the cat")]
    assert window.num_scored == len(window.ids) - 1


LONG = Question(id="long one", context="the cat sat on the mat " * 30, options=[" the cat", " the dog"], gold=0)
SHORT = Question(id="short", context="the cat", options=[" sat", " on"], gold=1)


def test_a_question_longer_than_the_window_is_an_error_that_names_it(tokenizer, scorer):
    with pytest.raises(UserError, match=r"Question 'long one' has \d+ tokens, more than the 48"):
        list(rank_questions(scorer, tokenizer, [SHORT, LONG]))


def test_a_long_question_is_cut_at_its_beginning_if_asked_and_the_row_says_so(tokenizer, scorer):
    rows = {row["id"]: row for row in rank_questions(scorer, tokenizer, [SHORT, LONG], too_long="truncate")}
    assert "tokens_cut" not in rows["short"]
    kept = encode_pairs(tokenizer, LONG.pairs())[0].ids[-49:]
    (score,) = dict(
        scorer.score([type(encode_pairs(tokenizer, [("a", "b")])[0])(kept, rows["long one"]["tokens"][0])])
    ).values()
    assert rows["long one"]["tokens_cut"] > 0
    assert rows["long one"]["log_probs"][0] == pytest.approx(score.log_prob, abs=1e-5)


def test_a_long_question_is_left_out_of_all_figures_if_asked(tokenizer, scorer):
    rows = list(rank_questions(scorer, tokenizer, [SHORT, LONG], too_long="skip"))
    assert [row["id"] for row in rows if row.get("skipped")] == ["long one"]
    assert ranked_figures(rows, "none")["accuracy"].count == 1


def test_contexts_may_differ_by_option(tokenizer, scorer):
    question = Question(id="w", contexts=["the cat", "the dog"], options=[" sat", " sat"], gold=0)
    (row,) = rank_questions(scorer, tokenizer, [question])
    plain = [
        next(iter(rank_questions(scorer, tokenizer, [Question(id="x", context=c, options=[" sat"], gold=0)])))
        for c in ("the cat", "the dog")
    ]
    assert row["log_probs"] == pytest.approx([each["log_probs"][0] for each in plain], abs=1e-5)


def test_options_without_the_question_are_scored_on_request(tokenizer, scorer):
    question = Question(id="u", context="what? that.", options=[" the cat", " log"], gold=0, unconditional="Answer:")
    (row,) = rank_questions(scorer, tokenizer, [question], unconditional=True)
    (alone,) = rank_questions(
        scorer, tokenizer, [Question(id="v", context="Answer:", options=[" the cat", " log"], gold=0)]
    )
    assert row["unconditional"] == pytest.approx(alone["log_probs"], abs=1e-5)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a", "context": "c", "options": ["x"], "gold": 1}', "gold 1 is not the number"),
        ('{"id": "a", "context": "c", "options": [], "gold": 0}', "line 1"),
        ('{"id": "a", "contexts": ["c"], "options": ["x", "y"], "gold": 0}', "1 context stands beside 2 options"),
        ('{"id": "a", "context": "c", "options": ["x", ""], "gold": 0}', "an option is empty"),
        ('{"id": "a", "context": "c", "option": ["x"], "gold": 0}', "Did you mean 'options'"),
        ('{"id": "a", ', "line 1: not valid JSON"),
        ("", "is empty"),
    ],
)
def test_a_broken_file_of_questions_is_told_with_its_line(tmp_path, line, said):
    path = tmp_path / "task.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=said):
        read_questions(path)
