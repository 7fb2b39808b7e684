"""What all sources of files share: which files and which split they read, and what becomes of damaged ones."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PrivateAttr

from lmlab.data.documents import Reject
from lmlab.data.sources.reading.dataset_card import MAX_BYTES, Card, read_card
from lmlab.data.sources.reading.dataset_card import NAME as CARD
from lmlab.data.sources.reading.fields import SplitOption
from lmlab.data.sources.reading.parts import missing_parts
from lmlab.data.sources.reading.placed import PlacedSource
from lmlab.data.sources.reading.splits import ALL, Choice, canonical, choose_files
from lmlab.errors import LmlabError
from lmlab.files import (
    MAX_EXPANSION,
    MAX_JSON_BYTES,
    DamagedError,
    bytes_read,
    describe,
    find_files,
    is_folder,
    json_value,
    names_within,
    open_binary,
    open_raw,
    share_read,
    without_compression,
)
from lmlab.progress import console
from lmlab.redaction import redact
from lmlab.words import counted

T = TypeVar("T")
_KEEP = "Write or download it again, or keep what can be read of it with damaged: keep in the source."
_DICT = "dataset_dict.json"  # what `datasets` writes beside the folders of several splits
# What lmlab's stage `collect` writes beside the documents.
_BYPRODUCTS = ("dropped.jsonl", "rejects.jsonl")
# What folders of data hold about themselves.
_ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "dataset_info", "state", "dataset_dict")
_OWN = (*_BYPRODUCTS, "collect.json", "manifest.json", "lmlab-files.json")  # of folders that lmlab wrote
_NAMED = 5  # files in a message: enough to see of what kind they are
_COLLECTED = "collect.json"
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


_UNPACK, _CONVERT = "Unpack it first, and name the files in it.", "Convert it to text first."
_RENAME = "Give it the name of its kind, so that it is read as such:"
_NO_TEXT = {
    b"PK\x03\x04": ("a ZIP archive or a document of an office program", f"{_UNPACK} {_CONVERT}"),
    b"\xd0\xcf\x11\xe0": ("a document of an office program", _CONVERT),
    b"%PDF-": ("a PDF", _CONVERT),
    b"{\\rtf": ("an RTF document", _CONVERT),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\x1f\x8b": ("compressed by gzip", f"{_RENAME} NAME.gz."),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", f"{_RENAME} NAME.zst."),
    b"\xfd7zXZ": ("compressed by xz", f"{_RENAME} NAME.xz."),
    b"BZh91AY&SY": ("compressed by bzip2", f"{_RENAME} NAME.bz2."),
    b"\x04\x22\x4d\x18": ("compressed by lz4", f"{_RENAME} NAME.lz4."),
    b"PAR1": ("a Parquet file", f"{_RENAME} NAME.parquet."),
    b"ARROW1": ("an Arrow file", f"{_RENAME} NAME.arrow."),
    b"SQLite format 3\0": ("an SQLite database", "Export its table as JSON lines or CSV."),
    b"\x89PNG": ("an image", "Name files of text."),
    b"\xff\xd8\xff": ("an image", "Name files of text."),
    b"\x7fELF": ("a program", "Name files of text."),
    b"\x93NUMPY": ("an array of NumPy", "Name files of text."),
    b"GGUF": ("a model", "Name files of text."),
}
"""What files of other kinds begin with, what they are, and what helps."""
_LONGEST_MAGIC = max(map(len, _NO_TEXT))


class FileSource(SplitOption, PlacedSource):
    """Files by path, glob, folder or URL; .gz, .bz2, .xz, .zst and .lz4 are decompressed.

    Attributes:
        path: where they are; of the files below a folder, those that are named as the kind of source expects.
        domain: of all documents.
        damaged: a file that is damaged or ends early is an `error`; `keep` warns and keeps what can be read.
        max_record_bytes: a longer record, line, row or text is set aside, and no more of it is read.
        max_expansion: how many times its size a compressed file may grow to.
    """

    path: str
    domain: str | None = None
    damaged: Literal["error", "keep"] = "error"
    max_record_bytes: int = Field(default=2**25, gt=0)
    max_expansion: float = Field(default=MAX_EXPANSION, ge=1)

    suffixes: ClassVar[tuple[str, ...]] = ()
    is_text: ClassVar[bool] = False
    _within: str | None = PrivateAttr(default=None)

    def part_of(self, within: str) -> Self:
        """A copy that reads a part of a location, below which its files are called."""
        copy = self.model_copy()
        copy._within = within
        return copy

    def _called(self) -> Callable[[str], str]:
        """How files and places in them are called within the source."""
        return names_within(self._within or self.path)

    def files(self) -> list[str]:
        """The files in sorted order.

        Raises:
            UserError: nothing matches, or there are several splits and none for training.
            DamagedError: the files say that they are more, and `damaged` is `error`.
        """
        return self._choice().files

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with every file's name, size and digest."""
        settings = {**self.model_dump(), "path": redact(self.path)}
        return {**settings, "files": [[redact(path), *describe(path)] for path in self.files()]}

    def notices(self) -> list[str]:
        """Which split is taken where there are several."""
        choice = self._choice()
        found = [] if choice.notice is None else [choice.notice]
        if missing := missing_parts(self.path, choice.files):
            found.append(f"'{redact(self.path)}': {len(missing)} parts are missing, the first is {redact(missing[0])}.")
        if left := self._left_out():
            found.append(
                f"'{redact(self.path)}': left out by name {named_files(left)}. If these are data too, name all by a"
                f" glob, such as '{redact(self.path).rstrip('/')}/**/*'."
            )
        return found

    def _left_out(self) -> list[str]:
        """Files of a folder that the source does not read because of their names, and that say nothing about it."""
        if not self.suffixes or not is_folder(self.path):
            return []
        taken = {*self._found()}
        others = [path for path in find_files(self.path) if path not in taken]
        return [path for path in others if not is_about(path) and path.rpartition("/")[2] not in _OWN]

    def _found(self) -> list[str]:
        """All files that the location means, of every split."""
        found = find_files(self.path, self.suffixes)
        folders = {path.removesuffix(_COLLECTED) for path in _beside(self.path, _COLLECTED)}
        return [path for path in found if not any(path == f + name for f in folders for name in _BYPRODUCTS)]

    def _choice(self) -> Choice:
        found = self._found()
        listed = {str(name) for path in _beside(self.path, _DICT) for name in _listed(path)}
        choice = choose_files(self.path, found, self.split, listed, self.is_text, self._card(found))
        missing = missing_parts(self.path, choice.files)
        # where most are missing somebody took a few of them on purpose, which is told and no error
        if missing and self.damaged == "error" and len(missing) <= len(choice.files):
            raise DamagedError(
                missing[0],
                f"it is not there, though {len(choice.files)} other files of the same data are",
                f"{len(missing)} are missing" if len(missing) > 1 else "",
                f"Copy it, or name the parts that are meant by a glob. {_KEEP}",
            )
        return choice

    def _card(self, files: list[str]) -> Card | None:
        """What the README of a data set says of these files."""
        for path in sorted(_beside(self.path, CARD), key=len):
            try:
                with open_raw(path) as file:
                    text = file.read(MAX_BYTES).decode("utf-8", "replace")
            except (LmlabError, OSError):
                continue
            if card := read_card(self.path, path, text, files):
                return card
        return None

    @staticmethod
    def _other_split(name: Any, wanted: str) -> bool:
        """Whether a record, which says itself what split it is of, is of another one than is read."""
        if not isinstance(name, str) or wanted == ALL or (name != wanted and canonical(name) is None):
            return False
        return name != wanted and canonical(name) != canonical(wanted)

    def _reading(self, path: str, items: Callable[[], Iterator[T]]) -> Iterator[T | Reject]:
        """What is read of a file; in place of what is missing of a damaged one, an error, or a warning and a `Reject`.

        Raises:
            DamagedError: the file cannot be read to its end, and `damaged` is `error`.
        """
        try:
            yield from items()
        except DamagedError as error:
            yield self._damage(path, error)
        except LmlabError:
            raise
        except Exception as error:  # libraries of formats and of file systems raise many kinds
            yield self._damage(path, DamagedError(path, short_reason(error)))

    def _damage(self, path: str, error: DamagedError) -> Reject:
        if self.damaged == "error":
            raise DamagedError(error.location, error.reason, error.missing, error.advice or _KEEP) from None
        reason = f"damaged, {error.reason}" + (f" ({error.missing})" if error.missing else "")
        console.print(
            f"warning: '{error.location}' is {reason}; what could be read is kept.", style="yellow", markup=False
        )
        return Reject(error.location, reason, "damage")

    def _open(self, path: str) -> IO[bytes]:
        return open_binary(path, self.max_expansion)

    def _tell(self) -> None:
        """Say on the terminal what was decided."""
        for notice in self.notices():
            console.print(f"note: {notice}", style="yellow", markup=False)


