"""Runs (query id -> document id -> score) in files: TREC's six columns, and JSON as BEIR and its descendants write it,
which is read query by query. And their fusion.
"""

from __future__ import annotations

import codecs
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, open_binary, parse_json, require_mapping, without_compression

Run = dict[str, dict[str, float]]

_CHUNK = 1 << 20  # bytes read at once; runs of a gigabyte are not held whole
_RRF_CONSTANT = 60.0  # of Cormack et al. 2009: a higher one lets the first ranks count for less


def write_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str = "lmlab") -> None:
    """Write a run: JSON where the name ends so, else TREC's six columns."""
    path = Path(path)
    if path.suffix != ".json":
        for id in (each for query, found in run.items() for each in (query, *found)):
            if not id or id.split() != [id]:
                raise UserError(f"The id '{id}' has spaces, and TREC's columns are parted by them.", "Write .json.")
    with atomic_file(path, "w") as file:
        if path.suffix == ".json":
            file.write(json.dumps(run, ensure_ascii=False))
            return
        for query, found in run.items():
            for rank, (document, score) in enumerate(ranked(found), 1):
                file.write(f"{query} Q0 {document} {rank} {float(score)!r} {tag}\n")


@reads("a run")
def read_run(place: str | Path, keep: int = 1000) -> Run:
    """Read a run of either form; of each query the `keep` best documents stay in memory.

    Raises:
        UserError: the file is damaged, or a score is no finite number.
    """
    location = str(place)
    json_form = without_compression(location).endswith(".json")
    rows = _json_queries(location) if json_form else _trec_queries(location)
    return {query: dict(heapq.nlargest(keep, found.items(), key=_rank_key)) for query, found in rows}


def ranked(found: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents of one query as trec_eval sorts them: by score in fp32, ties by id, descending."""
    return sorted(found.items(), key=_rank_key, reverse=True)


def _rank_key(item: tuple[str, float]) -> tuple[float, bytes]:
    import numpy as np

    return float(np.float32(item[1])), item[0].encode()


def _trec_queries(location: str) -> Iterator[tuple[str, dict[str, float]]]:
    found: Run = {}
    with open_binary(location) as file:
        for number, line in enumerate(file, 1):
            parts = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
            if not parts:
                continue
            if len(parts) != 6:
                raise UserError(f"'{location}', line {number}: {len(parts)} columns where a TREC run has 6.")
            where, scores = f"'{location}', line {number}", found.setdefault(parts[0], {})
            if parts[2] in scores:
                raise UserError(f"{where}: the document '{parts[2]}' stands twice for the query '{parts[0]}'.")
            scores[parts[2]] = _score(parts[4], where)
    yield from found.items()


def _json_queries(location: str) -> Iterator[tuple[str, dict[str, float]]]:
    """The members of one JSON object, one at a time: such files have gigabytes."""
    decoder, seen = json.JSONDecoder(), set[str]()
    with open_binary(location) as file:
        text = _Buffer(file, location)
        text.expect("{")
        while text.peek() != "}":
            query = str(text.value(decoder))
            where = f"'{location}', query '{query}'"
            if query in seen:
                raise UserError(f"{where}: it stands there twice.")
            seen.add(query)
            text.expect(":")
            found = require_mapping(text.value(decoder), where)
            yield query, {str(document): _score(score, where) for document, score in found.items()}
            if text.peek() != "}":
                text.expect(",")
        text.expect("}")
        text.expect_end()


class _Buffer:
    """Text of a file, read as far as a value needs it."""

    def __init__(self, file: Any, location: str) -> None:
        self._file, self._location, self._text = file, location, ""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def _more(self) -> bool:
        data = self._file.read(_CHUNK)
        self._text += self._decoder.decode(data, final=not data)
        return bool(data)

    def peek(self) -> str:
        self._text = self._text.lstrip()
        while not self._text and self._more():
            self._text = self._text.lstrip()
        if not self._text:
            raise UserError(f"'{self._location}': the JSON ends early.")
        return self._text[0]

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise UserError(f"'{self._location}': '{self._text[0]}' stands where '{character}' is needed.")
        self._text = self._text[1:]

    def expect_end(self) -> None:
        """Nothing but spaces may follow: of two objects one after another the second would not be read."""
        while self._more() or self._text.strip():
            if self._text.strip():
                raise UserError(f"'{self._location}': '{self._text.strip()[0]}' stands behind the end of the JSON.")
            self._text = ""

    def value(self, decoder: json.JSONDecoder) -> Any:
        self.peek()
        while True:
            try:
                _, end = decoder.raw_decode(self._text)
                break
            except json.JSONDecodeError as error:
                if not self._more():
                    raise UserError(f"'{self._location}': not valid JSON: {error.msg}.") from None
        piece, self._text = self._text[:end], self._text[end:]
        return parse_json(piece, f"'{self._location}'")


def _score(value: Any, where: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: the score '{value}' is no number.") from None
    if not math.isfinite(found):
        raise UserError(f"{where}: the score {found} is not finite.")
    return found


def fuse_rrf(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    k: int = 1000,
    constant: float = _RRF_CONSTANT,
    weights: Sequence[float] | None = None,
) -> Run:
    """Reciprocal rank fusion (Cormack et al. 2009): each run adds weight / (constant + rank) to the documents that it
    found, ranks from 1; a document that a run did not find gets nothing of it.
    """
    weights = weights or [1.0] * len(runs)
    fused: Run = {}
    for run, weight in zip(runs, weights, strict=True):
        for query, found in run.items():
            scores = fused.setdefault(query, {})
            for rank, (document, _) in enumerate(ranked(found), 1):
                scores[document] = scores.get(document, 0.0) + weight / (constant + rank)
    return {query: dict(ranked(scores)[:k]) for query, scores in fused.items()}
