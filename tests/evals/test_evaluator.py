"""Models that lmlab does not have are run by `transformers`, and the output says so."""

from __future__ import annotations

import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Evaluator, Window
from lmlab.evals.scoring import score_all

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bloom")
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2))
    model.save_pretrained(directory)
    Tokenizer.train(["the cat sat on the mat " * 20], 300).save(directory)
    return directory, model.eval()


def test_another_architecture_is_scored_by_transformers(bloom):
    directory, model = bloom
    evaluator = Evaluator.load(directory, "cpu", "fp32")
    assert evaluator.scorer.description == "transformers (BloomForCausalLM: not an architecture of lmlab), float32"
    windows = [Window([1, 2, 3, 4, 5], 2), Window([9, 8, 7], 2), Window(list(range(40)), 10)]
    for window, score in zip(windows, score_all(evaluator.scorer, windows), strict=True):
        log_probs = model(torch.tensor([window.ids])).logits[0].detach().log_softmax(-1)
        places = range(len(window.ids) - window.num_scored, len(window.ids))
        assert score.log_prob == pytest.approx(
            sum(float(log_probs[place - 1, window.ids[place]]) for place in places), abs=1e-4
        )


def test_the_command_says_who_computed(lmlab, bloom, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "1", "context": "the", "options": [" cat", " mat"], "gold": 0}\n' * 1)
    (tmp_path / "q.yaml").write_text("name: animals\nrequests: q.jsonl\n")
    done = lmlab(
        "eval", "--model", bloom[0], "--tasks", tmp_path / "q.yaml", "--precision", "fp32", "--out", tmp_path / "run"
    )
    assert done.code == 0, done.err
    assert "Computed by transformers (BloomForCausalLM: not an architecture of lmlab)" in done.out
    assert "not an architecture of lmlab" in (tmp_path / "run" / "report.html").read_text()


def test_what_nobody_can_read_is_told_with_both_reasons(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "perceptron"}')
    with pytest.raises(UserError, match=r"'perceptron' is not supported.*Nor can transformers load it"):
        Evaluator.load(tmp_path, "cpu", "fp32")
