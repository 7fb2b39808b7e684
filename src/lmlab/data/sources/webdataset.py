"""Documents from WebDataset's tar files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import IO, Any, ClassVar, Literal

from lmlab.data.documents import Reject
from lmlab.data.sources.jsonl import too_long
from lmlab.data.sources.reading.files import short_reason
from lmlab.data.sources.reading.records import RecordSource, parse_json, parse_text
from lmlab.data.sources.reading.splits import canonical
from lmlab.files import DamagedError, bytes_read, share_read
from lmlab.redaction import redact

_READ_BYTES = 1 << 20  # read at once, as headers of 512 bytes would each cost a call
_TEXTS = ("txt", "text", "md", "html", "cls", "id")


class WebDatasetSource(RecordSource):
    """WebDataset's tar files: neighbors of one name are a record, in which each suffix is a field.

    Text (`.txt`, `.text`) is also the field `text`, and the keys of a `.json` are fields of their own, too. What is
    neither text nor JSON is passed over. A folder in the archive that is named as a split is the record's `split`.
    """

    kind: Literal["webdataset"] = "webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (".tar",)

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a name, in the order of the file."""
        shown, last = redact(path), "its beginning"
        with self._open(path) as file:
            blocks = _Blocks(file)
            try:
                while blocks.more():  # archives may be laid end to end, as `cat` does it
                    with tarfile.open(  # type: ignore[call-overload]
                        fileobj=blocks, mode="r|", bufsize=tarfile.BLOCKSIZE
                    ) as members:
                        named = ((*_split_name(member.name), member) for member in members if member.isfile())
                        for key, group in groupby(named, lambda each: each[0]):
                            last = f"{shown}:{key}"
                            parts = ((suffix, member, members.extractfile(member)) for _, suffix, member in group)
                            yield last, self._record(last, key, parts)
                    if blocks.last.strip(b"\0"):  # tarfile takes a cut between two members for the end
                        raise DamagedError(path, f"the archive ends after {last} without its mark of the end")
            except tarfile.TarError as error:
                raise DamagedError(
                    path, f"the archive is broken after {last}, {short_reason(error)}", share_read(*bytes_read(file))
                ) from None

    def _record(self, where: str, key: str, parts: Iterable[tuple[str, tarfile.TarInfo, IO[bytes] | None]]) -> Any:
        record: dict[str, Any] = {"__key__": key}
        fields: dict[str, Any] = {}
        if split := next((part for part in key.split("/")[:-1] if canonical(part)), None):
            fields["split"] = split
        for suffix, member, file in parts:
            last = suffix.rpartition(".")[2]
            if last not in ("json", *_TEXTS) or file is None:
                continue
            if member.size > self.max_record_bytes:
                return too_long(where, f"a '.{suffix}'", self.max_record_bytes)
            value = parse_json(file.read(), where) if last == "json" else parse_text(file.read(), where)
            if isinstance(value, Reject):
                return value
            record[suffix] = value
            fields |= value if isinstance(value, dict) else {"text": value} if suffix in ("txt", "text") else {}
        return fields | record


class _Blocks:
    """A file in tar's blocks, so that what follows an archive is not read with it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._ahead, self._place, self._began = file, b"", 0, False
        self.last = b""

    def read(self, size: int) -> bytes:
        """At most so many bytes; `last` remembers them."""
        if len(self._ahead) - self._place < size:
            self._ahead, self._place = self._ahead[self._place :] + self._file.read(_READ_BYTES), 0
        data = self._ahead[self._place : self._place + size]
        self._place += len(data)
        self.last = data or self.last
        return data

    def more(self) -> bool:
        """Whether another archive follows, or at first any: the blocks of zeros that end one are passed over."""
        if not self._began:
            self._began = True
            return True
        while data := self.read(tarfile.BLOCKSIZE):
            if data.strip(b"\0"):
                self._place -= len(data)
                return True
        return False


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: all before and after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()
