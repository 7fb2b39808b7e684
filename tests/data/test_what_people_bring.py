"""Files as people have them: tables of other programs, files of other kinds, and encodings."""

from __future__ import annotations

import gzip
import zipfile

import pytest

from lmlab.data import CsvSource, Document, Reject, TextSource, record_source
from lmlab.errors import UserError


def read(source):
    found = list(source.read())
    return [each.text for each in found if isinstance(each, Document)], [
        each for each in found if isinstance(each, Reject)
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id;text\n1;"a; ""b"",\nc"\n2;d, e\n'),
        ("a.csv", '"id"\t"text"\n1\t"a; ""b"",\nc"\n2\td, e\n'),
        ("a.csv", 'id|text\n1|"a; ""b"",\nc"\n2|d, e\n'),
        ("a.csv", 'id,text\n1,"a; ""b"",\nc"\n2,"d, e"\n'),
        ("a.tsv", 'id,text\n1,"a; ""b"",\nc"\n2,"d, e"\n'),
        ("a.csv", '"the id, a number";text\n1;"a; ""b"",\nc"\n2;d, e\n'),
        ("a.csv", '\ufeffid;text\n1;"a; ""b"",\nc"\n2;d, e\n'),
    ],
    ids=["semicolons", "tabs", "lines", "commas", "no tabs", "a comma in a name", "byte order mark"],
)
def test_what_stands_between_values_is_seen_in_the_first_row(name, text, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert read(CsvSource(path=str(tmp_path / name))) == (['a; "b",\nc', "d, e"], [])


def test_lines_that_are_no_utf8_are_told_also_at_the_end_and_within_a_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,one\n2,caf\xe9\n3,"three\ncaf\xe9\nend"\n4,four\n5,caf\xe9\n')
    texts, rejects = read(CsvSource(path=str(path)))
    assert texts == ["one", "four"]  # and no third text without its middle
    assert [each.reason for each in rejects] == [
        "not UTF-8 (byte 5)",
        "not UTF-8 (byte 3)",
        "one of the lines of a quoted value cannot be read",
        "not UTF-8 (byte 5)",
    ]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.txt", b"%PDF-1.4 ...", "a PDF"),
        ("a.docx", None, "a ZIP archive or a document of an office program"),
        ("notes", gzip.compress(b"text", mtime=0), "compressed by gzip"),
        ("a.jsonl", b"PAR1....", "a Parquet file"),
        ("a.csv", b"SQLite format 3\0...", "an SQLite database"),
        ("a.txt", b"GGUF\3\0\0\0", "a model"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(name, data, told, tmp_path):
    path = tmp_path / name
    if data is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<w/>")
    else:
        path.write_bytes(data)
    source = TextSource(path=str(path)) if path.suffix in ("", ".txt", ".docx") else record_source(str(path))
    with pytest.raises(UserError, match=f"'{path}' is damaged: it is {told}, and no text"):
        list(source.read())