def _encoding(name: str) -> str:
    if name != "auto":
        try:
            codecs.lookup(name)
        except LookupError:
            raise ValueError(f"there is no encoding '{name}'; utf-8, utf-16, latin-1 and cp1252 are some.") from None
    return name


Encoding = Annotated[str, AfterValidator(_encoding)]
"""A field that names how characters are encoded; `auto` is UTF-8, or what a byte order mark says."""


def open_text(source: FileSource, path: str, encoding: str) -> IO[bytes]:
    """A file's text as UTF-8 without a byte order mark; what is UTF-8 already is not checked.

    Raises:
        DamagedError: its first bytes are those of a file of another kind; or, while reading: bytes are none of the
            encoding.
    """
    file: Any = source._open(path)
    head = file.peek(_LONGEST_MAGIC)[:_LONGEST_MAGIC]
    for mark, (what, remedy) in _NO_TEXT.items():
        if head.startswith(mark):
            raise DamagedError(path, f"it is {what}, and no text", "", remedy)
    head = head[:4]
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    name = codecs.lookup(encoding if encoding != "auto" else marked or "utf-8").name
    if marked is not None and name.startswith(marked[:6]):  # the mark is no part of the text
        name = marked
    if name == "utf-8-sig":
        file.read(len(codecs.BOM_UTF8) if marked == name else 0)
        name = "utf-8"
    if name == "utf-8":
        return file
    recoded = io.BufferedReader(_Recoded(file, path, name), 2**20)
    return recoded


