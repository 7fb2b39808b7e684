"""Every kind of file and place gives the same documents; what cannot be read is set aside with its place and reason."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pathlib
import struct
import tarfile
import uuid

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.data import (
    ArrowSource,
    CsvSource,
    Document,
    JsonlSource,
    MDSSource,
    MDSWriter,
    ParquetSource,
    Reject,
    Rejects,
    TextSource,
    WebDatasetSource,
    choose_kind,
    documents,
    record_source,
    rejects_summary,
)
from lmlab.data.sources.finding.kinds import find_source
from lmlab.errors import LmlabError, UserError
from lmlab.files import DamagedError

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")
lz4 = pytest.importorskip("lz4.frame")

RECORDS = [
    {
        "content": {"body": f"Text {number}, Grüße 世界"},
        "meta": {"source": f"s{number % 3}", "id": number},
        "repo": f"r{number // 4}",
    }
    for number in range(700)
]
FIELDS = {"text_field": "content.body", "id_field": "meta.id", "domain_field": "meta.source", "group_field": "repo"}
EXPECTED = [Document(str(r["meta"]["id"]), r["content"]["body"], r["meta"]["source"], r["repo"]) for r in RECORDS]
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".lz4": lz4.compress,
}


def jsonl(records=RECORDS):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(records=RECORDS, **options):
    sink = pyarrow.BufferOutputStream()
    pq.write_table(pyarrow.Table.from_pylist(records), sink, **options)
    return sink.getvalue().to_pybytes()


def arrow(kind, records=RECORDS):
    sink, table = pyarrow.BufferOutputStream(), pyarrow.Table.from_pylist(records)
    with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, 300)
    return sink.getvalue().to_pybytes()


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path):
    """A function that stores bytes under a name, and the location of the folder, on three file systems."""
    folder = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4()}"}[request.param]

    def put(name, data):
        url = f"{folder}/{name}" if "://" in folder else f"file://{folder}/{name}"
        with fsspec.open(url, "wb") as file:
            file.write(data)
        return f"{folder}/{name}"

    return put, folder


@pytest.mark.parametrize("suffix", PACK)
def test_json_lines_of_any_compression_and_place(place, suffix):
    put, folder = place
    path = put(f"a.jsonl{suffix}", PACK[suffix](jsonl()))
    assert list(JsonlSource(path=path, **FIELDS).read()) == EXPECTED
    put("other.txt", b"not a record")
    assert list(JsonlSource(path=folder, **FIELDS).read()) == EXPECTED
    assert list(JsonlSource(path=f"{folder}/*.jsonl*", **FIELDS).read()) == EXPECTED


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
def test_an_archive_may_have_several_parts(tmp_path, suffix):
    lines = jsonl().splitlines(keepends=True)
    parts = [PACK[suffix](b"".join(lines[start : start + 100])) for start in range(0, len(lines), 100)]
    if suffix == ".zst":
        parts.insert(3, struct.pack("<II", 0x184D2A50, 5) + b"notes")  # a frame to be skipped
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
    assert list(JsonlSource(path=str(tmp_path / f"a.jsonl{suffix}"), **FIELDS).read()) == EXPECTED


def test_parquet(place):
    put, folder = place
    path = put("part-0.parquet", parquet(row_group_size=100, compression="zstd"))
    assert list(ParquetSource(path=path, **FIELDS).read()) == EXPECTED
    assert list(ParquetSource(path=folder, **FIELDS).read()) == EXPECTED


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(place, kind):
    put, folder = place
    put("data-00000-of-00001.arrow", arrow(kind))
    put("state.json", b"{}")
    put("cache-0a1b.arrow", arrow(kind))
    assert list(ArrowSource(path=folder, **FIELDS).read()) == EXPECTED


def webdataset(records=RECORDS, size=None):
    """A tar file as the package webdataset writes it: a key, a dot, and what the member holds."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for number, record in enumerate(records):
            parts = {
                "txt": record["content"]["body"].encode(),
                "jpg": b"\xff\xd8",
                "json": json.dumps({key: record[key] for key in ("meta", "repo")}).encode(),
            }
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"shard/{number:06d}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return sink.getvalue()[:size]


