"""The rows of a corpus that is rated: read in blocks, told to a rater, and put into tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lmlab.data import Document, RecordSource, Reject, TextSource, choose_kind, record_source
from lmlab.data.sources.reading.records import field
from lmlab.data.sources.reading.splits import TRAIN
from lmlab.errors import UserError
from lmlab.methods.qurating.rating.problems import TokenizerMismatch
from lmlab.methods.qurating.selecting.tables.table import relative_names
from lmlab.runs import Vocabulary

_log = logging.getLogger(__name__)
TEXT, IDS = "\0text", "\0ids"
REJECTED = "unreadable"  # a column of the reasons; "rejected" is one of preference data


@dataclass(frozen=True)
class Annotation:
    """What is to be annotated, and where.

    Attributes:
        corpus: a location of the data layer.
        rater: directory of a rater.
        out: folder that receives a Parquet file for each file of the corpus.
        text, id: fields; without ids rows get their file's name and their number.
        input_ids: field with token ids that may be used in place of the text, if they were made by the rater's
            tokenizer.
        ids_tokenizer: directory of the tokenizer that made them.
        block: rows that are rated at once.
        columns: input columns that are kept; None for all.
    """

    corpus: str
    rater: str
    out: str
    text: str = "text"
    id: str | None = None
    input_ids: str | None = None
    ids_tokenizer: str | None = None
    block: int = 1024
    columns: tuple[str, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    split: str | None = None


class Corpus:
    """The files of a corpus, and their rows.

    Attributes:
        files, names: its files, and what they are called below the folder that they share.
    """

    def __init__(self, job: Annotation) -> None:
        self._job = job
        self._source = _source(job.corpus, job.split)
        self._wanted = self._source.wanted_split if isinstance(self._source, RecordSource) else TRAIN
        self.files = self._source.files()
        for notice in self._source.notices():
            _log.warning("%s", notice)
        self.names = relative_names(self.files)

    def blocks(self, number: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The rows of a file in blocks; records that cannot be read are rows without a text, with the reason."""
        rows: list[dict[str, Any]] = []
        block = 0
        for row in self.rows(number):
            rows.append(row)
            if len(rows) == self._job.block:
                yield block, rows
                block, rows = block + 1, []
        if rows:
            yield block, rows

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of a file, one after another."""
        file, name = self.files[number], self.names[number]
        if isinstance(self._source, TextSource):
            for document in TextSource(path=file).read():
                yield {"id": name, **_document_row(document)}
            return
        for place, (where, found) in enumerate(self._source.records_of(file, None), 1):
            record = self._source.of_split(where, found, self._wanted)
            if isinstance(record, Reject) or not isinstance(record, dict):
                reason = record.reason if isinstance(record, Reject) else "no record with named fields"
                yield {"id": f"{name}:{place}", REJECTED: reason}
                continue
            keep = self._job.columns
            kept = record if keep is None else {column: record[column] for column in keep if column in record}
            row = {
                **kept,
                TEXT: field(record, self._job.text),
                IDS: field(record, self._job.input_ids) if self._job.input_ids else None,
            }
            if self._job.id is None and "id" not in row:
                row["id"] = f"{name}:{place}"
            yield row

    def encoder(
        self, own: Any
    ) -> tuple[Callable[[list[dict[str, Any]]], list[Sequence[int]]], Callable[[dict[str, Any]], Any]]:
        """What gives rows their token ids, and what of a row they are made from.

        Arguments:
            own: the rater's tokenizer, or what a classifier has in its place.
        """
        job = self._job
        if job.input_ids is not None:
            made_by = None if job.ids_tokenizer is None else Vocabulary.find(job.ids_tokenizer).load()
            same = made_by is not None and made_by.fingerprint == own.fingerprint
            if same:
                return lambda rows: [row.get(IDS) or [] for row in rows], lambda row: row.get(IDS) or []
            if not self._has_text():
                raise TokenizerMismatch(
                    f"The ids in '{job.input_ids}' were not made by the rater's tokenizer, and there is no text in"
                    f" '{job.text}'.",
                    "Name the tokenizer that made them if it is the same (ids_tokenizer), or give a corpus with texts.",
                )
            _log.warning("the ids in '%s' are not of the rater's tokenizer: texts are tokenized again", job.input_ids)

        def text_of(row: dict[str, Any]) -> str:
            return str(row[TEXT]) if isinstance(row.get(TEXT), str) else ""

        return lambda rows: list(own.encode_batch([text_of(row) for row in rows], "as_text")), text_of

    def _has_text(self) -> bool:
        return isinstance(next(iter(self.rows(0)), {}).get(TEXT), str)


def _source(location: str, split: str | None) -> RecordSource | TextSource:
    found = TextSource(path=location) if choose_kind(location) == "text" else record_source(location)
    return found.model_copy(update={"split": split})


def _document_row(document: Document | Reject) -> dict[str, Any]:
    if isinstance(document, Reject):
        return {REJECTED: document.reason}
    return {"text": document.text, "domain": document.domain, TEXT: document.text}


def table_of(rows: list[dict[str, Any]], criteria: Sequence[str]) -> pa.Table:
    """Rows as a table; scores are float32, averages float64."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    kinds = {f"{name}_chunks": pa.list_(pa.float32()) for name in criteria} | {
        f"{name}_average": pa.float64() for name in criteria
    }
    kinds |= {"chunk_lengths": pa.list_(pa.int64()), "length": pa.int64()}
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays.append(pa.array(values, kinds.get(column)))
        except UnicodeEncodeError:
            raise UserError(
                f"The field '{column}' holds a text that is no Unicode.", "Name the columns to keep without it."
            ) from None
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise UserError(
                f"The field '{column}' holds values of several kinds.", "Name the columns to keep without it."
            ) from None
    return pa.Table.from_arrays(arrays, names=columns)
