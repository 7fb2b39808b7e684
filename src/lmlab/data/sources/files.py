"""Documents from files of one text each, and what all sources of files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.digests import describe
from lmlab.errors import LmlabError
from lmlab.storage import find_files, open_binary


class FileSource(Config):
    """Files by path, glob, folder or URL; .gz, .bz2, .xz and .zst are decompressed.

    Attributes:
        path: where they are; of the files below a folder, those that are named as the kind of source expects.
        domain: of all documents.
    """

    path: str
    domain: str | None = None

    suffixes: ClassVar[tuple[str, ...]] = ()

    def files(self) -> list[str]:
        """The files in sorted order.

        Raises:
            UserError: nothing matches.
        """
        return find_files(self.path, self.suffixes)

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with every file's name, size and digest."""
        return {**self.model_dump(), "files": [[path, *describe(path)] for path in self.files()]}


class TextSource(FileSource):
    """Plain UTF-8 text, one document a file; the file's path is the document's id and group.

    Attributes:
        max_file_bytes: a file with more text is a reject, of which no more is read.
    """

    kind: Literal["text"] = "text"
    max_file_bytes: int = Field(default=10**9, gt=0)

    def read(self) -> Iterator[Document | Reject]:
        """Yield one document a file."""
        for path in self.files():
            try:
                with open_binary(path) as file:
                    data = file.read(self.max_file_bytes + 1)
                if len(data) > self.max_file_bytes:
                    yield Reject(path, f"more than {self.max_file_bytes} bytes")
                    continue
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                yield Reject(path, f"not UTF-8 (byte {error.start})")
            except LmlabError:
                raise
            except Exception as error:  # libraries of compression and of file systems raise many kinds
                yield Reject(path, unreadable(error))
            else:
                yield Document(path, text, self.domain or "text", path)


def unreadable(error: Exception) -> str:
    """The reason of a reject, in one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return f"unreadable ({lines[0][:200]})"
