"""Collections in every layout, and what is wrong with them, with file and line; and stores of vectors."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
import time

import numpy as np
import pytest

from lmlab.distributed import Record, UrlStore
from lmlab.errors import UserError
from lmlab.files import file_system
from lmlab.retrieval import (
    EmbeddingStore,
    load_dataset,
    read_corpus,
    read_qrels,
    read_queries,
    write_dataset,
)
from lmlab.retrieval.collections.read import judged_queries
from lmlab.retrieval.locks import alone
from tiny_retriever import WORDS, write_collection


def test_a_beir_folder_is_read_compressed_or_not_and_written_again(collection, tmp_path):
    data = load_dataset(collection, "train")
    assert (len(data.corpus), len(data.queries), data.name) == (60, 18, "small")
    assert data.corpus.texts[0] == f"{data.corpus.titles[0]} {data.corpus.bodies[0]}"
    write_dataset(data, tmp_path / "copy")
    again = load_dataset(tmp_path / "copy", "train")
    assert (again.corpus, again.queries, again.qrels) == (data.corpus, data.queries, data.qrels)
    zstandard = pytest.importorskip("zstandard")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        path = tmp_path / "copy" / name
        path.with_name(path.name + ".zst").write_bytes(zstandard.compress(path.read_bytes()))
        path.unlink()
    assert load_dataset(tmp_path / "copy", "train").qrels == data.qrels


def test_notes_beside_judgments_are_no_split(collection, tmp_path):
    shutil.copytree(collection, tmp_path / "small")
    for name in (".DS_Store", "README.md"):
        (tmp_path / "small" / "qrels" / name).write_bytes(b"\0")
    assert judged_queries(tmp_path / "small") == judged_queries(collection)


def test_the_layout_of_hugging_face_and_trec_judgments_and_plain_lists(collection, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = load_dataset(collection, "test")
    tables = {
        "corpus/corpus-0.parquet": list(data.corpus.rows()),
        "queries/queries-0.parquet": list(data.queries.rows()),
        "qrels/test.parquet": [
            {"query-id": query, "corpus-id": doc, "score": grade}
            for query, judged in data.qrels.items()
            for doc, grade in judged.items()
        ],
    }
    for name, rows in tables.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{key: value for key, value in row.items() if key != "metadata"} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    again = load_dataset(tmp_path, "test")
    assert (again.corpus.texts, again.queries.texts, again.qrels) == (
        data.corpus.texts,
        data.queries.texts,
        data.qrels,
    )
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    assert read_qrels(tmp_path / "qrels.txt") == {"q1": {"d1": 2, "d2": 0}}
    (tmp_path / "list.txt").write_text("first passage\n\nsecond\n")
    assert read_corpus(tmp_path / "list.txt").ids == ("list-1", "list-3")
    (tmp_path / "null.jsonl").write_text('{"_id": "a", "title": null, "text": "x"}\n{"_id": "b", "text": ""}\n')
    assert read_corpus(tmp_path / "null.jsonl").texts == ["x", ""]


def test_collections_of_other_shapes_are_read(tmp_path):
    """Headers in other spelling, whole numbers with a fraction, line ends of Windows, marks at the beginning of files,
    titles alone, long and odd ids, brackets in the folder's name; and a search that needs no judgments.
    """
    place = tmp_path / "data [v2]"
    (place / "qrels").mkdir(parents=True)
    long, odd = "d" * 4000, "ключ/№ 7"
    rows = [
        {"_id": long, "title": "the sea", "text": ""},
        {"_id": odd, "text": "\u2028 a ship\u00a0"},
        {"_id": 7, "text": ""},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (place / "corpus.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    (place / "queries.jsonl").write_text('{"_id": "q", "text": "sea?"}\n{"_id": "none", "text": "?"}\n')
    qrels = f"Query_ID\tCorpus-id\tSCORE\r\nq\t{long}\t2.0\r\nq\t{odd}\t0\r\nnone\t7\t0\r\n"
    (place / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(qrels.encode()))
    data = load_dataset(place)
    assert data.corpus.ids == (long, odd, "7") and data.corpus.texts[0] == "the sea" and data.corpus.texts[2] == ""
    assert data.qrels == {"q": {long: 2, odd: 0}, "none": {"7": 0}}
    (place / "qrels" / "test.tsv.gz").unlink()
    with pytest.raises(UserError, match=r"has no test\.tsv"):
        load_dataset(place)
    bare = load_dataset(place, judged=False)
    assert bare.queries.ids == ("q", "none") and bare.qrels == {} and "no judgments" in bare.notices[0]
    (place / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t7\t1.5\n")
    with pytest.raises(UserError, match=r"has no test\.tsv. It has: dev"):  # a slip in the split is told
        load_dataset(place, judged=False)
    with pytest.raises(UserError, match=r"line 2: the grade '1\.5' is no whole number"):
        load_dataset(place, "dev")
    (place / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match=r"judgments of the split 'dev' of 'data \[v2\]' hold 0 queries"):
        load_dataset(place, "dev")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "line 2: the id 'a' stands in .* line 1",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{oops\n', "line 2: not valid JSON"),
        ("corpus.jsonl", '{"_id": "a", "title": "x"}\n', "line 1: the key 'text' must hold text, not nothing"),
        ("corpus.jsonl", '{"text": "x", "_id": 1.5}\n', "line 1: the key '_id' must hold"),
        ("corpus.jsonl", '{"_id": "a", "text": "x", "title": 3}\n', "line 1: the key 'title' must hold text, not 3"),
        ("corpus.jsonl", "[1]\n", "line 1 must hold a mapping"),
        ("queries.jsonl", "\n", "holds 0 queries"),
        ("qrels/test.tsv", "query\tdocument\tscore\nq\td\t1\n", "line 1: the header must be 'query-id'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td\n", "line 2: 2 columns where 3"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td\thigh\n", "line 2: the grade 'high' is no whole number"),
    ],
)
def test_a_fault_is_named_with_file_and_line(name, text, message, tmp_path):
    place = write_collection(tmp_path / "bad")
    (place / name).write_text(text)
    with pytest.raises(UserError, match=message) as found:
        load_dataset(place)
    assert name in found.value.message


def test_judgments_of_unknown_ids_are_an_error_that_names_them_or_are_dropped(tmp_path):
    place = write_collection(tmp_path / "some")
    rows = (place / "qrels" / "test.tsv").read_text()
    rows += "".join(f"nobody{number}\td000\t1\n" for number in range(7)) + "q018\tnothing\t1\n"
    (place / "qrels" / "test.tsv").write_text(rows)
    with pytest.raises(UserError, match=r"name 7 queries that are not there, such as 'nobody0', .*'nobody4'\."):
        load_dataset(place)
    data = load_dataset(place, ignore_missing=True)
    assert len(data.notices) == 2 and "nothing" not in data.qrels["q018"] and "nobody0" not in data.qrels


def test_a_public_name_says_how_to_lay_out_a_copy_and_a_missing_split_names_those_there(collection):
    with pytest.raises(UserError, match="nothing is downloaded by name") as found:
        load_dataset("fiqa")
    assert "fiqa/corpus.jsonl" in str(found.value.remedy)
    with pytest.raises(UserError, match=r"has no dev.tsv. It has: test, train"):
        load_dataset(collection, "dev")


def test_crafted_records_are_told_and_kept_out(tmp_path):
    rows = [
        {"_id": "a", "text": "x"},
        {"_id": "b", "text": "y", "metadata": {"redteam": True}},
        {"_id": "c", "text": "z", "redteam": True},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_corpus(path, redteam="keep").ids == ("a", "b", "c")
    found = read_corpus(path)
    assert found.ids == ("a",) and found.left_out == ("b", "c")
    assert found.notices == ["2 documents are marked as crafted by an attack and left out (--redteam keep reads them)."]
    with pytest.raises(UserError, match="line 2: the record is marked as crafted"):
        read_corpus(path, redteam="error")


def test_the_published_collections_have_the_counts_of_their_readme(collections):
    assert len(load_dataset(collections / "finance").queries) == 97
    assert len(read_queries(collections / "nq-open")) == 3610


class Counting:
    """An encoder that counts what it encodes."""

    def __init__(self, encoder):
        self.inner, self.encoded = encoder, 0
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim

    def encode_text(self, texts, kind="document", precision="fp32"):
        self.encoded += len(texts)
        return self.inner.encode_text(texts, kind, precision)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_store_goes_on_where_it_was_cut_off_and_makes_only_what_changed(where, tiny, collection, tmp_path):
    place = str(tmp_path / "store") if where == "local" else f"memory://stores/{tmp_path.name}"
    corpus = load_dataset(collection).corpus
    encoder = Counting(tiny)
    store = EmbeddingStore.build(place, encoder, corpus.ids, corpus.texts, shard_rows=16)
    assert encoder.encoded == 60 and store.ids == list(corpus.ids)
    assert np.abs(store.vectors() - tiny.encode_text(corpus.texts)).max() < 1e-6
    texts = [*corpus.texts[:50], "another text", *corpus.texts[51:]]
    again = EmbeddingStore.build(place, encoder, corpus.ids, texts, shard_rows=16)
    assert encoder.encoded == 60 + 12  # the shard of 12 rows that holds row 50
    assert np.abs(again.vectors()[50] - tiny.encode_text(["another text"])[0]).max() < 1e-6
    with pytest.raises(UserError, match="vectors of other texts"):
        again.require(tiny, "document", corpus.texts)
    assert EmbeddingStore.open(place).require(tiny, "document", texts).meta["rows"] == 60
    if where == "local":
        assert isinstance(again.chunks()[0], np.memmap)
        assert len(list((tmp_path / "store").glob("*.npy"))) == 4

        def stop(texts, kind="document", precision="fp32"):
            raise KeyboardInterrupt

        (tmp_path / "store" / again.meta["shards"][3]).unlink()
        encoder.encode_text, kept = stop, encoder.encode_text
        with pytest.raises(KeyboardInterrupt):
            EmbeddingStore.build(place, encoder, corpus.ids, texts, shard_rows=16)
        with pytest.raises(UserError, match="is not complete"):
            EmbeddingStore.open(place).require(tiny, "document")
        encoder.encode_text, encoder.encoded = kept, 0
        EmbeddingStore.build(place, encoder, corpus.ids, texts, shard_rows=16)
        assert encoder.encoded == 12


def test_a_store_of_another_encoder_is_refused_with_the_field_that_differs(tiny, tmp_path):
    EmbeddingStore.build(tmp_path, tiny, ["a"], ["sea"])
    for change, named in (
        ({"max_length": 9}, "max_length is 32, not 9"),
        ({"modes": ("cls",)}, "pooling is 'mean', not 'cls'"),
        ({"prompts": {"document": "the "}}, "prompts.document is '', not 'the '"),
    ):
        with pytest.raises(UserError, match=named):
            EmbeddingStore.open(tmp_path).require(tiny.variant(**change), "document")
        with pytest.raises(UserError, match=named):
            EmbeddingStore.build(tmp_path, tiny.variant(**change), ["a"], ["sea"])
    with pytest.raises(UserError, match="kind is 'document', not 'query'"):
        EmbeddingStore.open(tmp_path).require(tiny, "query")
    with pytest.raises(UserError, match="no store of vectors"):
        EmbeddingStore.open(tmp_path / "nothing")
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="is not a store of vectors, or is damaged"):
        EmbeddingStore.open(tmp_path)


def test_a_pickle_in_a_store_is_not_read(tiny, tmp_path):
    store = EmbeddingStore.build(tmp_path, tiny, ["a"], ["sea"])
    np.save(tmp_path / store.meta["shards"][0], np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        store.vectors()
    shutil.rmtree(tmp_path)


def test_ids_of_a_store_may_hold_any_character_and_a_finished_store_is_left_alone(tiny, tmp_path):
    ids, texts = ["a\u2028b", "c\x85d", "e\nf"], ["sea", "ship", "star"]
    store = EmbeddingStore.build(tmp_path, tiny, ids, texts)
    assert EmbeddingStore.open(tmp_path).ids == ids
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    assert EmbeddingStore.build(tmp_path, tiny, ids, texts).meta == store.meta
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"} == stamps
    EmbeddingStore.build(tmp_path, tiny, ["x", "y", "z"], texts)  # other ids of the same texts are written
    assert EmbeddingStore.open(tmp_path).ids == ["x", "y", "z"]
    np.save(tmp_path / store.meta["shards"][0], np.zeros((2, tiny.dim), np.float32))
    with pytest.raises(UserError, match=r"is damaged: its shards do not hold 3 vectors of 32 dimensions"):
        EmbeddingStore.open(tmp_path).vectors()
    np.save(tmp_path / store.meta["shards"][0], np.zeros((3, 7), np.float32))
    with pytest.raises(UserError, match="is damaged: the shard '00000-"):
        EmbeddingStore.open(tmp_path).vectors()


def test_a_judgment_that_contradicts_another_and_crafted_documents_are_told(collection, tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq\td\t1\nq\td\t1\n")
    assert read_qrels(path) == {"q": {"d": 1}}
    path.write_text("query-id\tcorpus-id\tscore\nq\td\t1\nq\td\t0\n")
    with pytest.raises(UserError, match=r"line 3: the document 'd' has the grade 1 for the query 'q' already"):
        read_qrels(path)
    shutil.copytree(collection, tmp_path / "mixed")
    with (tmp_path / "mixed" / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "redteam-1", "text": "sea", "metadata": {"redteam": True}}) + "\n")
    with (tmp_path / "mixed" / "qrels" / "test.tsv").open("a") as file:
        file.write(f"{load_dataset(collection).queries.ids[0]}\tredteam-1\t1\n")
    assert len(load_dataset(tmp_path / "mixed", redteam="keep").corpus) == 61
    left = load_dataset(tmp_path / "mixed")  # by default, and judgments of what is left out go with it
    assert len(left.corpus) == 60 and left.qrels == load_dataset(collection).qrels and "left out" in left.notices[0]
    with pytest.raises(UserError, match="marked as crafted by an attack"):
        load_dataset(tmp_path / "mixed", redteam="error")


def test_builds_in_one_folder_wait_for_each_other(tiny, tmp_path):
    texts = [[f"sea {word}" for word in words] for words in (WORDS[13:23], WORDS[23:33])]
    ids = [f"d{number}" for number in range(10)]

    def build(number: int) -> None:
        EmbeddingStore.build(tmp_path, tiny, ids, texts[number], shard_rows=2)

    threads = [threading.Thread(target=build, args=(number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = EmbeddingStore.open(tmp_path)
    own = next(each for each in texts if np.allclose(store.vectors(), tiny.encode_text(each), atol=1e-6))
    assert store.require(tiny, "document", own).ids == ids and len(list(tmp_path.glob("*.npy"))) == 5


def test_builds_at_one_url_wait_for_each_other_and_for_none_that_died(tiny, tmp_path):
    place = f"memory://locked/{tmp_path.name}"
    system, root = file_system(place)
    inside: list[int] = []

    def work() -> None:
        with alone(place, time_s=0.3):
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.1)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases = UrlStore(f"{place}/.leases")
    assert not inside and leases.read("builder") is None
    assert leases.swap("builder", None, Record("of a machine that died"))
    started = time.monotonic()
    with alone(place, time_s=0.3):
        assert time.monotonic() - started >= 0.3
        time.sleep(0.4)  # its own beat keeps it
        standing = leases.read("builder")
        assert standing is not None and "died" not in standing.owner and standing.beat > 0
    store = EmbeddingStore.build(place, tiny, ["a", "b"], ["sea", "ship"])
    assert store.ids == ["a", "b"] and leases.read("builder") is None
    system.pipe_file(f"{root}/ids.txt", b'"b"\n"a"\n')  # what a build of others would leave
    with pytest.raises(UserError, match="names other rows than the store has vectors of"):
        _ = EmbeddingStore.open(place).ids
    assert EmbeddingStore.build(place, tiny, ["a", "b"], ["sea", "ship"]).ids == ["a", "b"]
