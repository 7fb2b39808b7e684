"""Excerpts, designs of pairs, and the built-in wording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmlab.data import Document, Tokenizer
from lmlab.endpoints import Endpoint, MockBackend, Reply
from lmlab.errors import UserError
from lmlab.judging import EndpointJudge, Judged, JudgePairs, components, grade, summarize
from lmlab.methods.qurating import ExcerptConfig, PairConfig, criterion, excerpt, excerpts, make_groups
from lmlab.methods.qurating.report import judgment_sections
from lmlab.reports import Note, Table

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
        EndpointJudge(Endpoint(model="m", concurrency=1), backend=MockBackend(lambda request: next(answers))),
        criterion("writing_style"),
        [excerpt(each, 32, tokenizer, CONFIG) for each in documents[:3]],
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


def test_the_page_says_of_a_void_answer_that_neither_text_was_chosen() -> None:
    rows = [
        {"criterion": "c", "first": "a", "second": "b", "votes": votes, "reasons": "so " * 5000}
        for votes in ([0.0, 0.0], [0.0, 1.0])
    ]
    figures = summarize(Judged([]), 1) | {"judge": "j", "connected_sets": 0}
    (table,) = [
        block
        for section in judgment_sections(figures, rows)
        for block in section.blocks
        if isinstance(block, Table) and "chosen" in block.columns
    ]
    assert [row[3] for row in table.rows] == ["neither", "second"]
    assert max(len(row[4]) for row in table.rows) < 2100


@pytest.mark.parametrize(("bias", "error", "leans"), [(0.5, None, False), (0.3, 0.2, False), (-0.3, 0.1, True)])
def test_a_judge_is_said_to_lean_to_a_place_only_beyond_chance(bias: float, error: float | None, leans: bool) -> None:
    each = {"labels": 1, "position_bias": bias, "position_bias_error": error, "swap_consistency": 0.0}
    figures = summarize(Judged([]), 1) | {"judge": "j", "connected_sets": 0}
    figures["criteria"] = {"clarity": each | {"confidence": [1, *[0] * 9]}}
    notes = [block for section in judgment_sections(figures) for block in section.blocks if isinstance(block, Note)]
    assert any("leans to one place" in note.text for note in notes) == leans
