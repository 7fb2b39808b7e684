"""What was compressed is read by the core's commands, from files and stores, if the user wrote it or trusts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.data import TULU_TEMPLATE, Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_mapping, write_json, write_jsonl
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.models import GenerationConfig, ModelConfig, Transformer, find_soft_prompt, generate, save_pretrained


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("contexts")
    text = "summary vectors stand for a text that was read before, and a question goes on behind them"
    tokenizer = Tokenizer.train([text] * 3, 300).with_chat_template(TULU_TEMPLATE)
    shape = ModelConfig.model_validate(
        {"vocab_size": tokenizer.vocab_size, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 256}
    )
    model = Transformer(shape).initialize(0)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(4)
    save_pretrained(model, place / "base")
    tokenizer.save(place / "base")
    AutoCompressor.from_base(place / "base", summary_length=4, noise=1.0).save(place / "c", companions=place / "base")
    write_jsonl(place / "docs.jsonl", [{"id": "papers/one", "text": text}, {"id": "two", "text": text[20:]}])
    (place / "one.txt").write_text(text)
    return place


def test_generation_goes_on_behind_files_and_stores(lmlab: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    encode = ("compress", "encode", place / "c", "--in", place / "docs.jsonl", "--dtype", "fp32")
    assert lmlab(*encode, "--out", tmp_path / "s").code == 0
    assert lmlab("compress", "text", place / "c", place / "one.txt", "--out", tmp_path / "one.safetensors").code == 0
    compressor, tokenizer = AutoCompressor.load(place / "c"), Tokenizer.load(place / "c")
    ids = torch.tensor([tokenizer.encode_prompt((place / "one.txt").read_text())])
    vectors = compressor.compress(ids)
    config = GenerationConfig(temperature=0, max_new_tokens=8)
    prompt = tokenizer.encode(" a question")
    expected = generate(compressor.model, [prompt], config, decode=tokenizer.decode, soft_prompt=vectors.soft_prompt)
    plain = generate(compressor.model, [prompt], config, decode=tokenizer.decode)
    assert expected[0][0].text != plain[0][0].text
    command = ("generate", "--model", place / "c", " a question", "--temperature", 0, "--max-new-tokens", 8)
    for where in (tmp_path / "one.safetensors", tmp_path / "s" / "papers" / "one"):
        found = lmlab(*command, "--soft-prompt", where)
        assert found.code == 0 and found.out.rstrip("\n").endswith((expected[0][0].text or "").rstrip("\n")), found.err
    for where, said in (
        (tmp_path / "s", "store of 2 texts"),
        (tmp_path / "s" / "three", "holds no 'three'"),
        (tmp_path / "none", "no soft prompt"),
    ):
        found = lmlab(*command, "--soft-prompt", where)
        assert found.code == 2 and said in found.err


def test_what_others_wrote_needs_trust(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = ("compress", "encode", place / "c", "--in", place / "docs.jsonl", "--out", tmp_path / "s")
    assert lmlab(*encode).code == 0
    assert lmlab("compress", "text", place / "c", place / "one.txt", "--out", tmp_path / "one.safetensors").code == 0
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "another-user"))
    command = ("generate", "--model", place / "c", " a", "--max-new-tokens", 2, "--temperature", 0)
    for where in (tmp_path / "s" / "two", tmp_path / "one.safetensors"):
        found = lmlab(*command, "--soft-prompt", where)
        assert found.code == 2 and "--trust" in found.err
        assert lmlab(*command, "--soft-prompt", where, "--trust").code == 0
    told = read_mapping(tmp_path / "s" / "meta.json")
    write_json(tmp_path / "s" / "meta.json", told | {"width": 64})
    with pytest.raises(UserError, match="width 64"):
        find_soft_prompt(tmp_path / "s" / "two", AutoCompressor.load(place / "c").model, trust=True)


def test_a_chat_goes_on_behind_a_compressed_history(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from io import StringIO

    assert lmlab("compress", "text", place / "c", place / "one.txt", "--out", tmp_path / "one.safetensors").code == 0
    answers = []
    for more in ((), ("--soft-prompt", tmp_path / "one.safetensors")):
        monkeypatch.setattr("sys.stdin", StringIO("what was read\nand then\n/exit\n"))
        found = lmlab("chat", place / "c", "--temperature", 0, "--max-new-tokens", 6, *more)
        assert found.code == 0, found.err
        answers.append(found.out)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("kind", ["prune:kvzip", "prune:snap+prune:norm", "truncate", "full", "none", "cartridge"])
def test_generation_and_chats_go_on_behind_memories_of_any_kind(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from io import StringIO

    from lmlab.methods.autocompressor.kinds.base import create

    out, text = tmp_path / "m.safetensors", place / "one.txt"
    if kind == "cartridge":
        done = lmlab("compress", "cartridge", place / "base", text, "--rows", 4, "--steps", 2, "--out", out)
    else:
        done = lmlab("compress", "memory", place / "base", text, "--kind", kind, "--ratio", 4, "--out", out)
    assert done.code == 0, done.err
    compressor, tokenizer = AutoCompressor.load(place / "c"), Tokenizer.load(place / "base")
    model = compressor.model
    ids = torch.tensor([tokenizer.encode_prompt(text.read_text(), "as_text")])
    config = GenerationConfig(temperature=0, max_new_tokens=8, eos_ids=(tokenizer.eos_id,))
    prompt = tokenizer.encode(" a question")
    if kind != "cartridge":
        memory = create(kind, model, tokenizer=tokenizer, ratio=4).compress(ids)
        expected = generate(model, [prompt], config, decode=tokenizer.decode, memory=memory)[0][0].ids
        command = ("generate", "--model", place / "base", " a question", "--temperature", 0, "--max-new-tokens", 8)
        found = lmlab(*command, "--soft-prompt", out, "--json")
        assert found.code == 0 and json.loads(found.out)["ids"] == expected, found.err
    monkeypatch.setattr("sys.stdin", StringIO("what was read\nand then\n/exit\n"))
    found = lmlab("chat", place / "base", "--temperature", 0, "--max-new-tokens", 6, "--soft-prompt", out)
    assert found.code == 0, found.err
    if kind not in ("truncate", "none"):  # keys and values
        refused = lmlab("serve", place / "base", "--context", f"one={out}", "--port", 0)
        assert refused.code == 2 and "a memory of keys and values" in refused.err
    other = lmlab("generate", "--model", place / "base", "a", "--soft-prompt", text)
    assert other.code == 1 and "damaged" in other.err
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "another-user"))
    found = lmlab("generate", "--model", place / "base", "a", "--max-new-tokens", 2, "--soft-prompt", out)
    assert found.code == 2 and "--trust" in found.err
    more = ("--soft-prompt", out, "--trust")
    assert lmlab("generate", "--model", place / "base", "a", "--max-new-tokens", 2, *more).code == 0


def test_memories_that_need_training_or_a_text_are_refused(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "blank.txt").write_text("")
    for text, kind, said in (
        (place / "one.txt", "icae", "must be trained"),
        (place / "one.txt", "cartridge", "must be trained"),
        (place / "one.txt", "prune:snip", "no kind of compression"),
        (tmp_path / "blank.txt", "prune:norm", "has no text"),
    ):
        done = lmlab("compress", "memory", place / "base", text, "--kind", kind, "--out", tmp_path / "m.safetensors")
        assert done.code == 2 and said in done.err and not (tmp_path / "m.safetensors").exists(), done.err
