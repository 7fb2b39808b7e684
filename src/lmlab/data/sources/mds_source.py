"""Documents from MDS data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from lmlab.data.documents import Reject
from lmlab.data.sources.mds import MDSError, MDSShard, mds_entries, mds_indexes
from lmlab.data.sources.reading.records import RecordSource
from lmlab.errors import UserError
from lmlab.files import DamagedError, describe, find_files
from lmlab.redaction import redact


class MDSSource(RecordSource):
    """MDS data sets (Mosaic Streaming); the path is the folder of the index, or of several."""

    kind: Literal["mds"] = "mds"
    suffixes: ClassVar[tuple[str, ...]] = (".mds", ".zstd", ".json")

    def _found(self) -> list[str]:
        """The indexes: a split is a folder with one."""
        return mds_indexes(self.path)

    def _left_out(self) -> list[str]:
        return []  # an index says which files are the data

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with the names, sizes and digests of indexes and shards."""
        folders = [path.rpartition("/")[0] for path in self.files()]
        files = [path for folder in folders for path in find_files(folder, self.suffixes)]
        settings = {**self.model_dump(), "path": redact(self.path)}
        return {**settings, "files": [[redact(path), *describe(path)] for path in files]}

    def records_of(self, path: str, columns: Sequence[str] | None) -> Iterator[Any]:
        """One record a sample, shard by shard."""
        folder = path.rpartition("/")[0]
        for entry in mds_entries(path):
            shard = f"{folder}/{entry['raw_data']['basename']}"
            if columns is not None and self.text_field.split(".")[0] not in entry["column_names"]:
                ids = "input_ids" in entry["column_names"]
                raise UserError(
                    f"'{shard}' has no column '{self.text_field}'; its columns are"
                    f" {', '.join(map(str, entry['column_names']))}.",
                    "Token ids are read by the kind tokenized, with the tokenizer that made them (--ids-of)."
                    if ids
                    else "Name one with text_field.",
                )
            yield from self._reading(shard, lambda entry=entry: self._samples(entry, folder))  # type: ignore[misc]

    def _samples(self, entry: dict[str, Any], folder: str) -> Iterator[tuple[str, Any] | Reject]:
        try:
            shard = MDSShard(entry, folder)
        except MDSError as error:
            place = f"{folder}/{entry['raw_data']['basename']}"
            raise DamagedError(place, error.message.rstrip("."), f"{entry['samples']:,} samples are missing") from None
        shown = redact(shard.path)
        for number in range(len(shard)):
            try:
                yield f"{shown}:{number}", shard[number]
            except MDSError as error:
                yield self._damage(shard.path, DamagedError(f"{shown}:{number}", error.message.rstrip(".")))
