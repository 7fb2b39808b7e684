"""A stage that failed before it wrote anything holds no results that a mended setting could endanger."""

import json

from lmlab.data import Tokenizer
from lmlab.models import ModelConfig, Transformer, save_pretrained


def test_a_setting_that_was_wrong_at_once_is_mended_without_redo(tmp_path, lmlab):
    tokenizer = Tokenizer.train(["a text"], 300)
    shape = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 64}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)).initialize(0)
    save_pretrained(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n")
    measure = ("eval", "--model", tmp_path / "model", "--documents", texts, "--out", tmp_path / "run")
    assert "longer than the model's" in lmlab(*measure).err
    assert "holds no documents" in lmlab(*measure, "--window", 32).err
    texts.write_text('{"text": ""}\n')
    assert "all of them empty" in lmlab(*measure, "--window", 32).err
    texts.write_text('{"text": "a text", "id": 7, "source": "mine"}\n{"text": "b", "domain": "letters"}\n')
    assert lmlab(*measure, "--window", 32, "--redo").code == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["evaluation"]
    assert set(found["measured"]["model"]["bits_per_byte"]) == {"text", "letters"}
    refused = lmlab(*measure, "--window", 16)
    assert refused.code == 2 and "holds results of other settings" in refused.err
