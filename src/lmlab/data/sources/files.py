"""Documents from files: JSON lines, and plain text with one document a file."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.errors import UserError
from lmlab.files import open_binary


class _FileSource(Config):
    """Files by path or glob; .gz, .bz2, .xz and .zst are decompressed."""

    path: str
    domain: str | None = None

    def files(self) -> list[Path]:
        """The files in sorted order; a directory means all files below it.

        Raises:
            UserError: nothing matches.
        """
        root = Path(self.path).expanduser()
        if root.is_dir():
            found = [path for path in sorted(root.rglob("*")) if path.is_file()]
        else:
            found = [Path(name) for name in sorted(glob.glob(str(root), recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"The source path '{self.path}' matches no file.", "Check the path; globs such as data/**/*.txt are allowed.")
        return found

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with every file's name, size and time of change."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return {**self.model_dump(), "files": stats}


class TextSource(_FileSource):
    """Plain UTF-8 text, one document a file; the file's path is the document's id and group."""

    kind: Literal["text"] = "text"

    def read(self) -> Iterator[Document | Reject]:
        """Yield one document a file."""
        for path in self.files():
            try:
                with open_binary(path) as file:
                    text = file.read().decode("utf-8")
            except (UnicodeDecodeError, OSError, EOFError) as error:
                yield Reject(str(path), _reason(error))
                continue
            yield Document(str(path), text, self.domain or "text", str(path))


class JsonlSource(_FileSource):
    """JSON lines; text, id, domain and group are read from the named fields (dotted for nested ones)."""

    kind: Literal["jsonl"] = "jsonl"
    text_field: str = "text"
    id_field: str | None = None
    domain_field: str | None = None
    group_field: str | None = None

    def read(self) -> Iterator[Document | Reject]:
        """Yield one document a line; broken lines are rejects with file and line."""
        for path in self.files():
            try:
                with open_binary(path) as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield self._parse(line, f"{path}:{number}")
            except (OSError, EOFError) as error:
                yield Reject(str(path), _reason(error))

    def _parse(self, line: bytes, where: str) -> Document | Reject:
        try:
            row = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            return Reject(where, _reason(error))
        text = _field(row, self.text_field)
        if not isinstance(text, str):
            return Reject(where, f"no text in the field '{self.text_field}'")
        domain = self.domain or _name(row, self.domain_field) or "text"
        return Document(_name(row, self.id_field) or where, text, domain, _name(row, self.group_field) or where)


def _field(row: Any, path: str) -> Any:
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _name(row: Any, path: str | None) -> str | None:
    value = _field(row, path) if path else None
    return None if value is None else str(value)


def _reason(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return f"not UTF-8 (byte {error.start})"
        case json.JSONDecodeError():
            return f"not valid JSON ({error.msg})"
        case _:
            return f"unreadable ({error})"
