"""The recipe at full scale is a plan that can be checked without its model and its data."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
from tutor_questions import question

LLEMMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32016,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def test_the_plan_of_the_full_recipe(lmlab, tutor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/llemma_7b", "data/open-web-math", "data/TutorChat/train", "data/MetaMathQA"):
        (tmp_path / folder).mkdir(parents=True)
    for file in tutor.glob("*token*"):
        shutil.copy(file, tmp_path / "models" / "llemma_7b")
    (tmp_path / "models" / "llemma_7b" / "config.json").write_text(json.dumps(LLEMMA))
    pq.write_table(pa.table({"text": ["some text about stars " * 50] * 20}), tmp_path / "data/open-web-math/a.parquet")
    dialogue = {"mode": "openbook", "name": "x", "conversation": ["chapter", "q", "a"], "textbook_folder": "b"}
    rows = {
        "TutorChat/train": dialogue,
        "MetaMathQA": {"query": "1 + 1?", "response": "2"},
        "TutorEval": question(1, 1),
    }
    for folder, row in rows.items():
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    plan = lmlab("run", "tutor-paper", "--dry-run", "--processes", "8")
    assert plan.code == 0, plan.err
    assert plan.err.index("longer") < plan.err.index("mathmix") < plan.err.index("tutor_evaluate")
    assert plan.err.count("6,738,546,688") == 2 and "copies" in plan.err  # both stages train the whole 7B model
    assert not (tmp_path / "runs").exists()