class _Recoded(io.RawIOBase):
    """A file in UTF-8 that is stored in another encoding."""

    def __init__(self, file: IO[bytes], path: str, encoding: str) -> None:
        self._file, self._path, self._encoding = file, path, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")
        self._done = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._file.read(2**16)
            self._ended = not data
            try:
                text = self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError as error:
                raise DamagedError(
                    self._path,
                    f"byte {self._done + error.start:,} is not {self._encoding}",
                    share_read(*bytes_read(self._file)),
                    "Name its encoding (encoding: in the source), or keep the rest with damaged: keep.",
                ) from None
            self._ready, self._done = memoryview(text.encode("utf-8", "replace")), self._done + len(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def short_reason(error: Exception) -> str:
    """What went wrong in a library, in one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return redact(lines[0][:200])


def is_about(path: str) -> bool:
    """Whether a file of a folder of data is about the data, by its name."""
    name = path.rpartition("/")[2]
    return name.startswith((".", "cache-")) or PurePosixPath(without_compression(name)).stem.lower() in _ABOUT


def named_files(paths: list[str]) -> str:
    """So many files, the first of them by name."""
    names = ", ".join(path.rpartition("/")[2] for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
    return f"{counted(len(paths), 'files')} ({redact(names)})"


def _beside(location: str, name: str) -> list[str]:
    """The files of that name which a location means, if it is a folder."""
    try:
        return [path for path in find_files(location, (name,)) if path.rpartition("/")[2] == name]
    except LmlabError:
        return []


def _listed(path: str) -> list[Any]:
    """The splits that a `dataset_dict.json` lists."""
    try:
        with open_raw(path) as file:
            found = json_value(file.read(MAX_JSON_BYTES + 1))["splits"]
        return list(found)
    except Exception:  # whatever it is, it is no such list
        return []
