"""A look at data, on the terminal and as a page."""

from __future__ import annotations

import json

import pytest

from lmlab.data import TokenizedCorpus, TokenizedItem, Tokenizer, write_shards
from lmlab.inspection import inspect_data, write_inspection


@pytest.fixture
def run(lmlab, library, tmp_path):
    out = tmp_path / "run"
    whole = ("--set", "documents.sources.0.documents=file", "--set", "documents.min_bytes=60000")
    assert lmlab("tokenize", library, "--vocab-size", "400", "--out", out, *whole).code == 0
    return out


def test_shards_documents_and_sources_are_shown(lmlab, run, tmp_path):
    shown = lmlab("data", "inspect", run / "tokens", "--documents", "2", "--out", tmp_path / "page.html")
    assert shown.code == 0
    assert (
        "tokenized documents in 1 shard\n" in shown.out
        and "bytes a token" in shown.out
        and "median" in shown.out
        and "00000:1" in shown.out
    )
    page = (tmp_path / "page.html").read_text()
    assert "Lengths of documents in tokens" in page and 'class="token' in page
    shown = lmlab("data", "inspect", run / "documents", "--tokenizer", run / "tokenizer")
    assert "set aside:" in shown.out and "too short, such as" in shown.out
    counts = {
        path: inspect_data(str(path), Tokenizer.load(run / "tokenizer")) for path in (run / "tokens", run / "documents")
    }
    text, shards = counts[run / "documents"], counts[run / "tokens"]
    assert [length + 2 for length in text.lengths["text"]] == shards.lengths["text"]
    assert text.sizes == shards.sizes


def test_rejects_of_a_source_are_counted_by_reason(lmlab, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"body": {"x": "some text"}, "d": "web"}\n{"body": 1}\n{\n{"body": {"x": "more"}, "d": "books"}\n'
    )
    shown = lmlab(
        "data",
        "inspect",
        tmp_path / "a.jsonl",
        "--text-field",
        "body.x",
        "--domain-field",
        "d",
        "--out",
        tmp_path / "page.html",
    )
    assert shown.code == 0, shown.err
    assert "web" in shown.out and "books" in shown.out and "1 x no text in the field 'body.x'" in shown.out
    assert f"{tmp_path}/a.jsonl:2" in (tmp_path / "page.html").read_text()
    assert lmlab("data", "inspect", tmp_path / "nothing").code == 2


def test_what_is_learned_and_hostile_text_are_shown_as_text(tmp_path):
    tokenizer = Tokenizer.train(["<script>alert(1)</script> [bold]x[/bold]"] * 3, 300)
    ids = [tokenizer.bos_id, *tokenizer.encode("<script>alert(1)</script> [bold]x"), tokenizer.eos_id]
    write_shards(
        [TokenizedItem(ids, "<img src=x>", 30, [0] * 4 + [1] * (len(ids) - 4))],
        tokenizer,
        tmp_path / "shards",
        kind="examples",
    )
    found = inspect_data(str(tmp_path / "shards"))
    assert found.shown[0].learned == [False] * 4 + [True] * (len(ids) - 4)
    page = write_inspection(found, tmp_path / "page.html").read_text()
    assert "<img" not in page and "<script>alert" not in page
    assert "".join(found.shown[0].pieces).removeprefix("<|endoftext|>").startswith("<script>alert(1)</script> [bold]x")


def test_a_corpus_is_tokenized_again_with_another_tokenizer(lmlab, run, tmp_path):
    before = json.loads((run / "tokens" / "manifest.json").read_text())
    done = lmlab("tokenize", run / "tokens", "--vocab-size", "300", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    after = json.loads((tmp_path / "again" / "tokens" / "manifest.json").read_text())
    assert (
        after["tokenizer"]["vocab_size"] == 300
        and after["tokenizer"]["fingerprint"] != before["tokenizer"]["fingerprint"]
    )
    for part in ("documents", "bytes"):
        assert after["counts"]["text"][part] == before["counts"]["text"][part]
    assert after["counts"]["text"]["tokens"] > before["counts"]["text"]["tokens"]


def test_short_long_and_equal_documents_are_tokenized_again_in_their_order(lmlab, tmp_path):
    texts = ["a b", "long " * 300_000, "a b", "one more", "a  b"]
    tokenizer = Tokenizer.train(texts, 300)
    tokenizer.save(tmp_path / "tokenizer")
    items = [
        TokenizedItem([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], f"d{len(text)}", len(text))
        for text in texts
    ]
    write_shards(items, tokenizer, tmp_path / "shards", shard_tokens=1000)
    done = lmlab("tokenize", tmp_path / "shards", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    corpora = [TokenizedCorpus(tmp_path / name) for name in ("shards", "again/tokens")]
    old, new = ([(each.text, each.domain) for each in corpus.documents()] for corpus in corpora)
    assert old == new and len(new) == 5
