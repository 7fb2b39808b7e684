"""SmolLM2-135M on the suite: what the controls must show of a real model."""

from __future__ import annotations

import pytest

from lmlab.evals import Evaluator
from lmlab.evals.long import Asking, LongSettings, build_instances, by_context, measurer
from lmlab.evals.tasks import olmes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed"),
]


@pytest.fixture(scope="module")
def rows(smollm2):
    evaluator = Evaluator.load(smollm2, "cpu", "fp32")
    asking = Asking(evaluator.tokenizer)
    settings = LongSettings(tasks=["json_kv.absent", "niah", "rag"], lengths=[512], contexts=2, questions=3)
    measure = measurer(evaluator, asking, "forced")
    return [row for group in by_context(list(build_instances(asking, settings))) for row in measure(group)]


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_keys_that_are_not_in_the_context_are_never_found(rows):
    assert {row["score"] for row in rows if row["name"] == "json_kv.absent"} == {0.0}


def test_passages_answer_questions_that_a_model_cannot_answer_alone(rows):
    found = [row for row in rows if row["name"] == "rag"]
    assert _mean(row["closed"]["nll"] for row in found) - _mean(row["nll"] for row in found) > 1


def test_needles_are_found(rows):
    assert _mean(row["score"] for row in rows if row["name"] == "niah") == 1
