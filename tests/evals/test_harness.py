"""Our models in EleutherAI's harness: a task of its own format, read from local files, with our model and with
its own.
"""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")

from lmlab.data import Tokenizer
from lmlab.evals import Evaluator
from lmlab.evals.eleuther.harness import HarnessModel, run_harness
from lmlab.evals.scoring import score_all
from lmlab.evals.tasks.questions import encode_pairs, fit_window
from lmlab.models import ModelConfig, Transformer, convert, save_pretrained

RANKED = """
task: colors
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
            "question": f"The {thing} is colored",
            "options": [" red as blood", " green", " blue like the sky"],
            "gold": number % 3,
        }
        for number, thing in enumerate(["sky", "grass", "blood", "sea", "rose", "leaf", "fire"])
    ]
    data = directory / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("colors", RANKED), ("prose", ROLLING), ("echo", WRITING)):
        (directory / f"{name}.yaml").write_text(text.format(data=data))
    tokenizer = Tokenizer.train([json.dumps(row) for row in rows] * 10, 300)
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

    names = ["colors", "prose", "echo"]
    ours = run_harness(Evaluator.load(place / "model", "cpu", "fp32"), names, include=place)["results"]
    theirs = simple_evaluate(
        "hf",
        model_args={"pretrained": str(place / "model"), "dtype": "float32", "device": "cpu"},
        tasks=names,
        task_manager=TaskManager(include_path=str(place)),
        bootstrap_iters=0,
    )["results"]
    for task, metric in (
        ("colors", "acc,none"),
        ("colors", "acc_norm,none"),
        ("prose", "bits_per_byte,none"),
        ("echo", "exact_match,none"),
    ):
        assert ours[task][metric] == pytest.approx(theirs[task][metric], rel=1e-4), (task, metric)


def test_the_command_prints_the_table_of_the_harness(lmlab, place, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    arguments = ("eval", "harness", "--model", place / "model", "--include", place, "--precision", "fp32")
    done = lmlab(*arguments, "--tasks", "colors", "--limit", 3, "--out", tmp_path / "found.json")
    assert done.code == 0, done.err
    assert "colors" in done.out and "acc_norm" in done.out
    assert json.loads((tmp_path / "found.json").read_text())["n-samples"]["colors"]["effective"] == 3
    convert(place / "model", place / "model.gguf", gguf="fp32")
    done = lmlab("eval", "harness", "--model", place / "model.gguf", *arguments[4:], "--tasks", "colors", "--limit", 3)
    assert done.code == 0, done.err
    done = lmlab(*arguments, "--tasks", "nothing_such")
    assert (done.code, "has no task 'nothing_such'" in done.err) == (2, True)


TEXTS = ["the cat sat on the mat and the dog sat on the log", "they had the other: a b c, aa bb  cc\nand so on"]


def _tokenizer(kind):
    """Tokenizers whose tokens cross the place where a context ends: with and without words, by bytes and by spaces."""
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    else:
        backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<s>", "</s>", "<unk>"])
    if kind == "bytes":
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif kind in ("sentencepiece", "unigram"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace()
    elif kind == "old sentencepiece":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.train_from_iterator(TEXTS * 20, trainer)
    if kind != "no words":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(backend, "<s>", "</s>")


PAIRS = [
    ("the cat s", "at on the mat"),
    ("the cat ", "sat"),
    ("the cat", " sat"),
    ("the cat  \n", "and the dog"),
    ("th", "e other: a"),
    ("a", "a bb"),
    ("aa b", "b  cc"),
    ("", "the dog"),
    ("", " the dog"),
    ("", "<s>the dog"),
    ("<s>the cat", " sat on"),
    ("the cat sat on the mat and " * 8, "the dog sat"),
]


@pytest.mark.parametrize("kind", ["bytes", "no words", "sentencepiece", "old sentencepiece", "unigram"])
def test_continuations_and_texts_are_scored_as_the_harness_scores_them(tmp_path, kind):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = _tokenizer(kind)
    model = Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=2, max_seq_len=40)
    ).initialize(3)
    save_pretrained(model, tmp_path)
    tokenizer.save(tmp_path, 40)
    theirs = HFLM(str(tmp_path), device="cpu", dtype="float32", batch_size=4)
    ours = HarnessModel(str(tmp_path), device="cpu", precision="fp32")

    def asked(kind, arguments):
        return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]

    def scored(context, continuation):
        return not context or theirs._encode_pair(context, continuation)[1]  # the harness refuses what adds no token

    pairs = [pair for pair in PAIRS if scored(*pair)]
    assert len(pairs) > 7
    expected = theirs.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert [each[0] for each in ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)] == pytest.approx(
        [each[0] for each in expected], abs=2e-4
    )
    windows = [fit_window(window, 40, "truncate", "it")[0] for window in encode_pairs(ours.tokenizer, pairs)]
    found = score_all(ours.evaluator.scorer, windows)
    assert [each.log_prob for each in found] == pytest.approx([each[0] for each in expected], abs=2e-4)
    assert [each.greedy for each in found] == [each[1] for each in expected]
    texts = asked("loglikelihood_rolling", [(text,) for text in [*TEXTS, "<s>the cat", TEXTS[0] * 5, "a"]])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-3
    )
