"""Documents from a folder of files of several kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from lmlab.data.documents import Document, Reject, Source
from lmlab.data.sources.finding.kinds import find_source, kind_of
from lmlab.data.sources.reading.fields import RecordFields
from lmlab.data.sources.reading.files import FileSource, is_about, named_files
from lmlab.files import without_compression
from lmlab.redaction import redact

_TEXTS = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".tokens", ".raw", "")


class FolderSource(FileSource, RecordFields):
    """Files of several kinds, each read by the source for its name; the text of records is in the field `text_field`.

    Text is what is named as such (.txt, .md, .rst, .tex, .html); files about the data (README, LICENSE and the like)
    and of unknown kinds are left out, and named.

    Attributes:
        group_field: dotted field with the group of a record.
    """

    kind: Literal["folder"] = "folder"
    group_field: str | None = None

    def read(self) -> Iterator[Document | Reject]:
        """Yield the documents of one kind after the other."""
        self._tell()
        for source in self._sources():
            yield from source.read()

    def notices(self) -> list[str]:
        """Which split is taken, and which files are left out."""
        known = {path for paths in self._by_kind().values() for path in paths}
        left = [path for path in self.files() if path not in known]
        found = super().notices()
        if left:
            found.append(f"'{redact(self.path)}': left out {named_files(left)} that are no data, or of no kind.")
        return found

    def _by_kind(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.files():
            name = PurePosixPath(without_compression(path))
            if is_about(path):
                continue
            kind = kind_of(path) or ("text" if name.suffix.lower() in _TEXTS else None)
            if kind is not None:
                found.setdefault(kind, []).append(path)
        return dict(sorted(found.items()))

    def _sources(self) -> Iterator[Source]:
        settings = self.model_dump(exclude={"kind", "path", "text_field", "id_field", "domain_field", "group_field"})
        fields = {name: getattr(self, name) for name in ("text_field", "id_field", "domain_field", "group_field")}
        for kind, paths in self._by_kind().items():
            made: Any = find_source(kind)
            named = {name: value for name, value in {**settings, **fields}.items() if name in made.model_fields}
            few = {"documents": "file"} if kind == "text" and len(paths) > 1 else {}
            for path in paths:
                part: Any = made(**{**named, **few, "path": path})
                part._prefix = self._prefix
                yield part.part_of(self._within or self.path)
