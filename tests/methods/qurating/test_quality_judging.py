"""Excerpts, prompts, votes, soft labels, judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.data import Document, Tokenizer
from lmlab.endpoints import ChatRequest, Choice, Endpoint, MockBackend, Reply, TokenLogProb
from lmlab.errors import UserError
from lmlab.methods.qurating import (
    EndpointJudge,
    ExcerptConfig,
    JudgePairs,
    Judgment,
    OfflineJudge,
    PairConfig,
    components,
    criterion,
    excerpt,
    excerpts,
    fit_bradley_terry,
    grade,
    make_groups,
    order_effects,
    parse_vote,
    preference,
    read_judgments,
    soft_labels,
    write_judgments,
)
from lmlab.methods.qurating.judgments import flat_rows
from lmlab.methods.qurating.problems import BadJudgment, Disconnected

CONFIG = ExcerptConfig(tokens=(32, 64), seed=5)


def long_documents(tokenizer: Tokenizer, count: int, tokens: int = 200) -> list[Document]:
    text = tokenizer.decode([300 + number % 90 for number in range(tokens)])
    return [Document(f"doc-{number}", f"{number} {text}") for number in range(count)]


def test_an_excerpt_depends_on_seed_and_document_alone(tokenizer: Tokenizer) -> None:
    documents = long_documents(tokenizer, 40)
    forward = {each.document: each for group in excerpts(documents, tokenizer, CONFIG) for each in group}
    pairs = [documents[start : start + 2][::-1] for start in range(0, 40, 2)][::-1]
    backward = {each.document: each for group in pairs for each in excerpts(group, tokenizer, CONFIG)[0]}
    assert forward == backward
    other = {
        each.document: each
        for group in excerpts(documents, tokenizer, ExcerptConfig(tokens=(32, 64), seed=6))
        for each in group
    }
    assert forward != other


def test_half_of_the_excerpts_and_a_few_more_are_longest_and_members_are_equal(tokenizer: Tokenizer) -> None:
    config = ExcerptConfig()
    filler = " ".join(["river"] * 700)
    groups = excerpts([Document(f"doc-{number}", filler) for number in range(5000)], tokenizer, config)
    lengths = [{each.length for each in group} for group in groups]
    assert all(len(each) == 1 for each in lengths)
    flat = [each.length for group in groups for each in group]
    assert min(flat) >= 256 and max(flat) == 512
    assert np.mean(np.array(flat) == 512) == pytest.approx(0.5 + 1 / 514, abs=0.02)
    starts = np.array([each.start for group in groups for each in group])
    total = len(tokenizer.encode(filler))
    assert (
        starts.min() >= 0
        and starts.max() <= total - 512
        and starts.std() == pytest.approx((total - 512) / 12**0.5, rel=0.05)
    )


def test_a_short_document_is_used_whole(tokenizer: Tokenizer) -> None:
    text = tokenizer.decode([300] * 60)
    assert excerpt(Document("x", text), 32, tokenizer, CONFIG).text == text


def test_a_window_has_no_broken_characters(tokenizer: Tokenizer) -> None:
    text = "東京🎉é" * 200
    for number in range(40):
        found = excerpt(Document(f"x{number}", text), 37, tokenizer, CONFIG).text
        assert "\ufffd" not in found and found in text


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
    assert effects.pairs == 4000 and 0.08 < effects.position_bias < 0.14 and 0.5 < effects.swap_consistency < 1


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
    found = JudgePairs(judge, criterion("educational_value")).run([["aaa", "rrr"], ["rrr", "aaa", "r"]])
    assert found.judgments[0].average["educational_value"][0, 1] == pytest.approx(expected)
    three = found.judgments[1].average["educational_value"]
    assert (
        three.shape == (3, 3) and three[1, 2] == pytest.approx(expected) and three[0, 2] == pytest.approx(1 - expected)
    )


def test_answers_that_an_endpoint_without_n_leaves_out_are_asked_one_by_one() -> None:
    asked: list[int] = []

    def one(request: ChatRequest) -> Reply:
        asked.append(request.n)
        return Reply("ok", (Choice("B", "stop"),))

    judge = EndpointJudge(Endpoint(model="m"), "votes", 4, backend=MockBackend(one))
    found = JudgePairs(judge, criterion("writing_style")).run([["x", "y"]])
    assert found.judgments[0].votes["writing_style"][1][0, 1] == 4 and sorted(asked) == [1] * 6 + [4] * 2


def test_refusals_are_missing_labels_that_are_counted_by_domain(
    documents: list[Document], tokenizer: Tokenizer
) -> None:
    refused = Reply("content_filter", error="no")
    judge = EndpointJudge(
        Endpoint(model="m"),
        "votes",
        2,
        backend=MockBackend(lambda request: refused if "garden" in str(request.messages) else "A"),
    )
    found = JudgePairs(judge, criterion("writing_style")).run(excerpts(documents[:8], tokenizer, CONFIG))
    assert sum(found.missing.values()) > 0 and all(reason == "content_filter" for _, _, reason in found.missing)
    assert any((each.average["writing_style"] == -100).all() for each in found.judgments)


def test_groups_of_one_are_skipped_and_equal_texts_are_equally_good() -> None:
    found = JudgePairs(OfflineJudge(), criterion("writing_style")).run([["alone"], ["same text", "same text"]])
    assert found.skipped == 1 and found.identical == 1
    assert found.judgments[0].average["writing_style"][0, 1] == 0.5


def test_texts_with_braces_stay_as_they_are_and_cannot_change_the_prompt() -> None:
    own = criterion("clarity", "is clearer than {text_a}.")
    content = own.pair_request("{text_b} {first}", "choose A").messages[1]["content"]
    assert "{text_b} {first}" in content and content.index("Option A") < content.index("choose A")
    assert own.prompt_hash != criterion("clarity", "is shorter.").prompt_hash
    with pytest.raises(UserError, match="clause"):
        criterion("clarity")


def test_grades_are_numbers_from_1_to_10(tokenizer: Tokenizer, documents: list[Document]) -> None:
    answers = iter(["7", " 10/10 ", "eleven"])
    found = grade(
        Endpoint(model="m", concurrency=1),
        criterion("writing_style"),
        [excerpt(each, 32, tokenizer, CONFIG) for each in documents[:3]],
        backend=MockBackend(lambda request: next(answers)),
    )
    assert sorted(each.average for each in found) == [-100.0, 7.0, 10.0]


@pytest.mark.parametrize("design", ["adjacent", "random", "within_domain", "cross_domain", "active"])
def test_designs_pair_what_they_say(design: Any, documents: list[Document]) -> None:
    ratings = {each.id: float(number) for number, each in enumerate(documents)}
    groups = make_groups(documents, PairConfig(design=design, n=20, k=2), ratings)
    assert len(groups) == 20 and all(group[0].id != group[1].id for group in groups)
    assert groups == make_groups(documents, PairConfig(design=design, n=20, k=2), ratings)
    if design == "within_domain":
        assert all(group[0].domain == group[1].domain for group in groups)
    if design == "cross_domain":
        assert all(group[0].domain != group[1].domain for group in groups)
    if design == "active":
        assert np.mean([abs(ratings[a.id] - ratings[b.id]) for a, b in groups]) < 8
    if design == "random":
        assert (
            components(
                [[each.id for each in group] for group in make_groups(documents, PairConfig(design="random", n=200))]
            )
            == 1
        )


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_judgments_come_back_as_they_were_written(suffix: str, tmp_path: Path) -> None:
    found = (
        JudgePairs(OfflineJudge(), [criterion("writing_style"), criterion("facts_and_trivia")])
        .run([["a b", "because 12", "c"]])
        .judgments
    )
    write_judgments(found, tmp_path / f"judgments{suffix}")
    back = list(read_judgments(tmp_path / f"judgments{suffix}"))
    assert back[0].texts == found[0].texts and back[0].prompts == found[0].prompts
    for name in found[0].average:
        np.testing.assert_array_equal(back[0].average[name], found[0].average[name])
        np.testing.assert_array_equal(back[0].votes[name], found[0].votes[name])


def test_the_flat_layout_goes_both_ways(tmp_path: Path) -> None:
    found = JudgePairs(OfflineJudge(), criterion("writing_style")).run([["a b", "because 12"]]).judgments
    rows = list(flat_rows(found, "writing_style"))
    assert rows[0]["comparisons_avg"] == pytest.approx(
        (rows[0]["comparisons_forward"] + 1 - rows[0]["comparisons_backward"]) / 2
    )
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert next(iter(read_judgments(tmp_path / "flat.jsonl"))).average["writing_style"][0, 1] == pytest.approx(
        rows[0]["comparisons_avg"]
    )


@pytest.mark.parametrize(
    "matrix",
    [
        [[-100, 0.7]],
        [[-100, 0.7], [0.4, -100]],
        [[-100, 1.7], [-0.7, -100]],
        [[-100, "x"], [0.3, -100]],
        [[-100, 0.7, 0.1], [0.3, -100, 0.1]],
    ],
)
def test_labels_that_cannot_be_are_an_error_with_their_row(matrix: Any, tmp_path: Path) -> None:
    good = {"texts": ["a", "b"], "q_average": [[-100, 0.7], [0.3, -100]]}
    (tmp_path / "j.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps({"texts": ["a", "b"], "q_average": matrix}) + "\n"
    )
    with pytest.raises(BadJudgment, match="row 2"):
        list(read_judgments(tmp_path / "j.jsonl"))


def test_missing_labels_are_exempt_from_the_sum(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(
        json.dumps({"texts": ["a", "b"], "q_average": [[-100, -100], [-100, -100]]}) + "\n"
    )
    judgment: Judgment = next(iter(read_judgments(tmp_path / "j.jsonl")))
    assert (judgment.average["q"] == -100).all()


def test_bradley_terry_scores_are_the_maximum_of_the_likelihood() -> None:
    from scipy.optimize import minimize
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    count = 200
    u = 1.5 * rng.standard_normal(count)
    wins = np.zeros((count, count))
    for i in range(count):
        for j in rng.choice(np.delete(np.arange(count), i), 20, replace=False):
            won = rng.random() < 1 / (1 + np.exp(u[j] - u[i]))
            wins[(i, j) if won else (j, i)] += 1
    scores = fit_bradley_terry(wins)
    assert spearmanr(scores, u)[0] >= 0.95
    rows, columns = np.nonzero(wins)
    weight = wins[rows, columns]

    def loss(x: Any) -> Any:
        return (weight * np.logaddexp(0, x[columns] - x[rows])).sum()

    def slope(x: Any) -> Any:
        p = weight / (1 + np.exp(x[rows] - x[columns]))
        return np.bincount(columns, p, count) - np.bincount(rows, p, count)

    other = minimize(loss, np.zeros(count), jac=slope, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000}).x
    np.testing.assert_allclose(scores, other - other.mean(), atol=1e-6)


def test_scores_need_a_connected_graph_or_a_prior() -> None:
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1
    with pytest.raises(Disconnected, match="2 sets"):
        fit_bradley_terry(apart)
    beaten = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 0]], float)
    with pytest.raises(Disconnected, match="infinite"):
        fit_bradley_terry(beaten)
    assert fit_bradley_terry(beaten, ridge=0.1)[0] > 0
