"""Reading collections: BEIR folders, compressed or not, local or at a URL; Parquet in the layout of Hugging Face; TREC
judgments; plain lists of passages. What is wrong is said with file and line; nothing is downloaded by name.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lmlab.data.documents import is_redteam
from lmlab.errors import UserError, reads
from lmlab.files import (
    MAX_JSON_BYTES,
    find_files,
    is_folder,
    kind_of,
    open_binary,
    parse_json,
    require_mapping,
    without_compression,
)
from lmlab.retrieval.collections.records import REDTEAM, Corpus, Qrels, Queries, RetrievalDataset
from lmlab.words import counted

Redteam = Literal["drop", "keep", "error"]

REFERENCE_NAMES = (
    *("nq", "nq-train", "msmarco", "hotpotqa", "fiqa", "trec-covid", "nfcorpus", "arguana", "quora", "scidocs"),
    *("fever", "scifact"),
)
_SHOWN = 5  # names in a message: enough to see what is meant
_HEADER = ["query-id", "corpus-id", "score"]
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".tsv")


def load_dataset(
    place: str | Path,
    split: str = "test",
    ignore_missing: bool = False,
    redteam: Redteam = "drop",
    judged: bool = True,
) -> RetrievalDataset:
    """A BEIR folder: its documents, the queries that its split judges, and the judgments.

    Arguments:
        judged: judgments are needed; else a folder that has none at all gives all of its queries, and says so.
        ignore_missing: leave out judgments of unknown queries or documents, and say how many, in place of an error.
        redteam: what to do with documents that are marked as crafted by an attack; what is dropped is told.

    Raises:
        UserError: a file is missing or damaged, an id stands twice, or judgments name unknown ids.
    """
    root = collection_root(place)
    corpus = read_corpus(collection_part(root, "corpus"), redteam)
    notices = corpus.notices
    queries = read_queries(collection_part(root, "queries"))
    name = collection_name(root)
    if not judged and not _below(f"{root}/qrels"):
        notices.append(f"'{name}' has no judgments: all of its {counted(len(queries), 'queries are')} taken.")
        return RetrievalDataset(name, split, corpus, queries, {}, tuple(notices))
    qrels, gone = read_qrels(collection_part(root, f"qrels/{split}")), set(corpus.left_out)
    if gone:
        qrels = {
            query: {id: grade for id, grade in judged.items() if id not in gone} for query, judged in qrels.items()
        }
    qrels = _check(qrels, queries, corpus, ignore_missing, notices)
    asked = queries.only([id for id in queries.ids if id in qrels])
    if not len(asked):
        raise UserError(f"The judgments of the split '{split}' of '{name}' hold 0 queries.", "Give another split.")
    return RetrievalDataset(name, split, corpus, asked, qrels, tuple(notices))


def judged_queries(place: str | Path) -> dict[str, set[str]]:
    """The ids of the queries that each split of a BEIR folder judges; none where it has no judgments."""
    root = collection_root(place)
    found = [each for each in _below(f"{root}/qrels") if _plain(each).endswith(_SUFFIXES)]  # and no notes beside them
    return {split: set(read_qrels(collection_part(root, f"qrels/{split}"))) for split in sorted(set(map(_stem, found)))}


def collection_name(place: str | Path) -> str:
    """What a collection is called: its folder."""
    return str(place).rstrip("/").rpartition("/")[2]


def collection_root(place: str | Path) -> str:
    location = str(place)
    if is_folder(location):
        return location
    if location in REFERENCE_NAMES:
        raise UserError(
            f"'{location}' is the name of a public collection, and nothing is downloaded by name.",
            f"Lay it out as {location}/corpus.jsonl, {location}/queries.jsonl and {location}/qrels/test.tsv, and give"
            " the path of that folder.",
        )
    raise UserError(f"'{location}' is no folder with corpus.jsonl, queries.jsonl and qrels/.")


def collection_part(root: str, name: str) -> str:
    """The file (or folder of Parquet files) that holds one part of a collection."""
    place = glob.escape(f"{root}/{name}")  # names of folders may hold brackets
    for candidate in (f"{place}*", f"{place}/*"):
        try:
            found = find_files(candidate)
        except UserError:
            continue
        stem = name.rpartition("/")[2]
        fitting = [each for each in found if _stem(each) == stem and _plain(each).endswith(_SUFFIXES)]
        fitting = fitting or [each for each in found if each.endswith(".parquet")]
        if fitting:
            return fitting[0] if len(fitting) == 1 else candidate
    folder, _, stem = f"{root}/{name}".rpartition("/")
    others = sorted(_stem(each) for each in _below(folder))
    told = f" It has: {', '.join(others[:_SHOWN])}." if others else ""
    split = name.startswith("qrels")
    remedy = "Name another split, or add this one." if split and others else ""
    raise UserError(f"'{folder}' has no {stem}{'.tsv' if split else '.jsonl'}.{told}", remedy)


def _below(folder: str) -> list[str]:
    try:
        return find_files(f"{glob.escape(folder)}/*")
    except UserError:
        return []


def _plain(location: str) -> str:
    return without_compression(location)


def _stem(location: str) -> str:
    return _plain(location).rpartition("/")[2].partition(".")[0]


def _check(qrels: Qrels, queries: Queries, corpus: Corpus, ignore_missing: bool, notices: list[str]) -> Qrels:
    for what, known, named in (
        ("queries", set(queries.ids), list(qrels)),
        ("documents", set(corpus.ids), list(dict.fromkeys(doc for judged in qrels.values() for doc in judged))),
    ):
        missing = [id for id in named if id not in known]
        if not missing:
            continue
        first = ", ".join(f"'{id}'" for id in missing[:_SHOWN])
        if not ignore_missing:
            raise UserError(
                f"The judgments name {len(missing):,} {what} that are not there, such as {first}.",
                "Take all files from one source, or leave those judgments out with --ignore-missing.",
            )
        notices.append(f"Judgments of {len(missing):,} unknown {what} were left out, such as {first}.")
        gone = set(missing)
        qrels = {
            query: {doc: grade for doc, grade in judged.items() if what == "queries" or doc not in gone}
            for query, judged in qrels.items()
            if what == "documents" or query not in gone
        }
    return {query: judged for query, judged in qrels.items() if judged}


@reads("a corpus")
def read_corpus(place: str | Path, redteam: Redteam = "drop") -> Corpus:
    """Documents of `corpus.jsonl`, of Parquet files, or of a list of passages, one a line.

    Arguments:
        redteam: what to do with records that are marked as crafted by an attack.

    Raises:
        UserError: a line is no record, has no text, or repeats an id; with file and line.
    """
    ids: dict[str, str] = {}
    titles, bodies, metadata = [], [], {}
    left_out = list[str]()
    for where, row in _records(str(place)):
        id, text = _id(row, where, ids), row.get("text")
        if not isinstance(text, str):
            raise UserError(
                f"{where}: the key 'text' must hold text, not {kind_of(text)}.",
                "Where there is a title alone, write an empty text beside it." if row.get("title") else None,
            )
        title, extra = row.get("title"), row.get("metadata")
        if title is not None and not isinstance(title, str):
            raise UserError(f"{where}: the key 'title' must hold text, not {kind_of(title)}.")
        if is_redteam(row):
            if redteam == "error":
                raise UserError(
                    f"{where}: the record is marked as crafted by an attack ('{REDTEAM}': true).",
                    "Take it out; a crafted set is an overlay beside a corpus and never part of one.",
                )
            if redteam == "drop":
                left_out.append(id)
                continue
        ids[id] = where
        titles.append(title or "")
        bodies.append(text)
        if isinstance(extra, dict) and extra:
            metadata[id] = extra
    return Corpus(tuple(ids), tuple(titles), tuple(bodies), metadata, tuple(left_out))


@reads("a file of queries")
def read_queries(place: str | Path) -> Queries:
    """Queries of `queries.jsonl`, or of a folder that holds one, of Parquet, or one a line.

    Raises:
        UserError: as of `read_corpus`; or there is none.
    """
    location = str(place)
    if is_folder(location):
        location = collection_part(location, "queries")
    ids: dict[str, str] = {}
    texts, metadata = [], {}
    for where, row in _records(location):
        id, text = _id(row, where, ids), row.get("text")
        if not isinstance(text, str):
            raise UserError(f"{where}: the key 'text' must hold text, not {kind_of(text)}.")
        ids[id] = where
        texts.append(text)
        if isinstance(row.get("metadata"), dict) and row["metadata"]:
            metadata[id] = row["metadata"]
    if not ids:
        raise UserError(f"'{place}' holds 0 queries.")
    return Queries(tuple(ids), tuple(texts), metadata)


def _id(row: dict[str, Any], where: str, known: dict[str, str]) -> str:
    id = row.get("_id", row.get("id"))
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise UserError(f"{where}: the key '_id' must hold the record's id.")
    if id in known:
        raise UserError(f"{where}: the id '{id}' stands in {known[id]} already.")
    return id


def _records(location: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records with their places; passages of a .txt file get their line as id."""
    for path in find_files(location):
        if path.endswith(".parquet"):
            yield from _parquet(path)
        elif _plain(path).endswith(".txt"):
            for number, line in _lines(path):
                yield f"'{path}', line {number}", {"_id": f"{_stem(path)}-{number}", "text": line.strip()}
        else:
            for number, line in _lines(path):
                where = f"'{path}', line {number}"
                row = require_mapping(parse_json(line, where), where)
                if "_id" not in row and "id" not in row and "text" in row:
                    row["_id"] = f"{_stem(path)}-{number}"
                yield where, row


