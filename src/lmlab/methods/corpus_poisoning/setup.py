"""What commands and stages share: an encoder, a collection, and its stored vectors and thresholds.

Everything that is costly is in one folder (`--cache`) and is made once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
from lmlab.methods.corpus_poisoning.config import ChosenConfig
from lmlab.methods.corpus_poisoning.measure.thresholds import CleanHits, stored_hits
from lmlab.retrieval import (
    AnyEncoder,
    EmbeddingStore,
    ExactIndex,
    Queries,
    RetrievalDataset,
    load_dataset,
    read_corpus,
)
from lmlab.retrieval.collections.read import collection_name, collection_part, collection_root
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.encoder import Kind
from lmlab.retrieval.store import collection_folder, encoder_folder
from lmlab.words import counted


def chosen_queries(queries: Queries, which: ChosenConfig) -> list[int]:
    """The numbers of the queries that are chosen.

    Raises:
        UserError: an id is unknown, or no query holds the concept.
    """
    rows = list(range(len(queries)))
    if which.query_id:
        place = {id: row for row, id in enumerate(queries.ids)}
        if unknown := [id for id in which.query_id if id not in place]:
            raise UserError(f"There is no query '{unknown[0]}'.", "Give an id of the queries, with --query-id.")
        rows = sorted({place[id] for id in which.query_id})
    if which.concept is not None:
        wanted = re.compile(rf"(?<!\w){re.escape(which.concept.strip().casefold())}(?!\w)")
        found = [row for row in rows if wanted.search(queries.texts[row].casefold())]
        if not found or not which.concept.strip():
            raise UserError(
                f"None of {counted(len(rows), 'queries')} holds '{which.concept}'.", "Name another --concept."
            )
        rows = found
    return rows


@dataclass
class Retriever:
    """An encoder with a folder for what it gave.

    Attributes:
        cache: of vectors and thresholds; each encoder has a folder of its own in it.
        precision: of encoding collections.
    """

    spec: EncoderSpec
    cache: Path
    precision: Precision = "fp32"

    @cached_property
    def encoder(self) -> AnyEncoder:
        """The encoder."""
        return self.spec.load()

    @cached_property
    def folder(self) -> Path:
        """Where its vectors are."""
        return encoder_folder(self.cache, self.encoder, self.precision)

    def vectors(self, name: str, ids: Sequence[str], texts: Sequence[str], kind: Kind) -> NDArray[np.float32]:
        """Vectors of texts, made where they are not there."""
        place = self.folder / name
        return EmbeddingStore.build(place, self.encoder, ids, list(texts), kind, self.precision).vectors()


@dataclass
class Target:
    """A collection as a retriever sees it."""

    retriever: Retriever
    data: RetrievalDataset
    place: str | None = None

    @classmethod
    def load(
        cls, retriever: Retriever, place: str, split: str, ignore_missing: bool = False, judged: bool = True
    ) -> Target:
        """Read it.

        Arguments:
            judged: judgments are needed.

        Raises:
            UserError: it is damaged, or holds crafted documents: figures of a clean corpus would be wrong.
        """
        return cls(retriever, load_dataset(place, split, ignore_missing, "error", judged), place)

    @classmethod
    def of_documents(cls, retriever: Retriever, place: str, asked: Queries | None = None) -> Target:
        """Its documents alone, with other queries or none: neither its own queries nor judgments need to be there.

        Raises:
            UserError: as of `load`.
        """
        root = collection_root(place)
        corpus = read_corpus(collection_part(root, "corpus"), "error")
        queries = Queries((), ()) if asked is None else asked
        return cls(retriever, RetrievalDataset(collection_name(root), "", corpus, queries, {}), place)

    @property
    def name(self) -> str:
        """Of its folder in the cache."""
        return collection_folder(self.data.name, self.data.corpus.ids)

    def depth(self, queries: Queries | None = None) -> int:
        """How deep clean results of queries, by default its own, can be: one less than there are documents where a
        query is one of them, which is not counted as its own result.
        """
        ids = set(self.data.corpus.ids)
        return len(ids) - any(id in ids for id in (queries or self.data.queries).ids)

    @cached_property
    def documents(self) -> NDArray[np.float32]:
        """Vectors of documents."""
        corpus = self.data.corpus
        return self.retriever.vectors(f"{self.name}/document", corpus.ids, corpus.texts, "document")

    @cached_property
    def index(self) -> ExactIndex:
        """Exact search."""
        return ExactIndex(self.data.corpus.ids, self.documents)

    def queries(self, queries: Queries | None = None, name: str | None = None) -> NDArray[np.float32]:
        """Vectors of queries, by default its own."""
        asked = queries or self.data.queries
        name = name or f"{self.name}/query-{self.data.split}"
        return self.retriever.vectors(name, asked.ids, asked.texts, "query")

    def hits(self, depth: int, queries: Queries | None = None, name: str | None = None) -> CleanHits:
        """Clean results of queries to some depth, from the cache."""
        asked = queries or self.data.queries
        about: dict[str, Any] = {
            "encoder": sha256_json(self.retriever.encoder.fingerprint),
            "corpus": sha256_json([list(self.data.corpus.ids), list(self.data.corpus.texts)]),
            "queries": sha256_json([list(asked.ids), list(asked.texts)]),
            "precision": self.retriever.precision,
        }
        path = self.retriever.folder / f"{self.name}/hits-{sha256_json(about)[:10]}.npz"
        depth = min(depth, len(self.data.corpus))
        return stored_hits(path, about, self.index, self.queries(asked, name), asked, depth)
