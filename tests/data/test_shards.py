"""Tokenizing by shards: the same bytes whoever writes them, nothing done twice, and everything that is wrong is
named.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from corpora import make_corpus, small_tokenizer, write_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.data import (
    Document,
    PackedRows,
    Reject,
    TokenizedCorpus,
    TokenizedItem,
    TokenizedSource,
    Tokenizer,
    read_documents,
    tokenize_documents,
    write_shards,
)
from lmlab.errors import UserError
from lmlab.files import read_json


def _contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_the_tokens_are_those_of_the_documents(tmp_path):
    corpus = make_corpus(tmp_path)
    tokenizer = small_tokenizer()
    documents = [Document(**json.loads(line)) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    tokens = np.concatenate([shard.tokens for shard in corpus.shards])
    expected = [
        id for document in documents for id in (tokenizer.bos_id, *tokenizer.encode(document.text), tokenizer.eos_id)
    ]
    assert tokens.tolist() == expected
    assert len(corpus.shards) >= 3 and corpus.num_documents == 30
    counts = corpus.manifest["counts"]
    assert counts["even"]["documents"] == counts["odd"]["documents"] == 15
    assert sum(each["tokens"] for each in counts.values()) == corpus.num_tokens == len(expected)
    assert sum(each["bytes"] for each in counts.values()) == sum(len(document.text.encode()) for document in documents)


def test_the_number_of_workers_and_compression_change_nothing(tmp_path):
    corpus = make_corpus(tmp_path)
    tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(), tmp_path / "two", 1500, workers=2)
    assert _contents(tmp_path / "two") == _contents(corpus.directory)
    packed = tmp_path / "documents.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "documents.jsonl").read_bytes()))
    tokenize_documents(packed, small_tokenizer(), tmp_path / "packed", 1500, workers=1)
    assert [shard.tokens.tolist() for shard in TokenizedCorpus(tmp_path / "packed").shards] == [
        shard.tokens.tolist() for shard in corpus.shards
    ]
    assert not list((tmp_path / "packed").glob("*.jsonl"))


def test_finished_shards_are_kept_and_changed_ones_made_again(tmp_path):
    corpus = make_corpus(tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in corpus.directory.glob("*.npy")}
    lines = (tmp_path / "documents.jsonl").read_bytes()
    tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(), corpus.directory, 1500, workers=1)
    assert {path.name: path.stat().st_mtime_ns for path in corpus.directory.glob("*.npy")} == stamps
    place = lines.rindex(b"alpha")
    (tmp_path / "documents.jsonl").write_bytes(lines[:place] + b"gamma" + lines[place + 5 :])
    tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(), corpus.directory, 1500, workers=1)
    changed = {name for name, stamp in stamps.items() if (corpus.directory / name).stat().st_mtime_ns != stamp}
    assert {name.split(".")[0] for name in changed} == {max(stamps).split(".")[0]}
    tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(300), corpus.directory, 10**6, workers=1)
    assert TokenizedCorpus(corpus.directory, verify=True).tokenizer_fingerprint == small_tokenizer(300).fingerprint
    assert sorted(path.name for path in corpus.directory.glob("0*")) == [
        "00000.documents.npy",
        "00000.json",
        "00000.tokens.npy",
    ]


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path):
    write_documents(tmp_path / "documents.jsonl", 3000)
    small_tokenizer().save(tmp_path / "tokenizer")
    script = """\
import sys; from pathlib import Path; from lmlab.data import Tokenizer, tokenize_documents
if __name__ == '__main__':
    root = Path(sys.argv[1])
    tokenizer = Tokenizer.load(root / 'tokenizer')
    tokenize_documents(root / 'documents.jsonl', tokenizer, root / sys.argv[2], 4000, workers=2)