def _parquet(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from lmlab.data import ParquetSource, Reject

    for number, (where, record) in enumerate(ParquetSource(kind="parquet", path=path, redteam="keep").records(), 1):
        if isinstance(record, Reject):
            raise UserError(f"'{path}', row {number}: {record.reason}.")
        yield where, dict(record)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with open_binary(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_JSON_BYTES + 1), b""), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"'{path}', line {number} is not UTF-8 (byte {error.start}).") from None
            if text.strip():
                yield number, text


@reads("judgments")
def read_qrels(place: str | Path) -> Qrels:
    """Judgments: BEIR's three columns under a header, TREC's four without one, or Parquet.

    Raises:
        UserError: a wrong header, a line with another number of columns, or a grade that is no whole number.
    """
    found: Qrels = {}
    for path in find_files(str(place)):
        if path.endswith(".parquet"):
            for where, row in _parquet(path):
                _judge(found, where, str(row.get("query-id")), str(row.get("corpus-id")), str(row.get("score")))
            continue
        header = True
        for number, line in _lines(path):
            where, columns = f"'{path}', line {number}", line.rstrip("\r\n").split("\t")
            if header and [column.strip().lower().replace("_", "-") for column in columns] == _HEADER:
                header = False
                continue
            parts = line.split()
            if len(parts) == 4 and (header is True or header is None):
                header = None  # type: ignore[assignment]
                _judge(found, where, parts[0], parts[2], parts[3])
                continue
            if header is True:
                raise UserError(
                    f"{where}: the header must be 'query-id', 'corpus-id' and 'score', with tabs between them.",
                    "Add it, or give TREC judgments of four columns.",
                )
            if len(columns) != 3 or header is None:
                raise UserError(f"{where}: {len(columns)} columns where {4 if header is None else 3} are needed.")
            _judge(found, where, columns[0], columns[1], columns[2])
    return found


def _judge(found: Qrels, where: str, query: str, document: str, grade: str) -> None:
    try:
        number = float(grade)  # Parquet files of Hugging Face hold whole numbers as fractions: 1.0
        if not number.is_integer():
            raise ValueError
        value = int(number)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: the grade '{grade.strip()}' is no whole number.") from None
    judged, id = found.setdefault(query.strip(), {}), document.strip()
    if judged.setdefault(id, value) != value:
        raise UserError(f"{where}: the document '{id}' has the grade {judged[id]} for the query '{query}' already.")
