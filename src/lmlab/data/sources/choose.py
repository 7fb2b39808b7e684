"""Which kind of source a location needs, by the names of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lmlab.data.sources.records import (
    ArrowSource,
    JsonlSource,
    MDSSource,
    ParquetSource,
    RecordSource,
    WebDatasetSource,
)
from lmlab.errors import UserError
from lmlab.storage import find_files, is_folder, without_compression

_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tar": "webdataset",
}
_SOURCES: dict[str, type[RecordSource]] = {
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "mds": MDSSource,
    "webdataset": WebDatasetSource,
}
_ARROW_MARKS = {"dataset_info.json", "state.json", "dataset_dict.json"}


def choose_kind(location: str) -> str:
    """The kind of source for a file, glob, folder or URL: `jsonl`, `parquet`, `arrow`, `mds`, `webdataset`, `tokenized`
    or `text`.

    A folder with an `index.json` is of MDS; one that `datasets` saved, or with Arrow files, is of Arrow. Files of text
    beside files of records are passed over, as they tend to describe them.

    Raises:
        UserError: nothing is there, or the folder holds records of several kinds.
    """
    kind = _kind_of(location)
    if kind is not None:
        return kind
    names = [PurePosixPath(path).name for path in find_files(location)]
    if is_folder(location) and {"manifest.json", "tokenizer_config.json"} <= set(names):
        return "tokenized"
    if not is_folder(location):
        return _kind_of(names[0]) or "text"
    if "index.json" in names:
        return "mds"
    if not _ARROW_MARKS.isdisjoint(names):
        return "arrow"
    kinds = {_kind_of(name) for name in names if not name.endswith(".json")} - {None} or {
        _kind_of(name) for name in names
    } - {None}
    if len(kinds) > 1:
        raise UserError(
            f"The folder '{location}' holds records of several kinds: {', '.join(sorted(map(str, kinds)))}.",
            f"Name one kind with a glob, such as '{location.rstrip('/')}/**/*.parquet'.",
        )
    return str(kinds.pop()) if kinds else "text"


def source_settings(location: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a source for a location; the fields are given to sources of records.

    Raises:
        UserError: as `choose_kind`.
    """
    kind = choose_kind(location)
    return {"kind": kind, "path": location, **(fields if kind in _SOURCES else {})}


def record_source(location: str) -> RecordSource:
    """The source of the records at a location; a single file of an unknown name is taken for JSON lines.

    Raises:
        UserError: it holds texts or tokens, but no records; or as `choose_kind`.
    """
    kind = choose_kind(location)
    if kind == "text" and not is_folder(location):
        kind = "jsonl"
    if kind not in _SOURCES:
        raise UserError(
            f"'{location}' holds no records.", "Name a file or folder of JSON lines, Parquet, Arrow, MDS or WebDataset."
        )
    return _SOURCES[kind](path=location)


def _kind_of(name: str) -> str | None:
    return _KINDS.get(PurePosixPath(without_compression(name)).suffix)