@pytest.mark.parametrize("suffix", PACK)
def test_webdataset(place, suffix):
    put, folder = place
    path = put(f"shard-000000.tar{suffix}", PACK[suffix](webdataset()))
    fields = {**FIELDS, "text_field": "text"}
    assert list(WebDatasetSource(path=path, **fields).read()) == EXPECTED
    assert (
        list(WebDatasetSource(path=folder, **{**FIELDS, "text_field": "txt", "id_field": "json.meta.id"}).read())
        == EXPECTED
    )
    assert choose_kind(path) == "webdataset"
    assert next(iter(WebDatasetSource(path=path).read())).id == f"{pathlib.Path(path).name}:shard/000000"


def test_what_cannot_be_read_of_a_webdataset_is_set_aside(tmp_path):
    sink = io.BytesIO()
    members = [
        ("a.txt", b"good"),
        ("b.txt", b"\xff"),
        ("c.json", b"{"),
        ("d.json", b"[1]"),
        ("e.jpg", b"x"),
        ("f.json", b'{"text": "fine"}'),
        ("g.txt", b"x" * 99),
    ]
    with tarfile.open(fileobj=sink, mode="w") as file:
        link = tarfile.TarInfo("z.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    (tmp_path / "b.tar").write_bytes(webdataset(size=600_000))
    (tmp_path / "b2.tar").write_bytes(webdataset(size=512 * 1202))
    (tmp_path / "c.tar").write_bytes(b"no tar")
    found = list(WebDatasetSource(path=str(tmp_path), text_field="text", max_record_bytes=60, damaged="keep").read())
    texts = [each.text for each in found if isinstance(each, Document)]
    rejects = {each.where.rpartition("/")[2]: each.reason for each in found if isinstance(each, Reject)}
    assert texts[:2] == ["good", "fine"] and 250 < len(texts) < 700
    assert set(rejects) == {"a.tar:b", "a.tar:c", "a.tar:d", "a.tar:e", "a.tar:g", "b.tar", "b2.tar", "c.tar"}
    assert (
        "not UTF-8" in rejects["a.tar:b"]
        and "not valid JSON" in rejects["a.tar:c"]
        and "more than 60 bytes" in rejects["a.tar:g"]
    )
    for name, last in (("b.tar", "shard/000"), ("b2.tar", "shard/000"), ("c.tar", "its beginning")):
        assert rejects[name].startswith("damaged, the archive") and last in rejects[name]
        with pytest.raises(DamagedError, match=f"{name}' is damaged: the archive"):
            list(WebDatasetSource(path=str(tmp_path / name), text_field="text").read())


def test_a_folder_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(
        str(tmp_path / "saved"), num_shards={"train": 3}
    )
    assert list(ArrowSource(path=str(tmp_path / "saved"), **FIELDS).read()) == EXPECTED


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_mds(tmp_path, compression):
    columns = {
        "text": "str",
        "domain": "str",
        "input_ids": "ndarray:uint32",
        "length": "int",
        "meta": "json",
        "score": "float32",
        "raw": "bytes",
    }
    rows = [
        {
            "text": f"Grüße {n}",
            "domain": f"d{n % 2}",
            "input_ids": np.arange(n + 1),
            "length": n + 1,
            "meta": {"a": [n]},
            "score": n / 4,
            "raw": b"\0\1",
        }
        for n in range(300)
    ]
    with MDSWriter(columns, tmp_path / "a" / "b", compression, size_limit=20_000) as writer:
        for row in rows:
            writer.write(row)
    assert len(list((tmp_path / "a" / "b").glob("*.mds*"))) > 5
    found = list(MDSSource(path=str(tmp_path)).records())  # the index of a sub-folder
    for (where, sample), row in zip(found, rows, strict=True):
        assert sample["input_ids"].dtype == np.uint32 and (sample["input_ids"] == row["input_ids"]).all()
        assert {key: value for key, value in sample.items() if key != "input_ids"} == {
            k: v for k, v in row.items() if k != "input_ids"
        }
        assert where.rpartition(":")[0].endswith(".mds")
    documents = list(MDSSource(path=str(tmp_path / "a" / "b"), domain_field="domain", id_field="length").read())
    assert documents[:2] == [
        Document("1", "Grüße 0", "d0", documents[0].group),
        Document("2", "Grüße 1", "d1", documents[1].group),
    ]


def test_an_mds_shard_by_the_letter_of_the_format(tmp_path):
    """Written by hand: two columns, one of fixed size."""
    samples = [
        struct.pack("<I", 2) + struct.pack("<q", 7) + b"hi",
        struct.pack("<I", 3) + struct.pack("<q", -1) + b"you",
    ]
    header = b"{}"
    ends = np.cumsum([4 * 4 + len(header), *map(len, samples)]).astype("<u4")
    data = struct.pack("<I", 2) + ends.tobytes() + header + b"".join(samples)
    (tmp_path / "shard.00000.mds").write_bytes(data)
    entry = {
        "format": "mds",
        "version": 2,
        "column_names": ["n", "text"],
        "column_encodings": ["int", "str"],
        "column_sizes": [8, None],
        "compression": None,
        "hashes": [],
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}},
        "zip_data": None,
        "samples": 2,
        "size_limit": None,
    }
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    assert [sample for _, sample in MDSSource(path=str(tmp_path)).records()] == [
        {"n": 7, "text": "hi"},
        {"n": -1, "text": "you"},
    ]
    for damage, message in (
        (data[:-1], "bytes; its index says"),
        (data[:4] + struct.pack("<I", 2**31) + data[8:], "table of offsets"),
        (data[:20] + b"\xff\xff" + data[22:], None),
    ):
        (tmp_path / "shard.00000.mds").write_bytes(damage)
        with pytest.raises(DamagedError, match="shard.00000.mds.* is damaged"):
            list(MDSSource(path=str(tmp_path)).read())
        found = list(MDSSource(path=str(tmp_path), damaged="keep").read())
        rejects = [each for each in found if isinstance(each, Reject)]
        assert rejects and "shard.00000.mds" in rejects[0].where
        assert message is None or message in rejects[0].reason
    entry["column_encodings"] = ["int", "pkl"]
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    with pytest.raises(UserError, match="'pkl', which lmlab does not read"):
        list(MDSSource(path=str(tmp_path)).read())
    entry["raw_data"]["basename"] = "../secret"
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    with pytest.raises(UserError, match="outside its folder"):
        list(MDSSource(path=str(tmp_path)).read())


