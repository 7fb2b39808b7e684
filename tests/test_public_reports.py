"""Bugs that were reported in public against neighboring projects, tried on lmlab; docs/real-use.md lists them all."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from tokenizers import processors

from lmlab.data import TokenizedCorpus, Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Evaluator
from lmlab.files import parse_yaml
from lmlab.models import ModelConfig, Transformer, from_pretrained, read_config, save_pretrained
from lmlab.models.generation.defaults import end_token_ids

WORDS = ["the cat sat on the mat and the dog sat on the log "] * 20
ROWS = [{"id": f"d{n}", "text": f"the cat {n} sat on the mat and the dog sat on the log " * 3} for n in range(8)]


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    tokenizer = Tokenizer.train(WORDS, 300)
    shape = ModelConfig(vocab_size=300, num_layers=1, d_model=32, num_heads=2, max_seq_len=64)
    save_pretrained(Transformer(shape).initialize(0), directory)
    tokenizer.save(directory)
    return directory


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("text", ["1e-4", "2e-5", "3E-4", "1.e-3", "+5e-1", "1e3"])
def test_a_learning_rate_in_scientific_notation_is_a_number(text):  # LlamaFactory 4014, trl 1450, h2o-llmstudio 699
    assert parse_yaml(f"lr: {text}", "it") == {"lr": float(text)}


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_both_names_of_a_rope_scalings_kind_are_read(model, name):  # transformers 32167, llama3 299
    change(model / "config.json", rope_scaling={name: "linear", "factor": 2.0})
    assert "linear" in read_config(model).model_dump_json()


@pytest.mark.parametrize("value", [1, "linear", [], ["linear", 2.0], {"factor": "x", "type": "linear"}, {"type": 3}])
def test_a_rope_scaling_of_another_form_is_refused_in_a_sentence(model, value):  # transformers 32167
    change(model / "config.json", rope_scaling=value, rope_parameters=None)
    if value:
        with pytest.raises(UserError, match="config.json"):
            read_config(model)


@pytest.mark.parametrize("ids", [0, [0, 5], [7]])
def test_one_end_token_and_several_are_read(model, ids):  # distributed-llama 177, ChatLearn 263
    change(model / "generation_config.json", eos_token_id=ids)
    assert end_token_ids(model) == (tuple(ids) if isinstance(ids, list) else (ids,))


def test_an_exported_model_stops_at_its_tokenizers_end(lmlab, recipe, tmp_path):  # open-r1 663
    assert lmlab("run", recipe(until="model"), "--out", tmp_path / "run").code == 0
    directory = tmp_path / "run" / "model" / "model"
    assert end_token_ids(directory) == (Tokenizer.load(directory).eos_id,)


def test_a_template_that_writes_the_begin_token_gives_one(model):  # unsloth 10312, sglang 888
    tokenizer = Tokenizer.load(model).with_chat_template("{{ bos_token }}{{ messages[0].content }}")
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_id)]
    )
    assert tokenizer.encode_chat([{"role": "user", "content": "the cat"}], False).count(tokenizer.bos_id) == 1


def test_a_tokenizer_without_a_limit_says_so_with_a_huge_number(model):  # mlc-llm 2946
    change(model / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    assert Evaluator.load(model).scorer.max_seq_len == 64


@pytest.mark.parametrize("packed", [False, True])
def test_blank_lines_and_a_missing_last_line_end_lose_no_record(lmlab, tmp_path, packed):
    # phoenix 10820, velociraptor 3205, data-juicer 1055
    data = "\n\n".join(map(json.dumps, ROWS)).encode()
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    shown = lmlab("data", "inspect", path)
    assert shown.code == 0 and "8" in shown.out and "set aside" not in shown.out


def test_every_document_ends_with_the_end_token(lmlab, model, tmp_path):  # llm-foundry 199 and 843
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    keep = ("min_bytes=0", "near_duplicate_threshold=null", "heldout_fraction=0")
    settings = [word for each in keep for word in ("--set", f"documents.{each}")]
    done = lmlab("tokenize", path, "--tokenizer", model, "--out", tmp_path / "run", *settings)
    assert done.code == 0, done.err
    corpus = TokenizedCorpus(tmp_path / "run" / "tokens")
    (shard,) = corpus.shards
    assert (np.asarray(shard.tokens)[np.asarray(shard.ends) - 1] == corpus.tokenizer.eos_id).all()


def test_a_damaged_parquet_file_among_many_is_named(lmlab, tmp_path):  # hats-import 569, iceberg 13108
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for name in "abc":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    shown = lmlab("tokenize", tmp_path, "--out", tmp_path / "run", "--set", "documents.min_bytes=0")
    rejects = tmp_path / "run" / "documents" / "rejects.jsonl"
    assert "Traceback" not in shown.err and "b.parquet" in shown.err + (rejects.read_text() if rejects.exists() else "")


def test_an_option_that_merges_into_its_context_is_named(lmlab, model, tmp_path):  # lm-evaluation-harness 1053, 4055
    tokenizer = Tokenizer.load(model)
    whole = next(word for word in ("the", "cat", "sat", "mat", "dog", "log") if len(tokenizer.encode(f" {word}")) == 1)
    question = {"id": "merged", "context": f"the {whole[:-1]}", "options": [whole[-1], "x"], "gold": 0}
    assert len(tokenizer.encode(f"the {whole}")) <= len(tokenizer.encode(f"the {whole[:-1]}"))
    (tmp_path / "task.jsonl").write_text(json.dumps(question) + "\n")
    shown = lmlab("eval", "--model", model, "--task", tmp_path / "task.jsonl", "--out", tmp_path / "run")
    assert shown.code == 2 and "'merged'" in shown.err and "adds no token to its context" in shown.err


def test_a_tied_model_keeps_what_was_trained(model, tmp_path):  # litgpt 1727
    network = from_pretrained(model)
    network.embedding.weight.data += 1
    save_pretrained(network, tmp_path / "again")
    assert from_pretrained(tmp_path / "again").embedding.weight.equal(network.embedding.weight)
