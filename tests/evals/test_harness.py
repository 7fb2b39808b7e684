"""Our models in EleutherAI's harness: a task of its own format, read from local files, with our model and with
its own.
"""

from __future__ import annotations

import json

import pytest
from tokenizers import processors

pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")

from lmlab.data import Tokenizer
from lmlab.evals import Evaluator
from lmlab.evals.harness import run_harness
from lmlab.models import ModelConfig, Transformer, save_pretrained

RANKED = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
WRITING = """
task: echo
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harness")
    rows = [
        {
            "question": f"The {thing} is coloured",
            "options": [" red as blood", " green", " blue like the sky"],
            "gold": number % 3,
        }
        for number, thing in enumerate(["sky", "grass", "blood", "sea", "rose", "leaf", "fire"])
    ]
    data = directory / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("colours", RANKED), ("prose", ROLLING), ("echo", WRITING)):
        (directory / f"{name}.yaml").write_text(text.format(data=data))
    tokenizer = Tokenizer.train([json.dumps(row) for row in rows] * 10, 300)
    tokenizer.backend.post_processor = (
        processors.ByteLevel()
    )  # the harness would score a begin token that a tokenizer puts there by itself
    model = Transformer(ModelConfig(vocab_size=300, num_layers=2, d_model=32, num_heads=2, max_seq_len=64)).initialize(
        5
    )
    save_pretrained(model, directory / "model")
    tokenizer.save(directory / "model", 64)
    return directory


def test_the_harness_gives_the_same_results_on_our_model_and_on_its_own(place, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["colours", "prose", "echo"]
    ours = run_harness(Evaluator.load(place / "model", "cpu", "fp32"), names, include=place)["results"]
    theirs = simple_evaluate(
        "hf",
        model_args={"pretrained": str(place / "model"), "dtype": "float32", "device": "cpu"},
        tasks=names,
        task_manager=TaskManager(include_path=str(place)),
        bootstrap_iters=0,
    )["results"]
    for task, metric in (
        ("colours", "acc,none"),
        ("colours", "acc_norm,none"),
        ("prose", "bits_per_byte,none"),
        ("echo", "exact_match,none"),
    ):
        assert ours[task][metric] == pytest.approx(theirs[task][metric], rel=1e-4), (task, metric)


def test_the_command_prints_the_table_of_the_harness(lmlab, place, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    arguments = ("eval", "harness", "--model", place / "model", "--include", place, "--precision", "fp32")
    done = lmlab(*arguments, "--tasks", "colours", "--limit", 3, "--out", tmp_path / "found.json")
    assert done.code == 0, done.err
    assert "colours" in done.out and "acc_norm" in done.out
    assert json.loads((tmp_path / "found.json").read_text())["n-samples"]["colours"]["effective"] == 3
    done = lmlab(*arguments, "--tasks", "nothing_such")
    assert (done.code, "has no task 'nothing_such'" in done.err) == (2, True)