BROKEN = {
    "no JSON": (b"{", "not valid JSON"),
    "two objects": (b"{} {}", "not valid JSON"),
    "a list": (b"[1]", "no text in the field"),
    "a number": (b"3", "no text in the field"),
    "null": (b"null", "no text in the field"),
    "no text": (b'{"other": 1}', "no text in the field"),
    "text is a number": (b'{"text": 1}', "the field 'text' holds a number, and no text"),
    "text is null": (b'{"text": null}', "no text in the field"),
    "latin-1": ('{"text": "ü"}'.encode("latin-1"), "not UTF-8 (byte 10)"),
    "half a surrogate": (b'{"text": "\\ud800"}', "surrogate"),
    "nested too deep": (b'{"text":' + b"[" * 100_000, "not valid JSON"),
    "a number of too many digits": (b'{"text": ' + b"1" * 10_000 + b"}", "not valid JSON"),
    "zero bytes": (b"\0\0\0", "not valid JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_set_aside_and_the_others_are_read(kind, tmp_path):
    line, reason = BROKEN[kind]
    good = b'{"text": "good"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + line + b"\n" + good)
    first, reject, last = JsonlSource(path=str(path)).read()
    assert (first.text, last.text) == ("good", "good")
    assert reject.where == f"{path}:2" and reason in reject.reason


def test_broken_records_are_counted_and_too_many_stop_the_job_by_one_sentence(lmlab, tmp_path):
    good = [json.dumps({"text": f"{number} and some more words of text " * 10}).encode() for number in range(150)]
    broken = [line for line, _ in BROKEN.values()]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good[:75], *broken, *good[75:]]))
    options = ("--vocab-size", "300", "--set", "documents.near_duplicate_threshold=null", "--out")
    shown = lmlab("tokenize", tmp_path / "a.jsonl", *options, tmp_path / "run")
    assert shown.code == 0, shown.err
    rejects = [json.loads(line) for line in (tmp_path / "run" / "documents" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in rejects] == [
        str(number) for number in range(76, 76 + len(BROKEN))
    ]
    assert all(reason in row["reason"] for row, (_, reason) in zip(rejects, BROKEN.values(), strict=True))
    counts = json.loads((tmp_path / "run" / "documents" / "collect.json").read_text())
    assert (counts["rejects"], counts["read"]["documents"]["text"]) == (len(BROKEN), 150) and len(BROKEN) >= 12
    shown = lmlab(
        "tokenize", tmp_path / "a.jsonl", "--set", "documents.max_reject_fraction=0.05", *options, tmp_path / "strict"
    )
    assert shown.code == 2
    (sentence,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert (
        f"{len(BROKEN)} of {150 + len(BROKEN)} records cannot be used; the first is {tmp_path}/a.jsonl:76: not valid"
        " JSON" in sentence
    )


@pytest.mark.parametrize(
    "name", [*(f"a.jsonl{suffix}" for suffix in PACK if suffix), "a.parquet", "a.arrow", "stream.arrow"]
)
@pytest.mark.parametrize("damage", ["cut", "short", "garbage", "empty", "flipped"])
def test_a_damaged_file_is_an_error_that_names_it_or_is_kept_with_a_warning(name, damage, tmp_path, capsys):
    suffix = "." + name.rpartition(".")[2]
    data = PACK[suffix](jsonl()) if suffix in PACK else parquet() if suffix == ".parquet" else None
    data = data or arrow("stream" if "stream" in name else "file")
    middle = len(data) // 2
    broken = {
        "cut": data[:middle],
        "short": data[:-5],
        "garbage": b"garbage" * 50,
        "empty": b"",
        "flipped": data[:middle] + b"\xff" * 40 + data[middle + 40 :],
    }[damage]
    (tmp_path / name).write_bytes(broken)
    made = ParquetSource if suffix == ".parquet" else ArrowSource if suffix == ".arrow" else JsonlSource
    source = made(path=str(tmp_path / name), **FIELDS)
    if damage == "flipped" and suffix in (".arrow", ".parquet", ".lz4"):
        return  # without check sums in the file nobody can tell
    with pytest.raises(DamagedError, match=f"{name}.* is damaged"):
        list(source.read())
    capsys.readouterr()
    found = list(made(path=str(tmp_path / name), damaged="keep", **FIELDS).read())
    kept = [each for each in found if isinstance(each, Document)]
    (damaged,) = [each for each in found if isinstance(each, Reject) and each.kind == "damage"]
    assert kept == EXPECTED[: len(kept)] and str(tmp_path) in damaged.where and "\n" not in damaged.reason
    assert f"'{damaged.where}' is {damaged.reason}" in capsys.readouterr().err
    assert kept or damage != "short" or suffix not in (".gz", ".lz4")


def test_half_of_an_archive_is_never_taken_for_all_of_it(lmlab, tmp_path):
    """2,000 records whose second half is cut away: the stage stops, or says on the terminal and in its summary what
    part it has."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(map(str, rng.integers(10**6, size=60)))}) for _ in range(2000)]
    data = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    options = (tmp_path / "a.jsonl.gz", "--vocab-size", "300", "--out", tmp_path / "run")
    shown = lmlab("tokenize", *options)
    assert shown.code == 2 and "a.jsonl.gz' is damaged: the compressed data end early" in shown.err
    assert "damaged: keep" in shown.err
    shown = lmlab("tokenize", *options, "--redo", "--set", "documents.sources.0.damaged=keep")
    assert shown.code == 0 and "warning: " in shown.err and "DAMAGED, and only in part used" in shown.err
    results = json.loads((tmp_path / "run" / "documents" / "collect.json").read_text())
    assert 900 < results["read"]["documents"]["text"] < 1100 and len(results["damaged"]) == 1


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".gz", ".zst", ".lz4"])
def test_a_broken_second_member_is_no_end(suffix, tmp_path):
    """The standard library takes what follows the first member of bz2 and xz for harmless when it is broken."""
    half = PACK[suffix](jsonl())
    (tmp_path / f"a.jsonl{suffix}").write_bytes(half + b"BZ" + half[4:])
    with pytest.raises(DamagedError, match="its compression is broken"):
        list(JsonlSource(path=str(tmp_path / f"a.jsonl{suffix}"), **FIELDS).read())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_whose_last_line_is_cut(suffix, tmp_path):
    data = jsonl()[:-12]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACK[suffix](data))
    with pytest.raises(DamagedError, match=r"a.jsonl.*:700' is damaged: the last line is cut short"):
        list(JsonlSource(path=str(tmp_path / f"a.jsonl{suffix}"), **FIELDS).read())
    kept = list(JsonlSource(path=str(tmp_path / f"a.jsonl{suffix}"), damaged="keep", **FIELDS).read())
    assert kept[:-1] == EXPECTED[:-1] and kept[-1].kind == "damage"
    (tmp_path / "b.jsonl").write_bytes(jsonl().rstrip(b"\n"))  # only the end of the line is missing: whole
    assert list(JsonlSource(path=str(tmp_path / "b.jsonl"), **FIELDS).read()) == EXPECTED


KINDS = {
    "txt": TextSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "csv": CsvSource,
    "json": JsonlSource,
    "tar": WebDatasetSource,
}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["jsonl", *(f"jsonl{suffix}" for suffix in PACK if suffix), *KINDS]), st.booleans(), st.data())
def test_no_bytes_make_a_reader_fail_but_by_a_sentence(tmp_path, kind, keep, data):
    """Arbitrary bytes, and real files with a few bytes changed or the end cut off: documents, rejects, and a sentence
    that names the file."""
    real = {f"jsonl{suffix}": pack(jsonl(RECORDS[:9])) for suffix, pack in PACK.items()} | {"txt": "tüxt".encode()}
    real |= {"parquet": parquet(RECORDS[:9]), "arrow": arrow("stream", RECORDS[:9]), "tar": webdataset(RECORDS[:3])}
    real |= {"csv": b'text,id\n"a, b",1\n"x\ny",2\n', "json": json.dumps(RECORDS[:9]).encode()}
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=300))
    else:
        content = bytearray(real[kind])
        for place, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
        ):
            content[place] = value
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / f"{uuid.uuid4()}.{kind}"
    path.write_bytes(content)
    source = KINDS.get(kind, JsonlSource)
    options = {} if kind in ("txt", "csv", "tar") else FIELDS
    try:
        found = list(source(path=str(path), damaged="keep" if keep else "error", **options).read())
    except UserError as error:
        assert path.name in error.message and (not keep or kind == "csv")  # noqa: PT017
    else:
        assert all(isinstance(each, Document | Reject) for each in found)


@pytest.fixture(scope="module", params=[None, "zstd"])
def mds(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mds")
    columns = {"text": "str", "ids": "ndarray:uint32", "meta": "json", "n": "int"}
    with MDSWriter(columns, folder, request.param) as writer:
        for number in range(6):
            writer.write({"text": f"Grüße {number}", "ids": np.arange(number + 1), "meta": {"a": number}, "n": number})
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.booleans(), st.data())
def test_no_bytes_of_an_mds_data_set_make_its_reader_fail(mds, tmp_path, in_index, with_hashes, data):
    """A changed shard gives rejects and documents; a changed index may also be refused by a sentence."""
    copy = tmp_path / str(uuid.uuid4())
    copy.mkdir()
    files = {path.name: bytearray(path.read_bytes()) for path in mds.iterdir()}
    if not with_hashes:
        index = json.loads(files["index.json"])
        for part in ("raw_data", "zip_data"):
            (index["shards"][0][part] or {}).update(hashes={})
        files["index.json"] = bytearray(json.dumps(index).encode())
    content = files["index.json" if in_index else next(name for name in files if name != "index.json")]
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    for name, each in files.items():
        (copy / name).write_bytes(each)
    try:
        found = list(MDSSource(path=str(copy), id_field="n", domain_field="meta.a", damaged="keep").read())
    except UserError as error:
        assert in_index and str(copy) in error.message  # noqa: PT017
    else:
        assert all(isinstance(each, Document | Reject) for each in found)


def test_text_beyond_the_limits_is_set_aside_without_being_held_in_memory(tmp_path):
    import tracemalloc

    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "first"}\n{"text": "' + b"x" * 60_000_000 + b'"}\n{"text": "last"}')
    )
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x" * 60_000_000))
    tracemalloc.start()
    first, reject, last = JsonlSource(path=str(tmp_path / "a.jsonl.gz"), max_record_bytes=1_000_000).read()
    (text,) = TextSource(path=str(tmp_path / "b.txt.gz"), documents="file", max_record_bytes=1_000_000).read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first.text, last.text) == ("first", "last")
    assert (reject.where, reject.reason) == (
        f"{tmp_path / 'a.jsonl.gz'}:2",
        "a line of more than 1000000 bytes (max_record_bytes)",
    )
    assert text.reason == "a file of more than 1000000 bytes (max_record_bytes)"
    assert peak < 8_000_000


def test_a_line_of_just_the_limit_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ab"}\r\n{"text": "abc"}\n{"text": "ab"}')
    read = JsonlSource(path=str(tmp_path / "a.jsonl"), max_record_bytes=len(b'{"text": "ab"}')).read()
    assert [type(each) for each in read] == [Document, Reject, Document]


def test_names_that_are_no_characters_are_set_aside(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "id": "\\udc80"}\n')
    (reject,) = JsonlSource(path=str(tmp_path / "a.jsonl"), id_field="id").read()
    assert "half of a character" in reject.reason


def test_a_bad_value_spoils_only_its_own_row(tmp_path):
    texts = pyarrow.array([b"one", b"\xff\xfe", b"three"]).view(pyarrow.utf8())
    pq.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    found = list(ParquetSource(path=str(tmp_path / "a.parquet")).read())
    assert [type(each) for each in found] == [Document, Reject, Document]
    assert found[1].where.endswith("a.parquet:2")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.jsonl.zst"], "jsonl"),
        (["a.jsonl", "README.md", "stats.json"], "jsonl"),
        (["a.json"], "jsonl"),
        (["x/a.parquet", "README.md"], "parquet"),
        (["index.json", "shard.00000.mds"], "mds"),
        (["train/state.json", "train/data-00000-of-00001.arrow"], "arrow"),
        (["a.arrow"], "arrow"),
        (["a.txt", "b.md.gz"], "text"),
    ],
)
def test_the_kind_of_a_folder_is_seen_by_its_files(place, names, kind):
    put, folder = place
    for name in names:
        if folder.startswith("/"):
            (pathlib.Path(folder) / name).parent.mkdir(exist_ok=True)
        elif folder.startswith("file://"):
            pathlib.Path(folder.removeprefix("file://"), name).parent.mkdir(exist_ok=True)
        put(name, b"")
    assert choose_kind(folder) == kind
    assert choose_kind(f"{folder}/*.ndjson.gz") == "jsonl"
    put("b.feather", b"")
    put("b.parquet", b"")
    if kind in ("jsonl", "parquet", "text"):
        assert choose_kind(folder) == "folder"
        with pytest.raises(UserError, match="several kinds"):
            record_source(folder)


@pytest.mark.parametrize(
    ("names", "read", "left"),
    [
        (["a.json.gz", "b.jsonl"], 2, []),  # nobody compresses what describes the others
        (["x/a.json.zst", "b.jsonl.gz", "c.ndjson"], 3, []),
        (["a.json.gz", "b.csv"], 2, []),
        (["a.json.gz", "b.txt"], 2, []),
        (["a.JSONL", "b.jsonl", "c.Jsonl.GZ"], 3, []),
        (["a.JSON", "b.json"], 2, []),
        (["a.TXT", "b.jsonl"], 2, []),
        (["a.jsonl", "README.md", "LICENSE"], 1, []),
        (["a.json", "b.jsonl", "c.jsonl"], 2, ["a.json"]),
        (["a.json", "b.csv"], 1, ["a.json"]),
        (["a.jsonl", "b.md", "c.unknown", "d"], 1, ["b.md", "c.unknown", "d"]),
    ],
)
def test_a_folder_of_several_kinds_is_read_whole_or_says_what_is_not(names, read, left, tmp_path):
    for number, name in enumerate(names):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text {number}"
        plain = {"csv": f"text\n{text}\n", "txt": text, "md": text}.get(name.lower().rpartition(".")[2])
        ending = next((each for each in (".gz", ".zst") if name.lower().endswith(each)), "")
        path.write_bytes(PACK[ending]((plain or json.dumps({"text": text}) + "\n").encode()))
    source = find_source(choose_kind(f"{tmp_path}/corpus"))(path=f"{tmp_path}/corpus")
    found = list(source.read())
    assert len(found) == read and all(isinstance(each, Document) for each in found)
    notices = " ".join(source.notices())
    assert all(name in notices for name in left) and bool(notices) == bool(left)
    if left == ["a.json"]:  # as the notice advises
        everything = f"{tmp_path}/corpus/**/*"
        assert len(list(find_source(choose_kind(everything))(path=everything).read())) == len(names)


def test_a_file_that_vanishes_is_an_error(tmp_path):
    for keep in ("error", "keep"):
        source = JsonlSource(path=str(tmp_path / "*.jsonl"), damaged=keep)
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_bytes(b'{"text": "good"}\n')
        found = source.read()
        assert next(found).text == "good"
        (tmp_path / "b.jsonl").unlink()
        if keep == "keep":
            assert [each.kind for each in found] == ["damage"]
        else:
            with pytest.raises(UserError, match=r"b.jsonl' is damaged: .*No such file"):
                list(found)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nowhere/*.jsonl", "matches no file"),
        ("memory://nowhere/x", "matches no file"),
        ("nosuch://bucket/x", "nosuch"),
    ],
)
def test_places_that_do_not_exist_are_user_errors(location, message):
    with pytest.raises(LmlabError, match=message):
        JsonlSource(path=location).files()


def test_a_changed_file_changes_the_fingerprint(place):
    put, folder = place
    put("a.jsonl", jsonl(RECORDS[:2]))
    before = JsonlSource(path=folder).fingerprint()
    assert JsonlSource(path=folder).fingerprint() == before
    put("a.jsonl", jsonl(RECORDS[:3]))
    assert JsonlSource(path=folder).fingerprint() != before


def test_only_a_window_of_a_file_is_in_memory(tmp_path):
    import tracemalloc

    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"{number} " + "lorem ipsum " * 200}) + "\n")
    tracemalloc.start()
    count = sum(len(each.text) for each in JsonlSource(path=str(tmp_path / "a.jsonl.gz")).read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 48_000_000 and peak < 4_000_000


def test_the_command_line_reads_parquet_with_named_fields(lmlab, tmp_path):
    rows = [
        {"content": {"body": f"{n} " + "some words of text " * 20}, "meta": {"source": f"s{n % 2}"}} for n in range(60)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part-0.parquet").write_bytes(parquet(rows))
    options = (
        "--text-field",
        "content.body",
        "--domain-field",
        "meta.source",
        "--vocab-size",
        "300",
        "--out",
        str(tmp_path / "run"),
    )
    outcome = lmlab("tokenize", str(tmp_path / "data"), "--set", "documents.near_duplicate_threshold=null", *options)
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "run" / "documents" / "collect.json").read_text())["read"]["documents"] == {
        "s0": 30,
        "s1": 30,
    }


def test_records_crafted_for_an_attack_are_left_out_and_counted_unless_they_are_asked_for(tmp_path):
    rows = [
        {"text": "clean"},
        {"text": "crafted", "redteam": True},
        {"text": "marked inside", "metadata": {"redteam": True}},
        {"text": "no", "redteam": "no", "metadata": {"redteam": False}},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([{"text": "a", "redteam": True}, {"text": "b"}])
    parquet.write_table(table, tmp_path / "mixed.parquet")
    told = [
        "text,redteam,metadata,metadata.redteam",
        "c,True,,",
        'd,,"{""redteam"": true}",',
        "e,,,true",
        "h,1.0,,",
        "f,false,{},",
    ]
    (tmp_path / "mixed.csv").write_text("\n".join([*told, 'g,,"{oh",no']))  # a table of text has no truths, only words
    nested = [{"text": "a", "metadata": {"redteam": True}}, {"text": "b", "metadata": {"redteam": None}}]
    parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "nested.parquet")
    expected = {
        "mixed.jsonl": (["clean", "no"], 2),
        "mixed.parquet": (["b"], 1),
        "nested.parquet": (["b"], 1),
        "mixed.csv": (["f", "g"], 4),
    }
    for name, (kept, dropped) in expected.items():
        source = record_source(str(tmp_path / name))
        found = list(source.read())
        assert [each.text for each in found if isinstance(each, Document)] == kept
        with Rejects(tmp_path / "rejects.jsonl", limit=0.0) as rejects:
            for each in found:
                if isinstance(each, Reject):
                    rejects.add(each)
        rejects.check(len(kept), "")  # crafted records are no fault of the file
        assert rejects.account()["redteam"] == dropped
        assert f"{dropped} records that were crafted for an attack left out" in rejects_summary(rejects.account())
        everything = source.model_copy(update={"redteam": "keep"})
        assert all(isinstance(each, Document) for each in everything.read())
    for number, mark in enumerate(({"redteam": True}, {"metadata": {"redteam": True}})):
        path = tmp_path / f"documents-{number}.jsonl"
        path.write_text(json.dumps({"text": "clean"}) + "\n" + json.dumps({"text": "x", **mark}) + "\n")
        with pytest.raises(UserError, match=r"line 2: the record says that it was crafted to attack a model"):
            list(documents.read_documents(path))
