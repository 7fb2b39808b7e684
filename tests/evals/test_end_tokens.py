"""What ends a text that a model writes in a task: the tokenizer's end, and those of the model's generation settings."""

from __future__ import annotations

import json

from lmlab.data import Tokenizer
from lmlab.evals import Evaluator
from lmlab.evals.generation import Prompt
from lmlab.evals.tasks.generation_task import GenerationTask
from lmlab.evals.tasks.task import Settings
from lmlab.models import ModelConfig, Transformer, save_pretrained


def test_every_end_of_the_generation_settings_ends_a_text(tmp_path):
    tokenizer = Tokenizer.train(["the cat sat on the mat. " * 30], 280)
    shape = ModelConfig(vocab_size=280, num_layers=1, d_model=32, num_heads=2, max_seq_len=40)
    save_pretrained(Transformer(shape).initialize(3), tmp_path)
    tokenizer.save(tmp_path)
    plain = Evaluator.load(tmp_path)
    assert plain.end_ids == (tokenizer.eos_id,)
    task = GenerationTask(name="t", requests="none", max_new_tokens=8)
    prompt = Prompt(id="a", prompt="the cat", references=["x"])
    (whole,) = task.rows(plain, [prompt], Settings())
    third = tokenizer.encode(whole["text"])[2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_id, third]}))
    tuned = Evaluator.load(tmp_path)
    assert tuned.end_ids == (tokenizer.eos_id, third)
    (row,) = task.rows(tuned, [prompt], Settings())
    assert row["finish_reason"] == "stop" and whole["finish_reason"] == "length"
    assert whole["text"].startswith(row["text"]) and len(row["text"]) < len(whole["text"])
