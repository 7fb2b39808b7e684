"""The source of documents `chapters`: each chapter of a textbook is one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from lmlab.data.chapters.chapter import Chapter, cut_at_paragraph
from lmlab.data.chapters.read import READERS, reader_of
from lmlab.data.documents import Document, Reject
from lmlab.data.sources.reading.files import Encoding, FileSource, open_text
from lmlab.errors import UserError
from lmlab.files import find_files, is_url
from lmlab.redaction import redact

_MIN_WORDS = 200  # prefaces, indexes and lists of references are shorter, and are no chapters to teach from


class ChaptersSource(FileSource):
    """Chapters of textbooks: files in DocBook, reStructuredText, HTML, LaTeX, Markdown or plain text.

    In a folder `DOMAIN/BOOK/...` the first two levels are the domain and the book of a chapter; elsewhere the book is
    the file's folder.

    Attributes:
        encoding: of the files; `auto` is UTF-8, or what a byte order mark says.
        min_words: shorter chapters are set aside.
        max_words: longer ones are cut at the end of a paragraph.
    """

    kind: Literal["chapters"] = "chapters"
    encoding: Encoding = "auto"
    min_words: NonNegativeInt = _MIN_WORDS
    max_words: PositiveInt | None = None
    is_text: ClassVar[bool] = True

    def read(self) -> Iterator[Document | Reject]:
        """Yield a document for each chapter; those of one book are held out together."""
        for item in self.chapters():
            if isinstance(item, Reject):
                yield item
            else:
                yield Document(self._prefix + item.path, item.text, item.domain, item.book)

    def chapters(self) -> Iterator[Chapter | Reject]:
        """Yield the chapters of one file after the other; what is no chapter is a reject that says why."""
        self._tell()
        files, name = self.files(), self._called()
        for path in files:
            yield from self._reading(path, partial(self._of_file, path, name(redact(path))))

    def _found(self) -> list[str]:
        found = [path for path in find_files(self.path, tuple(READERS)) if reader_of(path) is not None]
        if not found:
            raise UserError(
                f"'{redact(self.path)}' holds no chapters.", f"They are files named {', '.join(sorted(READERS))}."
            )
        return found

    def _of_file(self, path: str, place: str) -> Iterator[Chapter | Reject]:
        where = redact(path)
        with open_text(self, path, self.encoding) as file:
            data = file.read(self.max_record_bytes + 1)
        if len(data) > self.max_record_bytes:
            yield Reject(where, f"a file of more than {self.max_record_bytes} bytes (max_record_bytes)")
            return
        reader = reader_of(path)
        assert reader is not None
        try:
            parts = reader(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            yield Reject(where, str(error) or "nested too deeply")
            return
        if not parts:
            yield Reject(where, "no text")
        domain, book = self._place(path, place)
        for number, part in enumerate(parts, 1):
            mark = "" if len(parts) == 1 else f"#{number}"
            chapter = Chapter(place + mark, part.title, part.text, book, self.domain or domain)
            if self.max_words is not None:
                chapter = cut_at_paragraph(chapter, self.max_words)
            if chapter.num_words < self.min_words:
                yield Reject(where + mark, f"{chapter.num_words} words, fewer than {self.min_words} (min_words)")
            else:
                yield chapter

    def _place(self, path: str, place: str) -> tuple[str, str]:
        """The domain and the book of a file, which is called `place` within the source."""
        inner = PurePosixPath(place).parts
        if len(inner) > 2:
            return inner[0], inner[1]
        return "text", PurePosixPath(path if is_url(path) else Path(path).absolute()).parent.name


def read_chapters(path: str, **settings: object) -> Iterator[Chapter | Reject]:
    """The chapters at a place; arguments are the fields of `ChaptersSource`."""
    yield from ChaptersSource.model_validate({"path": path, **settings}).chapters()
