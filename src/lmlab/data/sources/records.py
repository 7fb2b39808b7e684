"""Documents from files of records: JSON lines, Parquet, Arrow, MDS, WebDataset. Fields are named by dotted paths."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import IO, Any, ClassVar, Literal

from pydantic import Field

from lmlab.data.documents import Document, Reject
from lmlab.data.sources.files import FileSource, unreadable
from lmlab.data.sources.mds import MDSError, samples
from lmlab.errors import LmlabError, missing_extra
from lmlab.parsing import ParseError, json_value
from lmlab.storage import open_binary, open_raw, without_compression

_BATCH_RECORDS = 256
_BUFFER_BYTES = 2**20
_TEXTS = ("txt", "text", "md", "html", "cls", "id")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RecordSource(FileSource):
    """Records with named fields.

    Attributes:
        text_field, id_field, domain_field, group_field: dotted paths, as `meta.source`; an id that is not named is the
            place of the record. A fixed `domain` goes before `domain_field`.
    """

    text_field: str = "text"
    id_field: str | None = None
    domain_field: str | None = None
    group_field: str | None = None

    def read(self) -> Iterator[Document | Reject]:
        """Yield a document for each record; those that cannot be read are rejects that say where and why."""
        for where, record in self.records(self.columns):
            yield record if isinstance(record, Reject) else self._document(where, record)

    def records(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """Every record with its place; in the place of one that cannot be read, a `Reject`.

        Arguments:
            columns: top-level fields that are enough, where leaving out the others saves work; None for all.
        """
        for path in self.files():
            try:
                yield from self.records_of(path, columns)
            except LmlabError:
                raise
            except Exception as error:  # libraries of formats raise many kinds
                yield path, Reject(path, unreadable(error))

    def records_of(self, path: str, columns: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
        """The records of one file."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str]:
        """The top-level fields that are needed."""
        named = (self.text_field, self.id_field, self.domain_field, self.group_field)
        return sorted({name.split(".")[0] for name in named if name})

    def _document(self, where: str, record: Any) -> Document | Reject:
        text = field(record, self.text_field)
        if not isinstance(text, str):
            return Reject(where, f"no text in the field '{self.text_field}'")
        names = {name: _name(record, path) for name, path in self._names.items()}
        broken = next(
            (name for name, value in ((self.text_field, text), *names.items()) if value and not _is_unicode(value)),
            None,
        )
        if broken is not None:
            return Reject(
                where,
                f"the field '{self._names.get(broken, broken)}' holds half of a surrogate pair, which is no character",
            )
        return Document(
            names.get("id") or where, text, self.domain or names.get("domain") or "text", names.get("group") or where
        )

    @property
    def _names(self) -> dict[str, str]:
        paths = {"id": self.id_field, "domain": None if self.domain else self.domain_field, "group": self.group_field}
        return {name: path for name, path in paths.items() if path}


class JsonlSource(RecordSource):
    """JSON lines.

    Attributes:
        max_line_bytes: a longer line is a reject, of which no more is read into memory.
    """

    kind: Literal["jsonl"] = "jsonl"
    max_line_bytes: int = Field(default=2**28, gt=0)
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def files(self) -> list[str]:
        """The files in sorted order; of a folder with JSON lines, files of plain JSON are none of them, as they tend to
        describe the others.

        Raises:
            UserError: nothing matches.
        """
        found = super().files()
        return [path for path in found if not without_compression(path).endswith(".json")] or found

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a line; empty lines are none."""
        with open_binary(path) as file:
            for number, line in enumerate(_lines(file, self.max_line_bytes), 1):
                where = f"{path}:{number}"
                if line is None:
                    yield where, Reject(where, f"a line of more than {self.max_line_bytes} bytes")
                elif line.strip():
                    yield where, _parse(line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line, where)


class ParquetSource(RecordSource):
    """Parquet files, a few pages at a time, and of these only the columns that are needed."""

    kind: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a row."""
        _pyarrow(path)
        import pyarrow.parquet

        with open_raw(path) as raw, pyarrow.parquet.ParquetFile(raw, buffer_size=_BUFFER_BYTES) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            yield from _rows(path, file.iter_batches(_BATCH_RECORDS, columns=known))


