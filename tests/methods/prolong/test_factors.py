"""Searched factors of rotary frequencies: better than the rules that they begin with, kept, and read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
import yaml

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long.texts import passages
from lmlab.evals.rows import RowFile
from lmlab.evals.tasks import olmes
from lmlab.files import read_json
from lmlab.methods.prolong.answered import answered
from lmlab.methods.prolong.config import FactorSettings
from lmlab.methods.prolong.factors import known_factors, search_factors, with_factors
from lmlab.models import ModelConfig, RopeScaling, Transformer, from_pretrained, rotary_frequencies, save_pretrained

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")

SETTINGS = FactorSettings(to=512, candidates=16, contexts=1, questions=4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((passage.text for passage in passages()[:100]), 800)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=800, num_layers=2, d_model=32, num_heads=2, max_seq_len=256, init_std=0.3)
    return Transformer(config).initialize(5).eval()


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("short")
    save_pretrained(model, place, tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})
    tokenizer.save(place, 256)
    return place


def test_factors_of_the_rules_are_those_of_their_frequencies():
    config = ModelConfig(vocab_size=60, num_layers=1, d_model=64, num_heads=1, max_seq_len=64, rope_theta=1e4)
    plain = rotary_frequencies(config)
    rules = known_factors(config, 256)
    assert rules["unchanged"] == (1.0,) * 32 and rules["interpolated"] == (4.0,) * 32
    assert rules["auto"][-1] == pytest.approx(8 ** (62 / 64), rel=1e-4)  # 2 t theta of t = 4
    assert rules["auto-ntk"][-1] == pytest.approx(4, rel=1e-4)  # the slowest pair is interpolated, by construction
    yarn = RopeScaling(type="yarn", factor=4, original_max_seq_len=64)
    scaled = rotary_frequencies(config.model_copy(update={"rope_scaling": yarn}))
    assert np.allclose(plain / torch.tensor(rules["yarn"]), scaled, rtol=1e-4)
    searched = with_factors(config, 256, rules["yarn"])
    assert torch.allclose(rotary_frequencies(searched), scaled, rtol=1e-4)
    assert torch.equal(rotary_frequencies(searched, 64), plain)


def test_a_search_is_no_worse_than_its_rules_and_goes_on_where_it_was_stopped(model, tokenizer, tmp_path, monkeypatch):
    before = model.config
    whole = search_factors(model, tokenizer, SETTINGS, tmp_path / "whole")
    assert model.config == before
    assert whole.nll["searched"] <= min(whole.nll.values()) and set(whole.heldout_nll) == set(whole.nll)
    assert whole.candidates == 16 and whole.factors[0] >= 1 and list(whole.factors) == sorted(whole.factors)
    own = [answered(tokenizer, SETTINGS.tasks, 512, 1, 4, seed) for seed in (0, 1)]
    assert search_factors(model, tokenizer, SETTINGS, None, *own) == whole  # by texts of one's own, here the same ones
    written = RowFile.append

    def dies(self, row):
        if len(self.done()) == 7:
            raise KeyboardInterrupt
        written(self, row)

    monkeypatch.setattr(RowFile, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        search_factors(model, tokenizer, SETTINGS, tmp_path / "cut")
    assert model.config == before
    monkeypatch.setattr(RowFile, "append", written)
    assert search_factors(model, tokenizer, SETTINGS, tmp_path / "cut") == whole
    names = ("cut", "whole")
    assert len({(tmp_path / name / "candidates.jsonl").read_bytes() for name in names}) == 1


def test_the_command_writes_a_model_that_transformers_reads_alike(directory, model, tmp_path, lmlab):
    how = ("--contexts", "1", "--questions", "3", "--candidates", "8", "--task", "json_kv")
    done = lmlab("long", "search", directory, "--to", "512", *how, "--out", tmp_path)
    assert done.code == 0, done.err
    found = read_json(tmp_path / "factors.json")
    read = from_pretrained(tmp_path / "model").eval()
    assert read.config.max_seq_len == 512 and read.config.rope_scaling.long_factor == tuple(found["factors"])
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.arange(500)[None] % 797
    with torch.no_grad():
        assert torch.allclose(read(ids).logits_BTV, peer(ids).logits, atol=1e-4)
        short = ids[:, :256]  # within the old window nothing has changed
        assert torch.allclose(read(short).logits_BTV, model(short).logits_BTV, atol=1e-5)


def test_a_recipe_searches_and_trains_on(directory, tmp_path, lmlab):
    (tmp_path / "text.txt").write_text("\n\n".join(passage.text for passage in passages()[:40]))
    recipe = {
        "name": "searched",
        "seed": 0,
        "stages": {
            "documents": {
                "kind": "collect",
                "sources": [{"kind": "text", "path": str(tmp_path / "text.txt")}],
                "min_bytes": 10,
                "near_duplicate_threshold": None,
            },
            "tokens": {"kind": "tokenize", "documents": "documents", "tokenizer": str(directory)},
            "searched": {
                "kind": "search_rope",
                "model": str(directory),
                "to": 512,
                "candidates": 6,
                "contexts": 1,
                "questions": 2,
                "tasks": ["json_kv"],
            },
            "extended": {
                "kind": "train",
                "start": "searched",
                "tokens": "tokens",
                "seq_len": 512,
                "trainer": {"steps": 1, "batch_size": 1},
            },
            "report": {"kind": "report", "title": "A longer window"},
        },
    }
    path = tmp_path / "searched.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    planned = lmlab("run", path, "--dry-run", "--out", tmp_path / "run")
    assert planned.code == 0 and "length: 512 tokens in 1 step" in planned.err
    done = lmlab("run", path, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    found = read_json(run / "results.json")["searched"]
    config = from_pretrained(run / "extended" / "model").config
    assert config.max_seq_len == 512 and config.rope_scaling.long_factor == tuple(found["factors"])
    assert "Rotary frequencies" in next(run.rglob("*.html")).read_text()


def test_what_cannot_be_searched_is_refused(directory, tmp_path, lmlab, model, tokenizer):
    shorter = lmlab("long", "search", directory, "--to", "256", "--out", tmp_path)
    assert shorter.code == 2 and "no longer than the model's 256" in shorter.err
    unknown = lmlab("long", "search", directory, "--to", "512", "--task", "jsonkv", "--out", tmp_path)
    assert unknown.code == 2 and "Did you mean 'json_kv'?" in unknown.err
    small = lmlab("long", "search", directory, "--to", "257", "--task", "rag", "--out", tmp_path)
    assert small.code == 2 and "leave no room" in small.err
    scaled = Transformer(with_factors(model.config, 512, (1.0,) * 8)).initialize(0)
    with pytest.raises(UserError, match="scaled already"):
        search_factors(scaled, tokenizer, SETTINGS.model_copy(update={"to": 1024}))
    learned = ModelConfig(vocab_size=800, num_layers=1, d_model=32, num_heads=2, max_seq_len=64, positions="learned")
    with pytest.raises(UserError, match="no rotary frequencies"):
        search_factors(Transformer(learned).initialize(0), tokenizer, SETTINGS)


def test_one_pair_of_dimensions_is_searched_once_for_rules_that_agree(tokenizer, tmp_path):
    config = ModelConfig(vocab_size=800, num_layers=1, d_model=8, num_heads=4, max_seq_len=256)
    narrow = Transformer(config).initialize(1).eval()
    settings = FactorSettings(to=512, candidates=6, contexts=1, questions=1, tasks=["json_kv"])
    found = search_factors(narrow, tokenizer, settings, tmp_path)
    assert known_factors(config, 512)["auto-ntk"] == (1.0,) and found.candidates == 6
    assert len((tmp_path / "candidates.jsonl").read_text().splitlines()) == 6
