"""What the compressed buffers of Arrow's IPC format claim to be when they are unpacked, before anything is.

A batch's buffers stand behind its metadata, a flatbuffer (Message.fbs and File.fbs of the format), and each begins with
its unpacked size in 8 bytes. The library takes that size at its word: a file of a megabyte may ask for a terabyte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any

from lmlab.errors import UserError
from lmlab.redaction import redact
from lmlab.words import counted

_CONTINUES = b"\xff\xff\xff\xff"
_MAGIC = b"ARROW1"
_DICTIONARY, _RECORDS = 2, 3  # MessageHeader: its kinds that have a body
_LARGEST_METADATA = 1 << 28  # bytes: a schema has kilobytes; a damaged length would ask for gigabytes
_EXPANSION_COUNTS_FROM = 1 << 28  # bytes, as in other files: less does no harm


def check_message(raw: IO[bytes], path: str, max_expansion: float) -> tuple[bool, int] | None:
    """Look at the message that begins here.

    Returns:
        whether it is a batch, and where the next one begins; None at the end of a stream.

    Raises:
        UserError: its buffers would grow beyond bounds.
        ValueError, struct.error: it is damaged.
    """
    prefix = raw.read(4)
    size = _int(raw.read(4), "<i") if prefix == _CONTINUES else _int(prefix, "<i") if len(prefix) == 4 else 0
    if size <= 0:
        return None
    if size > _LARGEST_METADATA:
        raise ValueError(f"a message's metadata of {counted(size, 'bytes')}")
    body = raw.tell() + size
    message = _Table.root(raw.read(size))
    kind, length = message.number(1, "<B"), message.number(3, "<q")
    if length < 0:
        raise ValueError("a message of a negative length")
    if kind in (_DICTIONARY, _RECORDS):
        _check_buffers(raw, body, message, kind, path, max_expansion)
    return kind == _RECORDS, body + length


def blocks(raw: IO[bytes]) -> tuple[list[int], list[int]]:
    """Where the messages of dictionaries and of batches begin in a file, by its footer; the place is left as it was."""
    start = raw.tell()
    try:
        end = raw.seek(0, 2)
        raw.seek(end - len(_MAGIC) - 4)
        size = _int(raw.read(4), "<i")
        if not 0 < size <= min(_LARGEST_METADATA, end):
            raise ValueError("its footer is damaged")
        raw.seek(end - len(_MAGIC) - 4 - size)
        footer = _Table.root(raw.read(size))
        dictionaries, records = ([offset for (offset,) in footer.structs(field, "<q", 24)] for field in (2, 3))
        return dictionaries, records
    finally:
        raw.seek(start)


def _check_buffers(raw: IO[bytes], body: int, message: _Table, kind: int, path: str, max_expansion: float) -> None:
    batch = message.table(2)
    if batch is not None and kind == _DICTIONARY:
        batch = batch.table(1)
    if batch is None or batch.table(3) is None:  # nothing is compressed
        return
    packed = unpacked = 0
    for offset, length in batch.structs(2, "<qq", 16):
        if length < 8:
            continue
        raw.seek(body + offset)
        claimed = _int(raw.read(8), "<q")
        packed += length
        unpacked += length - 8 if claimed < 0 else claimed  # -1: this one is not compressed
    if unpacked > max(_EXPANSION_COUNTS_FROM, max_expansion * packed):
        raise UserError(
            f"'{redact(path)}': a batch grows from {packed:,} to {unpacked:,} bytes when it is decompressed.",
            "If that is meant, raise max_expansion of the source.",
        )


class _Table:
    """A table of a flatbuffer: fields by their number, absent ones None."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - _at(data, place, "<i")
        self._size = _at(data, self._fields, "<H")

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, _at(data, 0, "<I"))

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        offset = _at(self._data, self._fields + slot, "<H") if slot < self._size else 0
        return self._place + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self._field(field)
        return 0 if place is None else _at(self._data, place, form)

    def table(self, field: int) -> _Table | None:
        place = self._field(field)
        return None if place is None else _Table(self._data, place + _at(self._data, place, "<I"))

    def structs(self, field: int, form: str, width: int) -> Iterator[tuple[int, ...]]:
        place = self._field(field)
        if place is None:
            return
        first = place + _at(self._data, place, "<I")
        for number in range(_at(self._data, first, "<I")):
            yield struct.unpack_from(form, self._data, first + 4 + number * width)


def _at(data: bytes, place: int, form: str) -> int:
    if place < 0:
        raise ValueError("an offset before the beginning")
    found: Any = struct.unpack_from(form, data, place)[0]
    return int(found)


def _int(data: bytes, form: str) -> int:
    return int(struct.unpack(form, data)[0])