class ArrowSource(RecordSource):
    """Arrow files and streams (IPC), such as the folders that `datasets` writes with `save_to_disk`; its caches there
    are not read.
    """

    kind: Literal["arrow"] = "arrow"
    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc")

    def files(self) -> list[str]:
        """The files in sorted order.

        Raises:
            UserError: nothing matches.
        """
        found = super().files()
        return [path for path in found if not path.rpartition("/")[2].startswith("cache-")] or found

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a row."""
        pyarrow = _pyarrow(path)
        with open_raw(path) as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            reader = pyarrow.ipc.open_file(raw) if is_file else pyarrow.ipc.open_stream(raw)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches)) if is_file else reader
            known = [name for name in reader.schema.names if columns is None or name in columns]
            yield from _rows(path, (part for batch in batches for part in _pieces(batch.select(known))))


class MDSSource(RecordSource):
    """MDS data sets (Mosaic Streaming); the path is the folder of the index, or of several."""

    kind: Literal["mds"] = "mds"
    suffixes: ClassVar[tuple[str, ...]] = (".mds", ".zstd", ".json")

    def records(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a sample; a damaged shard is one reject."""
        for where, sample in samples(self.path):
            yield where, Reject(where, sample.message) if isinstance(sample, MDSError) else sample


class WebDatasetSource(RecordSource):
    """WebDataset's tar files: neighbours of one name are a record, in which each suffix is a field.

    Text (`.txt`, `.text`) is also the field `text`, and the keys of a `.json` are fields of their own, too. What is
    neither text nor JSON is passed over.

    Attributes:
        max_member_bytes: a record with a longer text is a reject.
    """

    kind: Literal["webdataset"] = "webdataset"
    max_member_bytes: int = Field(default=2**28, gt=0)
    suffixes: ClassVar[tuple[str, ...]] = (".tar",)

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a name, in the order of the file."""
        with open_binary(path) as file, tarfile.open(fileobj=(read := _LastRead(file)), mode="r|") as members:  # type: ignore[call-overload]
            named = ((*_split_name(member.name), member) for member in members if member.isfile())
            for key, group in groupby(named, lambda each: each[0]):
                where = f"{path}:{key}"
                yield (
                    where,
                    self._record(
                        where, key, ((suffix, member, members.extractfile(member)) for _, suffix, member in group)
                    ),
                )
            if read.last[-tarfile.BLOCKSIZE :].strip(b"\0"):  # tarfile takes a cut between two members for the end
                yield path, Reject(path, "unreadable (the archive is cut off)")

    def _record(self, where: str, key: str, parts: Iterable[tuple[str, tarfile.TarInfo, IO[bytes] | None]]) -> Any:
        record: dict[str, Any] = {"__key__": key}
        fields: dict[str, Any] = {}
        for suffix, member, file in parts:
            last = suffix.rpartition(".")[2]
            if last not in ("json", *_TEXTS) or file is None:
                continue
            if member.size > self.max_member_bytes:
                return Reject(where, f"a '.{suffix}' of more than {self.max_member_bytes} bytes")
            value = _parse(file.read(), where) if last == "json" else _text(file.read(), where)
            if isinstance(value, Reject):
                return value
            record[suffix] = value
            fields |= value if isinstance(value, dict) else {"text": value} if suffix in ("txt", "text") else {}
        return fields | record


class _LastRead:
    """A file that remembers what was read last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.last = file, b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.last = data or self.last
        return data


def field(record: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none. A key that holds dots itself goes before its parts."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: all before and after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _text(data: bytes, where: str) -> str | Reject:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reject(where, f"not UTF-8 (byte {error.start})")


def _parse(line: bytes, where: str) -> Any:
    text = _text(line, where)
    if isinstance(text, Reject):
        return text
    try:
        return json_value(text)
    except ParseError as error:
        return Reject(where, f"not valid JSON: {error}")


def _lines(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a file; None for one of more than `limit` bytes, which is passed over in pieces."""
    while line := file.readline(limit + 2):
        if len(line.rstrip(b"\r\n")) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_BUFFER_BYTES)
        yield None


def _rows(path: str, batches: Any) -> Iterator[tuple[str, Any]]:
    start = 0
    for batch in batches:
        places = [f"{path}:{number}" for number in range(start + 1, start + batch.num_rows + 1)]
        start += batch.num_rows
        try:
            records = batch.to_pylist()
        except Exception:  # one bad value spoils the batch
            records = [_row(batch, number, where) for number, where in enumerate(places)]
        yield from zip(places, records, strict=True)


def _row(batch: Any, number: int, where: str) -> Any:
    try:
        return batch.slice(number, 1).to_pylist()[0]
    except Exception as error:
        return Reject(where, unreadable(error))


def _pieces(batch: Any) -> Iterator[Any]:
    """Parts of a batch; a damaged one is an error, as Arrow would trust its offsets and read beyond its memory."""
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _BATCH_RECORDS):
        yield batch.slice(start, _BATCH_RECORDS)


def _name(record: Any, path: str | None) -> str | None:
    value = field(record, path) if path else None
    return None if value is None else str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise missing_extra("pyarrow", "data", f"Reading '{path}'") from None
    return pyarrow
