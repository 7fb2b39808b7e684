"""What instances of the long-context suite must never give away, and answers as models really write them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict

import pytest
from pydantic import ValidationError

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Evaluator, ModelScorer
from lmlab.evals.long import (
    SUITE_VERSION,
    Asking,
    LongSettings,
    NoRoom,
    build_context,
    build_instances,
    by_context,
    check_comparable,
    judge,
    measurer,
    prompt_of,
    summarize,
)
from lmlab.evals.long.draft import Draw
from lmlab.evals.long.metrics import share_of_words
from lmlab.evals.long.tasks.registry import PLANS
from lmlab.evals.tasks import olmes
from lmlab.models import ModelConfig, Transformer

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")


@pytest.fixture(scope="module")
def asking():
    """A token a byte, so that answers have as many tokens as can be."""
    return Asking(Tokenizer.train(["a"], 257))


def _plan(task, variant="default", length=4096, index=0, **more):
    return PLANS[task](Draw(task, variant, length, index, 0, more.get("questions", 8), more.get("demos", 0)))


@pytest.mark.parametrize("variant", ["mmlu_subject", "mmlu_subject_16", "mmlu_subject_57", "sst2"])
def test_questions_do_not_stand_among_their_own_examples(variant):
    for index in range(5):
        plan = _plan("icl", variant, index=index)
        for draft in plan.make(plan.most):
            assert f"{draft.question}\n" not in draft.context
            assert len({len(option) for option in draft.options}) == 1  # no label begins as another does


def test_a_function_that_is_asked_for_is_defined_once_whatever_its_parameters():
    for index in range(25):
        for draft in _plan("repo_def", index=index).make(1800):
            name = re.escape(draft.prefix[len("def ") : -1])
            assert len(re.findall(rf"\bdef +{name}\b", draft.context)) == 1, draft.prefix


def test_examples_of_rag_are_of_passages_that_are_never_shown():
    plan = _plan("rag", demos=40)
    for draft in plan.make(plan.most):
        assert draft.demos.count("Question: ") == 40 and f"{draft.question}\n" not in draft.demos


def test_facts_are_counted_as_words():
    assert share_of_words("In 2013 BLEU rose to 13.5.", ["3", "35", "13", "LEU"]) == 0
    assert share_of_words("In 2013 BLEU rose to 13.5, by 3.", ["3", "BLEU", "13.5", "2013"]) == 1
    for index in range(8):
        (draft,) = _plan("summ", index=index).make(600)
        assert not draft.meta["facts"] or share_of_words(draft.context, draft.meta["facts"]) == 1


def test_numbers_of_questions_and_examples_have_bounds():
    for given in ({"questions": 1000}, {"demos": 1000}):
        with pytest.raises(ValidationError):
            LongSettings(**given)
    assert len(_plan("icl", "mmlu_subject_57", questions=128).make(57)) == 128


def test_depth_is_where_the_answer_stands_behind_the_filler(asking):
    found = list(build_instances(asking, LongSettings(tasks=["niah"], lengths=[600, 1200, 2500], contexts=5)))
    for each in found:
        place = each.context.index("One of the special") / len(each.context)
        assert each.depth == pytest.approx(place, abs=0.35 if each.n_items else 0.01), each.id
    assert any(each.n_items == 0 and each.depth > 0.5 for each in found)  # behind nothing but filler


def test_every_question_can_be_answered_within_its_budget_and_the_window(asking):
    kinds = ["repo_def", "rag", "proc.path", "icl.natural_label", "ppl_gain", "summ", "rerank"]
    left_out = []
    found = list(build_instances(asking, LongSettings(tasks=kinds, lengths=[2000], contexts=1), left_out))
    for each in found:
        if each.task not in ("summ", "ppl_gain"):
            assert min(len(asking.tokenizer.encode(answer)) for answer in each.answer) <= each.budget, each.id
    with pytest.raises(NoRoom, match="nothing to ask that can be answered"):
        build_context(asking, Draw("proc", "table", 4000, 0, 0, 8, 0))
    # a window of exactly the length is enough
    shape = ModelConfig(vocab_size=257, num_layers=1, d_model=16, num_heads=2, max_seq_len=2000)
    model = Transformer(shape).initialize(0).eval()
    measure = measurer(Evaluator(ModelScorer(model, "fp32"), asking.tokenizer, model), asking, "forced")
    groups = [group for group in by_context(found) if group[0].task in ("rag", "repo_def", "summ", "ppl_gain")]
    assert groups and all(row["nll"] > 0 for group in groups for row in measure(group))


@pytest.mark.parametrize(
    ("task", "variant", "output", "score"),
    [
        ("icl", "mmlu_subject", "label: {gold}", 1.0),
        ("icl", "mmlu_subject", "Label: {gold}\n\ntext: next", 1.0),
        ("longqa", "default", "Answer: {gold}.", 1.0),
        ("rag", "default", "Sure.\nAnswer: {gold}", 1.0),
        ("repo_def", "default", "{prefix}{gold}):", 1.0),
        ("proc", "path", "Lines:\n{gold}", 1.0),
        ("longqa", "default", "Answer: perhaps", 0.0),
    ],
)
def test_answers_that_repeat_how_they_begin_are_read_from_there_on(asking, task, variant, output, score):
    settings = LongSettings(tasks=[f"{task}.{variant}"], lengths=[2500], contexts=1)
    instance = next(iter(build_instances(asking, settings)))
    found = judge(instance, output.replace("{gold}", instance.answer[0]).replace("{prefix}", instance.prefix))
    assert found["score"] == score
    if score:
        assert found["parsed"] and found["figures"].get("f1", 1.0) == 1.0
    assert prompt_of(instance).endswith(instance.prefix)


def test_averages_of_other_tasks_or_lengths_are_not_compared():
    def results(*cells):
        rows = [
            {"name": name, "length": length, "context": "c", "score": 1.0, "metric": "m", "figures": {"m": 1.0}}
            | {"n_items": 1, "chance": None, "short": False, "depth": None}
            for name, length in cells
        ]
        same = {"suite": 1, "mode": "forced", "tokenizer": "t", "template": "plain", "model": "m"}
        return same | summarize(rows)

    both = results(("json_kv.int", 512), ("json_kv.int", 1024))
    check_comparable([both, both, results(("json_kv.int", 512), ("json_kv.int", 1024), ("niah", 512))])
    for other in (results(("json_kv.int", 512)), results(("niah_multikey", 512), ("niah_multikey", 1024))):
        with pytest.raises(UserError, match="not measured in the same tasks at the same lengths"):
            check_comparable([both, other])


_OF_VERSION = {
    2: {
        "json_kv.int": "f68b424d0751",
        "json_kv.word": "0b0f2eda96ca",
        "json_kv.uuid": "0831be77a669",
        "json_kv.absent": "3b9e32ecc16b",
        "niah": "485b1e76e376",
        "niah.lit": "0fa11062b46c",
        "niah.nolit": "0e7b5d1a230f",
        "niah_multikey": "1ddcdd90c193",
        "niah_multikey.all": "6dd1d614b8d7",
        "niah_multivalue": "f04f77722a72",
        "rag": "93b81d4227d4",
        "rerank": "4533a898246e",
        "icl.mmlu_subject": "f55c65d3ae39",
        "icl.sst2": "223e87b18f5d",
        "longqa": "8107eb971b99",
        "summ": "e79a9b973fe4",
        "proc.path": "105fc908aa84",
    }
}
"""The first digits of the SHA-256 of instances, by version of the suite. Tasks on Python's own sources are not here."""


@pytest.mark.skipif(olmes.version() != "0.9.0", reason="the digests are those of another version of the texts")
def test_other_instances_are_another_version_of_the_suite(asking):
    """In every process, whatever its hash seed, and on any machine."""
    settings = LongSettings(tasks=list(_OF_VERSION[2]), lengths=[3000], contexts=1, questions=2, demos=1)
    found = defaultdict(hashlib.sha256)
    for instance in build_instances(asking, settings, []):
        found[instance.name].update(json.dumps(instance.model_dump(mode="json"), sort_keys=True).encode())
    digests = {name: digest.hexdigest()[:12] for name, digest in found.items()}
    assert digests == _OF_VERSION[SUITE_VERSION], "raise SUITE_VERSION, and note the digests of the new one"
