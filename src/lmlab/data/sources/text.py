"""Documents from plain text: files that are one document each, and large ones that are cut into several."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from typing import IO, Any, ClassVar, Literal

from pydantic import Field

from lmlab.data.documents import Document, Reject
from lmlab.data.sources.reading.files import Encoding, FileSource, open_text
from lmlab.files import DamagedError, bytes_read, share_read
from lmlab.redaction import redact

# With fewer files than this a held-out share of a few percent can hardly be made of whole files.
_FEW_FILES = 20
# Of few files one is cut from here on, into this many parts of at least and at most so many characters: enough parts to
# hold some out, and each with enough text to learn from.
_SHORT, _PARTS, _SMALLEST_PART, _LARGEST_PART = 8_192, 64, 512, 65_536
# Of many files only those are cut that `collect` would drop as too long (max_bytes).
_LONG, _PART_OF_LONG = 900_000, 262_144
_LOOK_AHEAD = 2**22  # characters that are read before it is decided how a file is cut: a shorter one has a known length
# Where to cut, best first: between paragraphs, lines, sentences, words.
_SEAMS = ("\n\n", "\n", ". ", " ")


class TextSource(FileSource):
    """Plain text.

    Attributes:
        encoding: of the files; `auto` is UTF-8, or what a byte order mark says.
        documents: `file`: each file is a document. `parts`: files are cut between paragraphs, or else lines. `auto`:
            a file is a document where there are at least 20 of them and it is not longer than 900,000 characters;
            fewer files are cut into 64 parts or more, so that some can be held out.
        part_characters: about how long parts are; by default 512 to 65,536 characters, by the length of the text.
    """

    kind: Literal["text"] = "text"
    encoding: Encoding = "auto"
    documents: Literal["auto", "file", "parts"] = "auto"
    part_characters: int | None = Field(default=None, ge=16)
    is_text: ClassVar[bool] = True

    def read(self) -> Iterator[Document | Reject]:
        """Yield the documents of one file after the other; parts are numbered from 1 and form one group."""
        self._tell()
        files = self.files()
        few, name = len(files) < _FEW_FILES, self._called()
        for path in files:
            yield from self._reading(path, partial(self._documents, path, name(redact(path)), few))

    def _documents(self, path: str, group: str, few: bool) -> Iterator[Document | Reject]:
        where, called = redact(path), self._prefix + group
        with open_text(self, path, self.encoding) as file:
            texts = self._texts(file, where)
            if self.documents == "file":
                yield self._whole(texts, where, group)
                return
            head = next(texts, "")
            ended = False
            while len(head) < _LOOK_AHEAD and not ended:
                more = next(texts, None)
                head, ended = head + (more or ""), more is None
            size = self._part_size(len(head) if ended else None, few)
            if size is None:
                yield Document(called, head, self.domain or "text", group)
                return
            for number, text in enumerate(cut(head, texts, size), 1):
                yield Document(f"{called}#{number}", text, self.domain or "text", group)

    def _whole(self, texts: Iterator[str], where: str, group: str) -> Document | Reject:
        pieces, length = list[str](), 0
        for piece in texts:
            pieces.append(piece)
            length += len(piece)
            if length > self.max_record_bytes:
                return Reject(where, f"a file of more than {self.max_record_bytes} bytes (max_record_bytes)")
        return Document(self._prefix + group, "".join(pieces), self.domain or "text", group)

    def _part_size(self, length: int | None, few: bool) -> int | None:
        """How long parts are of a text of some length (None: very long); None to keep it whole."""
        if self.documents == "auto" and length is not None and length <= (_SHORT if few else _LONG):
            return None
        if self.part_characters is not None:
            return self.part_characters
        if not few:
            return _PART_OF_LONG
        return _LARGEST_PART if length is None else min(max(length // _PARTS, _SMALLEST_PART), _LARGEST_PART)

    def _texts(self, file: IO[bytes], where: str) -> Iterator[str]:
        """The text of a file, piece by piece; bytes that are no UTF-8 are an error, or replaced and told of."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        lenient: Any = codecs.getincrementaldecoder("utf-8")("replace")
        done, replaced = 0, 0
        while True:
            try:
                data = file.read(2**20)
            except DamagedError as error:
                if self.damaged == "error":
                    raise
                yield lenient.decode(b"", final=True) if replaced else ""
                self._damage(where, error)
                return
            pending = 0 if replaced else len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data) if not replaced else lenient.decode(data, final=not data)
            except UnicodeDecodeError as error:
                damage = DamagedError(
                    where, f"byte {done - pending + error.start:,} is not UTF-8", share_read(*bytes_read(file)),
                    "Name its encoding (encoding: in the source), or keep the rest with damaged: keep.",
                )  # fmt: skip
                if self.damaged == "error":
                    raise damage from None
                self._damage(where, DamagedError(where, f"{damage.reason}, and is replaced by U+FFFD like all such"))
                replaced = 1
                text = lenient.decode(error.object, final=not data)
            yield text
            done += len(data)
            if not data:
                return


def cut(head: str, more: Iterator[str], size: int) -> Iterator[str]:
    """Cut a text into parts of about `size` characters, at least half and at most one and a half as long; joined they
    are the text again.

    Arguments:
        head: its beginning.
        more: what follows.
    """
    text, start = head, 0
    while True:
        while len(text) - start < 2 * size:
            following = next(more, None)
            if following is None:
                break
            text, start = text[start:] + following, 0
        if len(text) - start < 2 * size:
            break
        end = _seam(text, start, size)
        yield text[start:end]
        start = end
    rest = text[start:]
    if len(rest) > size + size // 2:
        middle = _seam(rest, 0, len(rest) // 2)
        yield rest[:middle]
        rest = rest[middle:]
    if rest:
        yield rest


def _seam(text: str, start: int, size: int) -> int:
    """The best place to cut near `size`: the last one before it, down to its half, or else the first one after it, up
    to one and a half of it."""
    for seam in _SEAMS:
        place = text.rfind(seam, start + size // 2, start + size)
        if place < 0:
            place = text.find(seam, start + size - len(seam) + 1, start + size + size // 2)
        if place >= 0:
            return place + len(seam)
    return start + size
