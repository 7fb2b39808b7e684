"""Which kind of source a location needs, by the names of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lmlab.data.sources.finding.kinds import find_source, kind_of
from lmlab.data.sources.reading.records import RecordSource
from lmlab.errors import UserError
from lmlab.files import find_files, is_folder, without_compression

_ARROW_MARKS = {"dataset_info.json", "state.json", "dataset_dict.json"}
_TEXT = (".txt", ".text")
_SET_ASIDE = {"rejects.jsonl", "dropped.jsonl"}  # what lmlab itself left out of the records beside them


def choose_kind(location: str) -> str:
    """The kind of source for a file, glob, folder or URL: `jsonl`, `csv`, `parquet`, `arrow`, `mds`, `webdataset`,
    `tokenized`, `text`, another that a package offers, or `folder` for files of several kinds.

    A folder with an `index.json` is of MDS; one that `datasets` saved, or with Arrow files, is of Arrow. Plain JSON
    beside other records tends to describe them, and Markdown too: sources name what they leave out for that. Nobody
    compresses descriptions, so that `.json.gz` is data.

    Raises:
        UserError: nothing is there.
    """
    kind = kind_of(location)
    if kind is not None and not is_folder(location):
        return kind
    names = [name for path in find_files(location) if (name := PurePosixPath(path).name) not in _SET_ASIDE]
    if not is_folder(location):
        kinds = {kind_of(name) for name in names}
        return (kinds.pop() if len(kinds) == 1 else "folder") or "text"
    if {"manifest.json", "tokenizer_config.json"} <= set(names):
        return "tokenized"
    if "index.json" in names:
        return "mds"
    if not _ARROW_MARKS.isdisjoint(names):
        return "arrow"
    kinds = {kind_of(name) for name in names if not name.lower().endswith(".json")} - {None} or {
        kind_of(name) for name in names
    } - {None}
    if kinds and any(without_compression(name).lower().endswith(_TEXT) for name in names):
        kinds.add("text")
    return "folder" if len(kinds) > 1 else str(kinds.pop()) if kinds else "text"


def source_settings(location: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a source for a location.

    Arguments:
        fields: settings such as `text_field` and `split`; each is given to sources that know it.

    Raises:
        UserError: as `choose_kind`.
    """
    kind = choose_kind(location)
    known = find_source(kind).model_fields
    return {"kind": kind, "path": location, **{name: value for name, value in fields.items() if name in known}}


def record_source(location: str) -> RecordSource:
    """The source of the records at a location; a single file of an unknown name is taken for JSON lines.

    Raises:
        UserError: it holds texts or tokens, but no records, or records of several kinds; or as `choose_kind`.
    """
    kind = choose_kind(location)
    if kind == "text" and not is_folder(location):
        kind = "jsonl"
    made = find_source(kind)
    if kind == "folder":
        raise UserError(
            f"The folder '{location}' holds records of several kinds.",
            f"Name one kind with a glob, such as '{location.rstrip('/')}/**/*.parquet'.",
        )
    if not issubclass(made, RecordSource):
        raise UserError(
            f"'{location}' holds no records.",
            "Name a file or folder of JSON lines, CSV, Parquet, Arrow, MDS or WebDataset.",
        )
    return made(path=location)
