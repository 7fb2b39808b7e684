"""Documents to batches: what is kept, what is dropped and why, and that nothing is lost or seen twice."""

from __future__ import annotations

import ast
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data import (
    CollectConfig,
    Document,
    JsonlSource,
    PythonLibrarySource,
    TextSource,
    TokenizedCorpus,
    Tokenizer,
    collect,
    read_documents,
    read_records,
    tokenize_documents,
)
from lmlab.errors import UserError
from lmlab.files import DamagedError, read_jsonl, write_jsonl

_WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu")


def _text(seed: int, words: int = 120) -> str:
    generator = np.random.default_rng(seed)
    return " ".join(f"{_WORDS[i]}{generator.integers(100)}" for i in generator.integers(len(_WORDS), size=words))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train((_text(seed) for seed in range(40)), 350)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_json_lines_are_read_with_dotted_fields_and_broken_lines_are_rejects(tmp_path, suffix, pack):
    good = json.dumps({"a": {"b": "text"}, "meta": {"d": "news"}, "n": 7}).encode()
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(pack(b"\n".join([good, b"{broken", b'{"a": 1}', b"\xff\xfe", b""])))
    items = list(JsonlSource(path=str(path), text_field="a.b", domain_field="meta.d", id_field="n").read())
    assert items[0] == Document("7", "text", "news", f"{path.name}:1")
    assert [(item.where.rpartition(":")[2], item.reason.split(" (")[0].split(":")[0]) for item in items[1:]] == [
        ("2", "not valid JSON"),
        ("3", "no text in the field 'a.b'"),
        ("4", "not UTF-8"),
    ]


def test_a_truncated_archive_is_an_error(tmp_path):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"hello " * 1000)[:-20])
    with pytest.raises(DamagedError, match="the compressed data end early"):
        list(TextSource(path=str(path)).read())


def test_python_modules_are_split_into_code_and_docstrings(tmp_path):
    source = (
        '"""Module."""\nimport os\n\nclass A:\n    """Only this."""\n\ndef f(x, y=1):\n    """Say f."""\n    return'
        ' "text"\n'
    )
    (tmp_path / "mod.py").write_text(source)
    (tmp_path / "bad.py").write_text("def (:\n")
    items = {getattr(item, "id", "reject"): item for item in PythonLibrarySource(path=str(tmp_path)).read()}
    code, docstrings = items["code:mod"], items["docstrings:mod"]
    ast.parse(code.text)
    assert "Say f" not in code.text
    assert '"text"' in code.text
    assert docstrings.text == "module mod\n\nModule.\n\nclass A\n\nOnly this.\n\nf(x, y=1)\n\nSay f.\n"
    assert code.group == docstrings.group == "mod"
    assert items["reject"].where == "bad.py"


def test_topics_that_share_a_paragraph_are_held_out_together(tmp_path):
    shared = (
        "This is a paragraph that is long enough to show that one topic is a section of the other one, word by word."
    )
    topics = {"with": shared, "compound": f"Intro.\n\n{shared}\n\nMore.", "other": "Something else entirely."}
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    groups = {item.id: item.group for item in PythonLibrarySource(path=str(tmp_path)).read()}
    assert groups["reference:with"] == groups["reference:compound"] != groups["reference:other"]


def _collect(tmp_path, texts, **settings):
    path = tmp_path / "in.jsonl"
    path.write_text(
        "\n".join(json.dumps({"id": name, "text": text, "group": name.split("-")[0]}) for name, text in texts.items())
    )
    source = JsonlSource(path=str(path), id_field="id", group_field="group")
    report = collect([source], CollectConfig(**{"heldout_fraction": 0.0, **settings}), 0, tmp_path / "out")
    return report, list(read_jsonl(tmp_path / "out" / "dropped.jsonl"))


def test_exact_and_near_duplicates_are_dropped_and_named(tmp_path):
    text = _text(1, 400)
    words = text.split()
    words[200] = "changed"
    report, dropped = _collect(
        tmp_path, {"a": text, "b": f"  {text}\n", "c": " ".join(words), "d": _text(2, 400), "e": "short"}
    )
    assert [(row["id"], row["reason"], row.get("duplicate_of")) for row in dropped] == [
        ("b", "exact duplicate", "a"),
        ("c", "near-duplicate", "a"),
        ("e", "too short", None),
    ]
    assert report["train"]["documents"] == {"text": 2}


def test_of_two_copies_across_the_split_the_training_one_is_dropped(tmp_path):
    texts = {f"g{n}": _text(n, 200) for n in range(20)}
    first, _ = _collect(tmp_path, texts, heldout_fraction=0.3)
    heldout = first["heldout_groups"][0]
    copies = {f"copy{n}": texts[heldout] for n in range(10)}
    _, dropped = _collect(tmp_path, {**texts, **copies}, heldout_fraction=0.3)
    assert len(dropped) == 10
    reasons = {row["reason"] for row in dropped}
    assert "near or exact duplicate of held-out text" in reasons
    assert reasons <= {"near or exact duplicate of held-out text", "exact duplicate"}
    held = {document.text for document in read_documents(tmp_path / "out" / "heldout.jsonl")}
    assert held
    assert held.isdisjoint(document.text for document in read_documents(tmp_path / "out" / "train.jsonl"))


def test_groups_are_held_out_whole_and_the_same_every_time(tmp_path):
    texts = {f"g{n // 4}-{n}": _text(n, 100) for n in range(80)}
    report, _ = _collect(tmp_path, texts, heldout_fraction=0.25)
    again, _ = _collect(tmp_path, texts, heldout_fraction=0.25)
    assert report == again
    split = {
        name: {d.group for d in read_documents(tmp_path / "out" / f"{name}.jsonl")} for name in ("train", "heldout")
    }
    assert not split["train"] & split["heldout"]
    assert 0.15 < sum(report["heldout"]["bytes"].values()) / sum(report["read"]["bytes"].values()) <= 0.25


@given(st.text())
def test_every_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|endoftext|>", "")


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_prompt_begins_with_the_begin_token_here_and_in_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    loaded, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("def f():", "", "Grüße"):
        assert loaded.encode_prompt(text) == theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_a_tokenizer_without_a_rule_for_its_begin_token_follows_its_settings(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    definition, settings = (
        json.loads((tmp_path / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": None}))
    assert Tokenizer.load(tmp_path).encode_prompt("def") == tokenizer.encode("def")
    assert Tokenizer.load(tmp_path).encode_prompt("") == [tokenizer.bos_id]  # a prompt needs a token
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    assert Tokenizer.load(tmp_path).encode_prompt("def") == [tokenizer.bos_id, *tokenizer.encode("def")]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="at least 257"):
        Tokenizer.train(["text"], 100)


def test_paths_are_strings_or_path_objects(tmp_path):
    tokenizer = Tokenizer.train(["abc abc"], 260)
    documents = [Document("a", "abc"), Document("b", "cab")]
    write_jsonl(tmp_path / "d.jsonl", (document.row() for document in documents))
    for kind in (str, Path):
        out = tmp_path / kind.__name__
        tokenizer.save(kind(out / "tokenizer"))
        tokenize_documents(kind(tmp_path / "d.jsonl"), Tokenizer.load(kind(out / "tokenizer")), kind(out), workers=1)
        corpus = TokenizedCorpus(kind(out), verify=True)
        corpus.check_source(kind(tmp_path / "d.jsonl"))
        assert corpus.num_documents == len(list(read_records(kind(tmp_path / "d.jsonl")))) == 2
        assert [each.text for each in read_documents(kind(tmp_path / "d.jsonl"))] == ["abc", "cab"]
