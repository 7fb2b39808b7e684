"""Attribute files beside documents, in the form of Dolma: for each file of documents a file of the same name whose
lines give, by id, spans of the text with a score for each attribute.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from lmlab.errors import UserError
from lmlab.files import find_files, owned_folder, read_jsonl, read_mapping, without_compression
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular, as_floats
from lmlab.methods.qurating.selecting.tables.writing import TableWriter

WRITE, JOIN = "lmlab quality attributes", "lmlab quality join"
_ROWS = 2**14  # written at once: more take memory for the scores of their spans


def write_attributes(
    table: Tabular, out: Path, name: str, columns: Sequence[str] = (), *, id: str = "id", text: str = "text"
) -> int:
    """Write the ratings of a corpus as attributes `{name}__{column}` of whole documents; returns the number of rows.

    A file of the corpus gives one of the same name, as `.jsonl.gz`; of an annotation these are the files of the corpus
    that it is of, so that the attributes stand beside its documents. The span of a document is its characters, or its
    tokens where there is no text. What is not finite gives no span.

    Arguments:
        columns: that are written; by default all of the form `{c}_average`.

    Raises:
        UserError: a column is missing, or two files have one name.
    """
    rated = RatedTable(table)
    known = rated.columns
    wanted = list(columns) or [column for column in known if column.endswith("_average")]
    if not wanted:
        raise UserError("There is no column of ratings, NAME_average.", "Name the columns to write with --columns.")
    for column in [id, *wanted]:
        rated.require(column)
    size = text if text in known else rated.require("length")
    names = [_packed_name(each) for each in _sources(rated)]
    if len(set(names)) < len(names):
        raise UserError("Two files of the corpus have one name.", "Write the attributes of each folder on its own.")
    count, shard, file = 0, -1, None
    with owned_folder(out, WRITE, [name, wanted], rated.files) as folder:
        places = [folder.new(each) for each in names]
        try:
            for chunk in rated.chunks([id, size, *wanted]):
                while shard < chunk.shard:
                    if file is not None:
                        file.close()
                    shard += 1
                    file = _packed(places[shard])
                assert file is not None
                columns_of = [chunk.columns[each].to_pylist() for each in (id, size)]
                columns_of += [as_floats(chunk.columns[each], each).tolist() for each in wanted]
                for key, extent, *scores in zip(*columns_of, strict=True):
                    file.write(json.dumps(_line(key, extent, name, wanted, scores), ensure_ascii=False) + "\n")
                count += chunk.num_rows
        finally:
            if file is not None:
                file.close()
        for place in places[shard + 1 :]:  # files without rows
            _packed(place).close()
    return count


def _sources(rated: RatedTable) -> list[str]:
    """For each file its name, or that of the file whose annotation it is."""
    found, known = [], dict[Path, list[str]]()
    for shard, file in zip(rated.shards, rated.files, strict=True):
        folder, stem = Path(file).parent, Path(file).stem
        if folder not in known:
            note = folder / "annotation.json"
            known[folder] = list(read_mapping(note).get("files") or ()) if note.is_file() else []
        number = int(stem) if stem.isdecimal() else -1
        found.append(known[folder][number] if 0 <= number < len(known[folder]) else shard)
    return found


def _packed_name(source: str) -> str:
    """Dolma looks for a file of exactly the documents' name."""
    name = PurePosixPath(source).name
    return name if name.endswith((".json.gz", ".jsonl.gz")) else f"{_stem(source)}.jsonl.gz"


def _packed(path: Path) -> IO[str]:
    """A file that is the same whenever it is written: without its time."""
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), encoding="utf-8")


def _line(key: Any, extent: Any, name: str, columns: Sequence[str], scores: Sequence[Any]) -> dict[str, Any]:
    end = len(extent) if isinstance(extent, str) else int(extent or 0)
    attributes = {
        f"{name}__{column}": [[0, end, float(score)]] if score is not None and math.isfinite(score) else []
        for column, score in zip(columns, scores, strict=True)
    }
    return {"id": key, "attributes": attributes}


