"""A document without an id of its own is called by its place within its source: that stays when all of it moves, and is
nobody else's.
"""

from __future__ import annotations

import json
import shutil

import pytest

from lmlab.data import CollectConfig, FolderSource, JsonlSource, TextSource, collect, read_documents
from lmlab.data.chapters.source import ChaptersSource


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
