from __future__ import annotations

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import LmlabError, UserError
from lmlab.models import convert, from_pretrained, save_pretrained
from lmlab.models.formats.pickles import read_pickle


@pytest.fixture
def source(make_model, tmp_path):
    directory = tmp_path / "source"
    save_pretrained(make_model("llama"), directory, tokens={"bos_token_id": 3, "eos_token_id": 4})
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5], "temperature": 0.3}))
    (directory / "unrelated.txt").write_text("")
    return directory


def test_weights_tokenizer_and_generation_settings_are_carried_along(source, ids, tmp_path):
    target = tmp_path / "target"
    done = convert(source, target, check=True)
    assert (done.model_type, done.difference < 1e-4) == ("llama", True)
    assert sorted(os.listdir(target)) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((target / "generation_config.json").read_text()) == {
        "bos_token_id": 3,
        "eos_token_id": [4, 5],
        "temperature": 0.3,
    }
    assert json.loads((target / "config.json").read_text())["eos_token_id"] == 4
    assert torch.equal(from_pretrained(target)(ids).logits_BTV, from_pretrained(source)(ids).logits_BTV)
    assert stat.S_IMODE((target / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (target / "config.json").stat().st_mode
    )


def test_large_weights_are_cut_into_files_with_an_index(source, ids, tmp_path):
    target = tmp_path / "target"
    convert(source, target, max_shard_bytes=20_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 20_000 for file in files)
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert torch.equal(from_pretrained(target)(ids).logits_BTV, from_pretrained(source)(ids).logits_BTV)
    files[1].unlink()
    with pytest.raises(LmlabError, match=rf"lacks 1 of {len(files)} files of weights: {files[1].name}"):
        from_pretrained(target)


def test_saving_again_leaves_no_stale_files(make_model, ids, tmp_path):
    save_pretrained(make_model("llama", seed=1), tmp_path, max_shard_bytes=20_000)
    model = make_model("llama", seed=2)
    save_pretrained(model, tmp_path)
    assert [file.name for file in tmp_path.glob("*safetensors*")] == ["model.safetensors"]
    assert torch.equal(from_pretrained(tmp_path)(ids).logits_BTV, model(ids).logits_BTV)


def test_a_model_in_the_target_is_never_overwritten(source, tmp_path):
    convert(source, tmp_path / "target")
    with pytest.raises(UserError, match="already holds a model"):
        convert(source, tmp_path / "target")


def test_the_type_of_the_weights_is_kept_unless_one_is_named(source, tmp_path):
    convert(source, tmp_path / "half", torch.bfloat16)
    convert(tmp_path / "half", tmp_path / "kept")
    assert {tensor.dtype for tensor in load_file(tmp_path / "kept" / "model.safetensors").values()} == {torch.bfloat16}


def pickled(source, content):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if content == "weights":
        torch.save(weights, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(_Run()))


class _Run:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_is_read_only_when_asked_for(source, ids, tmp_path, monkeypatch):
    expected = from_pretrained(source)(ids).logits_BTV
    pickled(source, "weights")
    with pytest.raises(UserError, match="only as a pickle.*\n.*--allow-pickle"):
        from_pretrained(source)
    convert(source, tmp_path / "target", allow_pickle=True)
    assert torch.equal(from_pretrained(tmp_path / "target")(ids).logits_BTV, expected)


def test_a_pickle_that_runs_code_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled(source, "code")
    with pytest.raises(LmlabError, match="cannot be read as plain weights"):
        from_pretrained(source, allow_pickle=True)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "is not an index of weights"),
        ("[]", "must hold a mapping of keys to values, not a list"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "is not an index of weights"),
    ],
)
def test_an_index_that_is_none_or_leaves_the_directory_is_refused(index, message, source):
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LmlabError, match=message):
        from_pretrained(source)


def test_a_broken_gguf_file_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LmlabError, match=r"model\.gguf' cannot be read"):
        from_pretrained(tmp_path)


def test_one_of_several_gguf_files_must_be_named(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds 2 GGUF files: a\.gguf, b\.gguf"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "fp8"], "Unknown dtype 'fp8'"),
        (["--max-shard-size", "big"], "'big' is not a size"),
        (["--max-shard-size", "0"], "is not a size"),
    ],
)
def test_impossible_options_of_the_command_are_user_errors(arguments, message, source, tmp_path):
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "target"), *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "target").exists()


def test_the_command_converts(source, tmp_path):
    result = CliRunner().invoke(
        app, ["convert", str(source), str(tmp_path / "target"), "--dtype", "bf16", "--max-shard-size", "20KB"]
    )
    assert result.exit_code == 0, result.output
    assert "llama" in result.output
    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["empty", "garbage"])
def test_a_damaged_pickle_is_an_error_that_names_it(content, tmp_path):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(LmlabError, match=r"weights\.bin' cannot be read as plain weights \(\S"):
        read_pickle(tmp_path / "weights.bin")


def test_an_error_without_words_is_named_by_its_kind(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise EOFError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(LmlabError, match=r"\(EOFError\)"):
        read_pickle(tmp_path / "weights.bin")