def join_attributes(documents: str, attributes: Sequence[str], out: Path) -> int:
    """Write documents with their attributes as columns, `{attribute}_average`: the mean of the spans' scores, weighted
    by their lengths; null without spans. Returns the number of rows.

    Arguments:
        attributes: folders with a file for each file of documents, of the same name.

    Raises:
        UserError: a file is missing, or its lines are not those of its documents, with the line.
    """
    rated = RatedTable(documents)
    rated.require("id")
    found = [{_stem(path): path for path in find_files(folder, (".jsonl", ".json"))} for folder in attributes]
    sources = []
    for name in rated.shards:
        for folder, files in zip(attributes, found, strict=True):
            if _stem(name) not in files:
                raise UserError(
                    f"'{folder}' has no file for '{name}'.", "Each file of documents needs one of its name."
                )
        sources.append([files[_stem(name)] for files in found])
    count, shard = 0, -1
    writer: TableWriter | None = None
    lines: list[Iterator[tuple[str, dict[str, Any]]]] = []
    with owned_folder(
        out, JOIN, [documents, list(attributes)], [*rated.files, *(path for paths in sources for path in paths)]
    ) as folder_:
        try:
            for chunk in rated.chunks(["id"], whole=True):
                while shard < chunk.shard:
                    _finish(writer, lines)
                    shard += 1
                    writer = TableWriter(folder_.new(f"{shard:05d}.parquet"))
                    lines = [_lines(path) for path in sources[shard]]
                assert writer is not None
                for start in range(0, chunk.num_rows, _ROWS):
                    part = {name: chunk.columns[name].slice(start, _ROWS) for name in chunk.own}
                    writer.write(pa.table(part | _scores(part["id"].to_pylist(), lines)))
                count += chunk.num_rows
            _finish(writer, lines)
            writer = None
        finally:
            if writer is not None:
                writer.__exit__(RuntimeError, RuntimeError(), None)
    return count


def _scores(ids: Sequence[Any], lines: Sequence[Iterator[tuple[str, dict[str, Any]]]]) -> dict[str, pa.Array]:
    rows: list[dict[str, float | None]] = [{} for _ in ids]
    for source in lines:
        for row, id in zip(rows, ids, strict=True):
            where, line = next(source, ("", {}))
            if str(line.get("id")) != str(id):
                raise UserError(
                    f"{where or 'The end of a file of attributes'} is not of the document '{id}'.",
                    "Attributes stand in the order of their documents.",
                )
            found = line.get("attributes") or {}
            if not isinstance(found, dict):
                raise UserError(f"{where}: 'attributes' is no object.")
            for name, spans in found.items():
                row[f"{name}_average"] = _mean(spans, where)
    names = sorted({name for row in rows for name in row})
    return {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names}


def _mean(spans: Any, where: str) -> float | None:
    try:
        weighted = [(max(0, end - start), float(score)) for start, end, score in spans]
    except (TypeError, ValueError):
        raise UserError(f"{where}: a span is not of the form [start, end, score].") from None
    if not weighted:
        return None
    total = sum(size for size, _ in weighted)
    if not total:
        return sum(score for _, score in weighted) / len(weighted)
    return sum(size * score for size, score in weighted) / total


def _lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_jsonl(Path(path)), 1):
        yield f"'{path}', line {number}", line


def _finish(writer: TableWriter | None, lines: Sequence[Iterator[tuple[str, dict[str, Any]]]]) -> None:
    """Close a file, if its attributes have come to their end too."""
    for source in lines:
        if (more := next(source, None)) is not None:
            raise UserError(f"{more[0]} is of no document.", "Attributes stand in the order of their documents.")
    if writer is not None:
        writer.close()


def _stem(path: str) -> str:
    return PurePosixPath(without_compression(PurePosixPath(path.replace("\\", "/")).name)).stem
