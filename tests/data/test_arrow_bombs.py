"""Arrow files whose buffers claim to grow beyond bounds are refused before anything is unpacked."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import pytest

from lmlab.data import record_source
from lmlab.data.sources.reading import arrow_bounds
from lmlab.data.sources.reading.arrow_bounds import blocks, check_message
from lmlab.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
FORMS = ["file", "stream"]


def written(form, rows, compression, dictionary=False, chunk=100):
    texts = pyarrow.array([f"text {number % 7}" for number in range(rows)])
    table = pyarrow.table({"id": list(range(rows)), "text": texts.dictionary_encode() if dictionary else texts})
    sink = pyarrow.BufferOutputStream()
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    make = pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_grow_is_read(form, compression, dictionary, tmp_path):
    path = tmp_path / "a.arrow"
    path.write_bytes(written(form, 350, compression, dictionary))
    records = [record for _, record in record_source(str(path)).records()]
    assert records == [{"id": number, "text": f"text {number % 7}"} for number in range(350)]


def claim(data, form, size):
    """The data, in which the largest buffer of the last batch claims to be of this size."""
    raw, places = io.BytesIO(data), []
    if form == "file":
        places = blocks(raw)[1]
    else:
        while True:
            place = raw.tell()
            found = check_message(raw, "x", 10**9)
            if found is None:
                break
            places += [place] if found[0] else []
            raw.seek(found[1])
    raw.seek(places[-1])
    seen = []
    read = arrow_bounds._int

    def spy(text, kind):
        if kind == "<q":
            seen.append(raw.tell() - 8)
        return read(text, kind)

    arrow_bounds._int = spy
    try:
        check_message(raw, "x", 10**9)
    finally:
        arrow_bounds._int = read
    damaged = bytearray(data)
    struct.pack_into("<q", damaged, seen[-1], size)
    return bytes(damaged)


@pytest.mark.parametrize("form", FORMS)
def test_a_buffer_that_claims_a_terabyte_is_refused_by_name(form, tmp_path):
    path = tmp_path / "bomb.arrow"
    path.write_bytes(claim(written(form, 350, "zstd"), form, 10**12))
    with pytest.raises(UserError, match=r"bomb\.arrow': a batch grows from [\d,]+ to 1,000,000,\d+,\d+ bytes"):
        list(record_source(str(path)).records())


@pytest.mark.parametrize("form", FORMS)
def test_a_dictionary_counts_too(form, tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_bounds, "_EXPANSION_COUNTS_FROM", 10)
    text = pyarrow.array(["x" * 300_000]).dictionary_encode()
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": text})
    make = pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
    with make(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    (tmp_path / "a.arrow").write_bytes(sink.getvalue().to_pybytes())
    with pytest.raises(UserError, match="a batch grows from"):
        list(record_source(str(tmp_path / "a.arrow")).records())


@pytest.mark.parametrize("form", FORMS)
def test_damage_anywhere_is_a_sentence(form, tmp_path):
    data = written(form, 60, "zstd", dictionary=True, chunk=20)
    for seed in range(60):
        damaged = bytearray(data)
        damaged[zlib.crc32(bytes([seed])) % len(data)] ^= 1 << seed % 8
        (tmp_path / "a.arrow").write_bytes(damaged)
        with contextlib.suppress(UserError):  # or it is harmless
            list(record_source(str(tmp_path / "a.arrow")).records())
