"""GGUF files that lmlab writes, read back by `transformers` and by lmlab."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from lmlab.commands.models import app
from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.models import from_pretrained, save_pretrained
from lmlab.models.formats.gguf_write import write_gguf

gguf = pytest.importorskip("gguf", reason="needs the package 'gguf'")
pytest.importorskip("accelerate", reason="needs the package 'accelerate'")
TEXT = "The sea is 1234 deep;\n  and wide, isn't it?"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3), ("bf16", 5e-2), ("q8_0", 5e-2)])
@torch.no_grad()
def test_logits_are_those_of_the_file_in_transformers(make_model, ids, kind, dtype, tolerance, tmp_path):
    from transformers import AutoModelForCausalLM

    # transformers takes every Qwen 3 of GGUF to have heads of 128
    model = make_model(kind, **({"head_dim": 128} if kind == "qwen3" else {}))
    assert write_gguf(model, tmp_path / "model.gguf", dtype) == kind
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    expected = model(ids).logits_BTV
    assert float((theirs(ids).logits - expected).abs().max() / expected.abs().max()) < tolerance
    again = from_pretrained(tmp_path / "model.gguf")
    torch.testing.assert_close(again(ids).logits_BTV, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llama", {"activation": "gelu"}, "activation is gelu"),
        ("llama", {"attention": "sliding", "sliding_window": 4}, "sliding windows"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled"),
        ("gpt2", {}, "activation is gelu_tanh"),
        ("olmo2", {}, "no architecture written here"),
        ("llama", {"num_labels": 2}, "scalars"),
    ],
)
def test_what_the_file_could_not_say_is_refused(make_model, kind, changes, named, tmp_path):
    with pytest.raises(UserError, match=named):
        write_gguf(make_model(kind, **changes), tmp_path / "model.gguf", "fp32")
    assert not list(tmp_path.iterdir())


def byte_level(directory, vocab_size, digits):
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True), level]
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts) if digits else level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"})
    )


@pytest.mark.parametrize("digits", [False, True])
def test_the_command_writes_the_tokenizer_too(make_model, digits, tmp_path):
    model = make_model("llama", vocab_size=300)
    source, target = tmp_path / "source", tmp_path / "out" / "model.gguf"
    save_pretrained(model, source, tokens={"bos_token_id": 0, "eos_token_id": 1})
    byte_level(source, 280, digits)
    arguments = ["convert", str(source), str(target), "--to", "gguf", "--dtype", "q8_0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    fields = gguf.GGUFReader(target).fields
    assert fields["tokenizer.ggml.pre"].contents() == ("smollm" if digits else "gpt-2")
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 300
    CliRunner().invoke(app, ["convert", str(target), str(tmp_path / "back")], catch_exceptions=False)
    assert Tokenizer.load(tmp_path / "back").decode(Tokenizer.load(source).encode(TEXT)) == TEXT
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, UserError) and "already holds a model" in str(again.exception)


NAMED = {"default": "{{ messages }}", "rag": "{{ documents }}"}


@pytest.mark.parametrize("form", ["list", "files"])
def test_chat_templates_by_name_are_kept(make_model, form, tmp_path):
    source, target = tmp_path / "source", tmp_path / "model.gguf"
    save_pretrained(make_model("llama", vocab_size=300), source)
    byte_level(source, 280, False)
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    if form == "list":
        settings["chat_template"] = [{"name": name, "template": text} for name, text in NAMED.items()]
    else:
        (source / "additional_chat_templates").mkdir()
        (source / "chat_template.jinja").write_text(NAMED["default"])
        (source / "additional_chat_templates" / "rag.jinja").write_text(NAMED["rag"])
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(source).chat_template.sources == NAMED
    CliRunner().invoke(app, ["convert", str(source), str(target), "--to", "gguf"], catch_exceptions=False)
    fields = gguf.GGUFReader(target).fields
    assert fields["tokenizer.chat_template"].contents() == NAMED["default"]
    assert fields["tokenizer.chat_template.rag"].contents() == NAMED["rag"]


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(make_model, tmp_path):
    import tokenizers

    save_pretrained(make_model("llama"), tmp_path / "source")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.save(str(tmp_path / "source" / "tokenizer.json"))
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "source"), str(tmp_path / "m.gguf"), "--to", "gguf"])
    assert isinstance(result.exception, UserError) and "GGUF has no name" in str(result.exception)
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_tokens_that_only_the_files_beside_the_tokenizer_name_are_written(make_model, tmp_path):
    source, target = tmp_path / "source", tmp_path / "model.gguf"
    save_pretrained(make_model("llama", vocab_size=300), source)  # whose configuration names no special token
    byte_level(source, 280, False)
    (source / "tokenizer_config.json").write_text("{}")
    (source / "added_tokens.json").write_text(json.dumps({"<|call|>": 280, "<tool>": 281}))
    (source / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<|call|>"]})
    )
    CliRunner().invoke(app, ["convert", str(source), str(target), "--to", "gguf"], catch_exceptions=False)
    fields = gguf.GGUFReader(target).fields
    assert fields["tokenizer.ggml.tokens"].contents()[279:283] == [
        fields["tokenizer.ggml.tokens"].contents()[279],
        "<|call|>",
        "<tool>",
        "[PAD282]",
    ]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[280:283] == [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_reading_draws_no_bars(make_model, capfd, tmp_path):
    write_gguf(make_model("llama"), tmp_path / "model.gguf", "fp32")
    capfd.readouterr()
    from_pretrained(tmp_path / "model.gguf")
    assert capfd.readouterr().err == ""
