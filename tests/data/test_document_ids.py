"""A document without an id of its own is called by its place within its source: that stays when all of it moves, and is
nobody else's.
"""

from __future__ import annotations

import json
import shutil

import pytest
from corpora import make_corpus, small_tokenizer

from lmlab.data import (
    CollectConfig,
    FolderSource,
    JsonlSource,
    TextSource,
    TokenizedSource,
    collect,
    read_documents,
)
from lmlab.data.chapters.source import ChaptersSource
from lmlab.methods.prolong.counting import CountedWordsSource


@pytest.fixture
def corpus(tmp_path):
    """Records, texts and chapters, with files of one name in several folders."""
    for number, folder in enumerate(("a", "b")):
        place = tmp_path / "corpus" / folder
        place.mkdir(parents=True)
        rows = [{"text": f"record {number} {n} " * 20} for n in range(3)] + [
            {"id": f"own-{number}", "text": f"own {number} " * 20}
        ]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "page.txt").write_text(f"a page of text {number} " * 20)
        (place / "part.md").write_text(f"# Part {number}\n\n" + f"words of part {number} " * 80)
    return tmp_path / "corpus"


SOURCES = [
    lambda path: FolderSource(path=path),
    lambda path: JsonlSource(path=path, id_field="id"),
    lambda path: TextSource(path=f"{path}/**/*.txt", documents="file"),
    lambda path: ChaptersSource(path=path, min_words=20),
]


@pytest.mark.parametrize("make", SOURCES)
def test_ids_stay_when_a_corpus_moves(corpus, tmp_path, monkeypatch, make):
    before = [each.id for each in make(str(corpus)).read()]
    assert len(set(before)) == len(before) >= 2 and not any(str(tmp_path) in id for id in before)
    shutil.move(corpus, tmp_path / "elsewhere")
    assert [each.id for each in make(str(tmp_path / "elsewhere")).read()] == before
    monkeypatch.chdir(tmp_path)
    assert [each.id for each in make("elsewhere").read()] == before


def test_sources_that_name_their_files_alike_do_not_share_ids(corpus, tmp_path):
    paths = [str(corpus / folder / "rows.jsonl") for folder in ("a", "b")]
    sources = [JsonlSource(path=path, id_field="id") for path in paths]
    keep = CollectConfig(min_bytes=0, near_duplicate_threshold=None, heldout_fraction=0)
    collect(sources, keep, 0, tmp_path / "out")
    ids = [each.id for each in read_documents(tmp_path / "out" / "train.jsonl")]
    places = [f"rows.jsonl:{n}" for n in (1, 2, 3)]
    assert sorted(ids) == sorted([*places, *(f"2//{place}" for place in places), "own-0", "own-1"])


@pytest.fixture
def ids(tmp_path):
    """Files of token ids of one name in two folders."""
    tokenizer = small_tokenizer()
    for folder in ("a", "b"):
        place = tmp_path / "ids" / folder
        place.mkdir(parents=True)
        rows = [{"input_ids": tokenizer.encode(f"alpha beta {folder} {n}")} for n in range(2)]
        (place / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "ids"


def test_token_ids_are_called_as_other_documents_are(ids, tmp_path, monkeypatch):
    def names(path):
        return [each.id for each in TokenizedSource(path=path, tokenizer=str(tmp_path / "tokenizer")).read()]

    before = names(str(ids))
    assert before == ["a/ids.jsonl:1", "a/ids.jsonl:2", "b/ids.jsonl:1", "b/ids.jsonl:2"]
    assert len(set(names(f"{ids}/*/ids.jsonl"))) == 4
    shutil.move(ids, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert names("./elsewhere") == names(str(tmp_path / "elsewhere")) == before


def test_sources_of_ids_and_of_other_sources_do_not_share_ids(ids, corpus, tmp_path):
    keep = CollectConfig(min_bytes=0, near_duplicate_threshold=None, heldout_fraction=0, exact_duplicates="keep")
    tokenizer = str(tmp_path / "tokenizer")
    sources = [TokenizedSource(path=str(ids / each / "ids.jsonl"), tokenizer=tokenizer) for each in "ab"]
    sources += [TokenizedSource(path=str(make_corpus(tmp_path / each, 2).directory)) for each in ("own", "other")]
    inner = [{"kind": "jsonl", "path": str(corpus / each / "rows.jsonl"), "id_field": "id"} for each in "ab"]
    sources += [CountedWordsSource(source=each) for each in inner]
    collect(sources, keep, 0, tmp_path / "out")
    found = [each.id for each in read_documents(tmp_path / "out" / "train.jsonl")]
    assert len(found) == len(set(found)) == 4 + 4 + 8
    assert {"ids.jsonl:1", "2//ids.jsonl:1", "5//rows.jsonl:1", "6//rows.jsonl:1", "own-0", "own-1"} <= set(found)
