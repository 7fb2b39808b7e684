"""The index of an MDS data set: which shards there are, and what each is said to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.data.sources.mds.encoding import short_reason
from lmlab.errors import UserError
from lmlab.files import MAX_JSON_BYTES, find_files, json_value, open_raw

INDEX = "index.json"


def mds_indexes(folder: str) -> list[str]:
    """The `index.json` of every data set below a folder. An index speaks for all folders below its own.

    Raises:
        UserError: there is none.
    """
    found = [path for path in find_files(folder, (INDEX,)) if path.rpartition("/")[2] == INDEX]
    if not found:
        raise UserError(f"'{folder}' holds no MDS data set (index.json is missing).")
    folders = [path.removesuffix(INDEX) for path in found]
    return [
        path
        for path, own in zip(found, folders, strict=True)
        if not any(own.startswith(each) and own != each for each in folders)
    ]


def read_mds_index(folder: str) -> list[tuple[str, dict[str, Any]]]:
    """The entries of all shards below a folder, each with the folder of its index.

    Raises:
        UserError: there is no index, or it is none of MDS.
    """
    return [(path.rpartition("/")[0], entry) for path in mds_indexes(folder) for entry in mds_entries(path)]


def mds_entries(path: str) -> list[dict[str, Any]]:
    """The entries of the shards that an index lists.

    Raises:
        UserError: it is none of MDS; the message says what is missing, and in which entry.
    """
    try:
        with open_raw(path) as file:
            index = json_value(file.read(MAX_JSON_BYTES + 1))
    except Exception as error:  # every file system raises errors of its own
        raise UserError(f"'{path}' is not the index of an MDS data set ({short_reason(error)}).") from None
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not isinstance(index, dict) or index.get("version") != 2:
        raise UserError(f"'{path}' is not the index of an MDS data set of version 2.")
    for number, entry in enumerate(shards):
        fault = _fault(entry)
        if fault is not None:
            raise UserError(f"'{path}', entry {number} of shards: {fault}.", "Write or download the index again.")
    return shards


def _fault(entry: Any) -> str | None:
    """What is wrong with the description of a shard, if anything."""
    if not isinstance(entry, dict):
        return "it is not an object"
    if entry.get("format") != "mds":
        return f"its format is {entry.get('format')!r}, not 'mds'"
    lists = ("column_names", "column_encodings", "column_sizes")
    wrong = next((key for key in lists if not isinstance(entry.get(key), list)), None)
    if wrong is not None:
        return f"'{wrong}' is missing or no list"
    if len({len(entry[key]) for key in lists}) > 1:
        return "its columns have not all a name, an encoding and a size"
    if not _is_number(entry.get("samples")):
        return "'samples' is missing or no number"
    if not isinstance(entry.get("raw_data"), dict):
        return "'raw_data' is missing or no object"
    for part in ("raw_data", "zip_data"):
        described = entry.get(part)
        if described is None:
            continue
        if not isinstance(described, dict) or not isinstance(described.get("basename"), str):
            return f"'{part}' names no file (basename)"
        if not _is_number(described.get("bytes")):
            return f"'{part}' has no size (bytes)"
        if not isinstance(described.get("hashes") or {}, dict):
            return f"'{part}.hashes' is no object"
        if ".." in Path(described["basename"]).parts or Path(described["basename"]).is_absolute():
            return f"it names a shard outside its folder, '{described['basename']}'"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