"""
    (tmp_path / "job.py").write_text(script)

    def start(name):
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "job.py"), str(tmp_path), name],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait(120) == 0
    process = start("killed")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.json")}
    assert start("killed").wait(120) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    left = {name: data for name, data in _contents(tmp_path / "killed").items() if not name.endswith(".tmp")}
    assert left == _contents(tmp_path / "whole")


@pytest.mark.parametrize("part", ["tokens", "documents"])
def test_altered_truncated_and_missing_shards_are_named(tmp_path, part):
    corpus = make_corpus(tmp_path)
    path = corpus.directory / f"00001.{part}.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=path.name):
        TokenizedCorpus(corpus.directory, verify=True)
    for cut in (len(data) - 40, 50, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=path.name):
            TokenizedCorpus(corpus.directory)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        TokenizedCorpus(corpus.directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("whole"), 9).directory


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["manifest.json", "00000.documents.npy", "00000.tokens.npy", "tokenizer/tokenizer.json"]), st.data()
)
def test_whatever_bytes_of_shards_change_a_sentence_says_so(whole, tmp_path, name, data):
    """Without hashes the index must at least fit the tokens; with them every change is seen."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    content = bytearray((whole / name).read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = value
    content = content[: data.draw(st.sampled_from([len(content), len(content) // 2, 0]))]
    (copy / name).write_bytes(content)
    unchanged = content == (whole / name).read_bytes() or name in ("manifest.json", "tokenizer/tokenizer.json")
    for read in (
        lambda: [PackedRows(TokenizedCorpus(copy), 8)[0]],
        lambda: list(TokenizedSource(path=str(copy)).read()),
    ):
        problem = None
        try:
            found = read()
        except UserError as error:
            problem = error.message
        assert str(copy) in problem if problem else found
    assert problem or unchanged


def test_another_tokenizer_another_source_and_another_format_are_named(tmp_path):
    corpus = make_corpus(tmp_path)
    corpus.check_tokenizer(small_tokenizer())
    with pytest.raises(UserError, match="shards' was made with another tokenizer"):
        corpus.check_tokenizer(small_tokenizer(300))
    corpus.check_source(tmp_path / "documents.jsonl")
    data = (tmp_path / "documents.jsonl").read_bytes()
    for changed in (data.replace(b"alpha", b"gamma", 1), data + b"\n"):
        (tmp_path / "documents.jsonl").write_bytes(changed)
        with pytest.raises(UserError, match=r"documents.jsonl' is not the file that shard 00000"):
            corpus.check_source(tmp_path / "documents.jsonl")
    small_tokenizer(300).save(corpus.directory / "tokenizer")
    with pytest.raises(UserError, match="another tokenizer"):
        list(TokenizedCorpus(corpus.directory).documents())
    manifest = read_json(corpus.directory / "manifest.json")
    (corpus.directory / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(UserError, match="has format 1"):
        TokenizedCorpus(corpus.directory)


def test_documents_come_back_and_those_that_the_tokenizer_lost_are_rejects(tmp_path):
    corpus = make_corpus(tmp_path)
    documents = [Document(**json.loads(line)) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    found = list(corpus.documents())
    assert [(each.text, each.domain) for each in found] == [(each.text, each.domain) for each in documents]
    assert found[0].id == "00000:0" and found[-1].id.startswith(corpus.shards[-1].name)
    lossy = [TokenizedItem([small_tokenizer().bos_id, 5, 6], "text", 1000)]
    write_shards(lossy, small_tokenizer(), tmp_path / "lossy")
    (reject,) = TokenizedCorpus(tmp_path / "lossy").documents()
    assert isinstance(reject, Reject) and reject.where.endswith("lossy/00000:0")


def test_masks_are_kept(tmp_path):
    items = [TokenizedItem(list(range(n, n + 9)), "chat", 9, [0] * 4 + [1] * 5) for n in range(20)]
    manifest = write_shards(items, small_tokenizer(), tmp_path, shard_tokens=50, kind="examples")
    corpus = TokenizedCorpus(tmp_path, verify=True)
    assert manifest["kind"] == "examples" and manifest["counts"]["chat"]["learned_tokens"] == 100
    assert np.concatenate([shard.mask for shard in corpus.shards]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1] * 20


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_of_documents_is_named(tmp_path, suffix, damage):
    zstandard = pytest.importorskip("zstandard")
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }[suffix]
    write_documents(tmp_path / "documents.jsonl")
    packed, path = pack((tmp_path / "documents.jsonl").read_bytes()), tmp_path / f"documents.jsonl{suffix}"
    middle = len(packed) // 2
    path.write_bytes(packed[:middle] if damage == "cut" else b"\xff" * 60 + packed[60:])
    with pytest.raises(UserError, match=path.name):
        tokenize_documents(path, small_tokenizer(), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=path.name):
        list(read_documents(path))
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_line_that_is_no_document_is_named(tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"id": "a", "text": "b"}\n{"nothing": 1}\n')
    with pytest.raises(UserError, match=r"documents.jsonl', byte 25: not a document"):
        tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(), tmp_path / "out", workers=1)
    (tmp_path / "documents.jsonl").write_text("")
    assert (
        tokenize_documents(tmp_path / "documents.jsonl", small_tokenizer(), tmp_path / "out", workers=1)["shards"] == []
    )
    assert TokenizedCorpus(tmp_path / "out").num_tokens == 0
    with pytest.raises(UserError, match="0 tokens, less than one row"):
        PackedRows(TokenizedCorpus(tmp_path / "out"), 8)
    assert Tokenizer.load(tmp_path / "out" / "tokenizer").fingerprint == small_tokenizer().fingerprint
