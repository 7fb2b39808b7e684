"""What people bring: one large text, tables, arrays, other encodings, folders with a bit of everything."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data import (
    CollectConfig,
    CsvSource,
    Document,
    FolderSource,
    JsonlSource,
    Reject,
    TextSource,
    choose_kind,
    collect,
    read_documents,
)
from lmlab.data.sources.text import cut
from lmlab.errors import UserError
from lmlab.files import DamagedError

WORDS = "thou art more lovely and temperate rough winds do shake the darling buds of may".split()  # noqa: SIM905


def play(size):
    """A text in the form of a play: speeches of a few lines between blank lines."""
    draw, text = random.Random(size), ""
    while len(text) < size:
        lines = [" ".join(draw.choices(WORDS, k=8)) + f" {draw.randrange(10**6)}" for _ in range(draw.randrange(1, 6))]
        text += "SPEAKER:\n" + "\n".join(lines) + "\n\n"
    return text


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("ab. \n"), max_size=2000),
    st.lists(st.text(st.sampled_from("ab. \n"), max_size=900), max_size=5),
    st.integers(16, 300),
)
def test_parts_joined_are_the_text(head, more, size):
    parts = list(cut(head, iter(more), size))
    assert "".join(parts) == "".join([head, *more])
    assert all(len(part) <= 1.5 * size + 2 for part in parts) and all(parts)


@pytest.mark.parametrize(("size", "suffix"), [(30_000, ""), (300_000, ""), (1_100_000, ""), (1_100_000, ".gz")])
def test_one_text_of_any_size_is_cut_and_a_part_is_held_out(size, suffix, tmp_path):
    text = play(size)
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(text.encode()))
    source = TextSource(path=str(tmp_path / f"a.txt{suffix}"))
    parts = [each.text for each in source.read()]
    assert "".join(parts) == text and all(part.startswith("SPEAKER") for part in parts)
    report = collect([source], CollectConfig(min_bytes=0), 0, tmp_path / "out", workers=1)
    held = report["heldout"]["bytes"]["text"] / len(text.encode())
    assert 0.04 < held <= 0.08 and report["dropped"] == {}
    assert "single documents are held out" in report["notices"][0]
    again = [each.text for name in ("train", "heldout") for each in read_documents(tmp_path / "out" / f"{name}.jsonl")]
    assert sorted(again) == sorted(parts)


def test_many_files_are_a_document_each_and_long_ones_are_cut(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(play(20_000))
    (tmp_path / "long.txt").write_text(play(1_000_000))
    found = list(TextSource(path=str(tmp_path)).read())
    assert [each.id for each in found[:20]] == [f"{number:02}.txt" for number in range(20)]
    assert len(found) >= 23 and {each.group for each in found[20:]} == {"long.txt"}
    assert len(list(TextSource(path=str(tmp_path), documents="file").read())) == 21
    parts = list(TextSource(path=str(tmp_path / "00.txt"), documents="parts", part_characters=1000).read())
    assert len(parts) > 15 and max(len(each.text) for each in parts) <= 1502


def test_every_drop_names_the_setting_behind_it(tmp_path, lmlab):
    lines = ["short", *(play(900) for _ in range(2)), *(f"{play(600 + n)}" for n in range(12)), "x y " * 300_000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    shown = lmlab("tokenize", tmp_path / "a.jsonl", "--vocab-size", "300", "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    for told in ("1 too short (min_bytes)", "1 too long (max_bytes)", "1 exact duplicate (exact_duplicates)"):
        assert told in shown.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "documents" / "dropped.jsonl").read_text().splitlines()]
    assert {row["reason"]: row["setting"] for row in rows}["too short"] == "min_bytes"
    shown = lmlab("tokenize", tmp_path / "a.jsonl", "--set", "documents.min_bytes=10000000", "--out", tmp_path / "none")
    assert shown.code == 2 and "too short (min_bytes)" in shown.err


TABLE = [{"text": 'a "quoted", text\nof two lines', "id": "1"}, {"text": "Grüße 世界", "id": "2"}]


def table(delimiter=",", head=True):
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([["text", "id"]] * head + [list(row.values()) for row in TABLE])
    return sink.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252", "shift_jis"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.json", "a.txt"])
def test_any_encoding(name, encoding, tmp_path):
    plain = {
        "a.csv": table(),
        "a.tsv.gz": table("\t"),
        "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TABLE),
        "a.json": json.dumps(TABLE, ensure_ascii=False, indent=1),
        "a.txt": TABLE[1]["text"],
    }[name]
    plain = plain.replace("世界", "") if encoding == "cp1252" else plain
    plain = plain.replace("ü", "u").replace("ß", "s") if encoding == "shift_jis" else plain
    data = plain.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    made = {"csv": CsvSource, "jsonl": JsonlSource, "text": TextSource}[choose_kind(str(tmp_path / name))]
    named = {} if encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else {"encoding": encoding}
    found = [each.text for each in made(path=str(tmp_path / name), **named).read()]
    expected = [row["text"] for row in TABLE] if made is not TextSource else [TABLE[1]["text"]]
    if encoding == "cp1252":
        expected = [text.replace("世界", "") for text in expected]
    if encoding == "shift_jis":
        expected = [text.replace("ü", "u").replace("ß", "s") for text in expected]
    assert found == expected
    if encoding in ("cp1252", "shift_jis") and made is TextSource:
        with pytest.raises(DamagedError, match=r"byte \d+ is not UTF-8[^\n]*\n.*encoding:"):
            list(made(path=str(tmp_path / name)).read())
        (kept,) = made(path=str(tmp_path / name), damaged="keep").read()
        assert "\ufffd" in kept.text


def test_an_unknown_encoding_is_named():
    with pytest.raises(ValueError, match="no encoding 'utf9'"):
        TextSource(path="x", encoding="utf9")


def test_tables_without_a_first_row_of_names_and_broken_rows(tmp_path):
    (tmp_path / "a.csv").write_text(table(head=False) + "only one\n" + "a,b,c\n" + "good,9\n")
    found = list(CsvSource(path=str(tmp_path / "a.csv"), column_names=("text", "id"), id_field="id").read())
    assert [each.id for each in found if isinstance(each, Document)] == ["1", "2", "9"]
    assert [each.where[-1] for each in found if isinstance(each, Reject)] == ["4", "5"]
    with pytest.raises(UserError, match=r"(?s)has no column 'body'; its columns are.*\n.*text_field"):
        list(CsvSource(path=str(tmp_path / "a.csv"), text_field="body").read())
    (tmp_path / "b.csv").write_text('text\nfine\n"never closed\nand more\n')
    with pytest.raises(DamagedError, match="b.csv:3' is damaged: a quote is opened"):
        list(CsvSource(path=str(tmp_path / "b.csv")).read())
    (tmp_path / "c.csv").write_text("text,id\na,1\nb")
    with pytest.raises(DamagedError, match="the last row is cut short"):
        list(CsvSource(path=str(tmp_path / "c.csv")).read())


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), st.integers()), max_size=6))
def test_tables_and_arrays_come_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("t")
    with open(folder / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "id"), *rows])
    records = [{"text": text, "n": [number, {"x": "]}{["}]} for text, number in rows]
    (folder / "a.json").write_text(json.dumps(records, ensure_ascii=False))
    (folder / "b.json").write_text("\n".join(json.dumps(record, indent=2) for record in records))
    expected = [text for text, _ in rows]
    for source in (CsvSource(path=str(folder / "a.csv")), *(JsonlSource(path=str(folder / f"{n}.json")) for n in "ab")):
        assert [each.text for each in source.read()] == expected


def test_an_array_that_is_cut_and_one_with_a_huge_record(tmp_path):
    data = json.dumps([{"text": "a" * 99} for _ in range(50)], indent=1)
    (tmp_path / "a.json").write_text(data[:-200])
    with pytest.raises(DamagedError, match=r"a.json:4\d' is damaged: the JSON ends early"):
        list(JsonlSource(path=str(tmp_path / "a.json")).read())
    (tmp_path / "b.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 10_000}, {"text": "c"}]))
    found = list(JsonlSource(path=str(tmp_path / "b.json"), max_record_bytes=1000).read())
    assert [each.text for each in found if isinstance(each, Document)] == ["a", "c"] and "max_record_bytes" in found[
        1
    ].reason


def test_a_folder_with_a_bit_of_everything(tmp_path, lmlab):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    (tmp_path / "d" / "b.csv").write_text("text,n\nb,1\n")
    (tmp_path / "d" / "c.txt").write_text("c")
    (tmp_path / "d" / "README.md").write_text("about")
    (tmp_path / "d" / "picture.png").write_bytes(b"\x89PNG")
    assert choose_kind(str(tmp_path / "d")) == "folder"
    source = FolderSource(path=str(tmp_path / "d"))
    assert sorted(each.text for each in source.read()) == ["a", "b", "c"]
    assert "left out 2 files" in source.notices()[-1] and "picture.png" in source.notices()[-1]


def test_a_file_made_to_fill_the_memory_is_refused_in_little_memory(tmp_path):
    import tracemalloc

    packed = io.BytesIO()
    with gzip.open(packed, "wb", 9) as file:
        for _ in range(300):
            file.write(b"\0" * 2**20)
    assert len(packed.getvalue()) < 600_000
    for name, made in (("a.txt.gz", TextSource), ("a.jsonl.gz", JsonlSource)):
        (tmp_path / name).write_bytes(packed.getvalue())
        tracemalloc.start()
        with pytest.raises(UserError, match="grows to more than 200 times its size") as caught:
            for _ in made(path=str(tmp_path / name)).read():
                pass
        assert tracemalloc.get_traced_memory()[1] < 150_000_000 and "max_expansion" in str(caught.value)
        tracemalloc.stop()


def test_cells_that_grow_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from lmlab.data import ParquetSource

    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 500), pyarrow.array(["x" * 2_000_000]))
    pq.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 300_000
    before = pyarrow.total_allocated_bytes()
    found = ParquetSource(path=str(tmp_path / "a.parquet"), max_record_bytes=10**7).read()
    assert len(next(found).text) == 2_000_000 and pyarrow.total_allocated_bytes() - before < 10**8
    (reject, *_) = ParquetSource(path=str(tmp_path / "a.parquet"), max_record_bytes=10**6).read()
    assert "max_record_bytes" in reject.reason
