"""A checkpoint's short extension: what it learns from and is asked about, and that it goes on where it was stopped."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long.texts import passages
from lmlab.evals.tasks import olmes
from lmlab.files import read_json
from lmlab.methods.prolong.config import ProbeSettings
from lmlab.methods.prolong.probe import AnsweredRows, ranked
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.train import Trainer

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")
SETTINGS = ProbeSettings(times=2, tokens=4096, batch_tokens=1024, tasks=["json_kv.word"], contexts=2, questions=2)
OPTIONS = {"--times": 2, "--tokens": 4096, "--batch-tokens": 1024, "--task": "json_kv.word"}
OPTIONS |= {"--contexts": 2, "--questions": 2, "--learning-rate": 0.01}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((passage.text for passage in passages()[:100]), 800)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """Two seeds of one small model, and one with another window."""
    root = tmp_path_factory.mktemp("ladder")
    for name, seed, window in (("early", 0, 256), ("late", 1, 256), ("wide", 0, 512)):
        shape = ModelConfig(vocab_size=800, num_layers=1, d_model=32, num_heads=2, max_seq_len=window, init_std=0.05)
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        save_pretrained(Transformer(shape).initialize(seed), root / name, tokens=ends)
        tokenizer.save(root / name, window)
    return root


def test_rows_hold_long_contexts_and_short_ones_whose_answers_are_learned(tokenizer):
    rows = AnsweredRows(tokenizer, SETTINGS, 256, 512, 10)
    made = [rows[number] for number in range(10)]
    contexts = [int(row["document_ids"].max()) + 1 for row in made]
    assert sorted(contexts) == [1] * 6 + [2] * 4  # 60 % of the rows are one long context
    for row in made:
        learned = np.flatnonzero(row["labels"] != -100)
        assert 0 < len(learned) < 100 and set(row["document_ids"][learned]) <= {0, 1}
        assert (row["labels"][learned] == row["input_ids"][learned + 1]).all()  # the next token, within the document
        assert (row["document_ids"][learned] == row["document_ids"][learned + 1]).all()
    again = AnsweredRows(tokenizer, SETTINGS, 256, 512, 10)
    assert all((again[number][name] == row[name]).all() for number, row in enumerate(made) for name in row)
    other = AnsweredRows(tokenizer, SETTINGS.model_copy(update={"seed": 1}), 256, 512, 10)
    assert any((other[number]["input_ids"] != row["input_ids"]).any() for number, row in enumerate(made))


def test_checkpoints_are_ranked_and_a_probe_goes_on_where_it_was_stopped(checkpoints, lmlab, tmp_path, monkeypatch):
    options = [str(each) for pair in OPTIONS.items() for each in pair]
    models = [checkpoints / "early", checkpoints / "late"]
    done = lmlab("long", "probe", *models, *options, "--out", tmp_path / "whole")
    assert done.code == 0, done.err
    found = [read_json(tmp_path / "whole" / name / "probe.json") for name in ("1-early", "2-late")]
    for each in found:
        assert (
            each["window"] == [256, 512] and list(each["after"]) == ["256", "512"] and list(each["before"]) == ["256"]
        )
        assert each["after"]["256"]["nll"] < each["before"]["256"]["nll"] - 0.2  # it has learned what is asked
        assert each["tokens"] == 4096 and each["reached"] == each["after"]["512"]["score"]
    assert [each["model"] for each in ranked(found[::-1])] == [each["model"] for each in ranked(found)]
    fit = Trainer.fit

    def stopped(self):
        fit(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", stopped)
        assert lmlab("long", "probe", models[0], *options, "--out", tmp_path / "cut").code != 0
    assert not (tmp_path / "cut" / "1-early" / "probe.json").exists()
    assert lmlab("long", "probe", models[0], *options, "--out", tmp_path / "cut").code == 0
    assert read_json(tmp_path / "cut" / "1-early" / "probe.json") == found[0]
    for option, value in (("--learning-rate", 0.1), ("--rope-theta", "keep"), ("--long-share", 0.2)):
        refused = lmlab("long", "probe", models[0], *options, option, value, "--out", tmp_path / "cut")
        named = option.removeprefix("--").replace("-", "_")
        assert refused.code == 2 and f"holds a probe with another {named}." in " ".join(refused.err.split())
    other = found[1] | {"window": [512, 1024]}
    with pytest.raises(UserError, match="have other windows"):
        ranked([found[0], other])


def test_a_stage_probes_and_what_cannot_be_probed_is_named(checkpoints, lmlab, tmp_path):
    settings = {key.removeprefix("--").replace("-", "_"): value for key, value in OPTIONS.items()}
    settings["tasks"] = [settings.pop("task")]
    stage = {"kind": "probe_window", "model": str(checkpoints / "early"), **settings}
    path = tmp_path / "recipe.yaml"
    stages = {"probed": stage, "report": {"kind": "report", "title": "A probe"}}
    path.write_text(yaml.safe_dump({"name": "probe", "stages": stages}, sort_keys=False))
    done = lmlab("run", path, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "after 4,096 tokens a window of 256 recalls" in " ".join((done.out + done.err).split())
    assert "Extended for a short while" in next((tmp_path / "run").rglob("*.html")).read_text()
    shape = ModelConfig(vocab_size=800, num_layers=1, d_model=32, num_heads=2, max_seq_len=256, positions="learned")
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "gpt2")
    Tokenizer.load(checkpoints / "early").save(tmp_path / "gpt2", 256)
    refused = lmlab("long", "probe", tmp_path / "gpt2", "--out", tmp_path / "out")
    assert refused.code == 2 and "learned positions" in refused.err, refused.err
    refused = lmlab("long", "probe", checkpoints / "early", "--task", "ppl_gain", "--out", tmp_path / "out")
    assert refused.code == 2 and "tasks with answers" in refused.err
