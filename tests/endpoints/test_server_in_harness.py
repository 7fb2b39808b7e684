"""EleutherAI's harness asks the server, and finds what it finds when it runs the model itself."""

from __future__ import annotations

import pytest

from lmlab.endpoints.server import background

harness = pytest.importorskip("lm_eval.models.openai_completions")

PAIRS = [("It was the best", " of times"), ("def f(x)", ": return x"), ("été, straße", " 数"), ("a", " b c")]


def test_the_harness_scores_and_generates_by_the_server_as_in_process(make_served, model_directory):
    from lm_eval.api.instance import Instance

    from lmlab.evals.eleuther.harness import HarnessModel

    def ask(model):
        scored = model.loglikelihood([Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)])
        options = {"until": ["q", "of"], "max_gen_toks": 20, "do_sample": False, "temperature": 0}
        return scored, model.generate_until(
            [Instance("generate_until", {}, (context, options), n) for n, (context, _) in enumerate(PAIRS)]
        )

    with background(make_served()) as url:
        by_server = harness.LocalCompletionsAPI(
            base_url=f"{url}/completions",
            model="small",
            tokenizer=str(model_directory),
            batch_size=3,
            add_bos_token=True,
        )
        scored, texts = ask(by_server)
    expected_scores, expected_texts = ask(HarnessModel(str(model_directory), "cpu", "fp32"))
    assert [greedy for _, greedy in scored] == [greedy for _, greedy in expected_scores]
    assert [log_prob for log_prob, _ in scored] == pytest.approx(
        [log_prob for log_prob, _ in expected_scores], abs=1e-4
    )
    assert texts == expected_texts and any(texts)
