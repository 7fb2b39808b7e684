"""Collections in memory: documents, queries, judgments, and all three together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmlab.words import counted

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> grade; 0 was judged and is not relevant."""

REDTEAM = "redteam"
"""The key of a record, or of its metadata, that marks what was crafted to attack a retriever."""


@dataclass(frozen=True)
class Corpus:
    """Documents.

    Attributes:
        metadata: of those documents that have any, by id.
        left_out: ids of records that were not read, as they are marked as crafted by an attack.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    bodies: tuple[str, ...]
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def notices(self) -> list[str]:
        """What was left out, in a sentence."""
        if not self.left_out:
            return []
        records = counted(len(self.left_out), "documents are")
        return [f"{records} marked as crafted by an attack and left out (--redteam keep reads them)."]

    @property
    def texts(self) -> list[str]:
        """What is encoded: title and text, as BEIR joins them."""
        return [document_text(title, body) for title, body in zip(self.titles, self.bodies, strict=True)]

    def text(self, id: str) -> str:
        """One of them."""
        place = self.ids.index(id)
        return document_text(self.titles[place], self.bodies[place])

    def __add__(self, other: Corpus) -> Corpus:
        return Corpus(
            self.ids + other.ids,
            self.titles + other.titles,
            self.bodies + other.bodies,
            {**self.metadata, **other.metadata},
            self.left_out + other.left_out,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Lines of `corpus.jsonl`."""
        for id, title, body in zip(self.ids, self.titles, self.bodies, strict=True):
            yield {"_id": id, "title": title, "text": body, "metadata": self.metadata.get(id, {})}


def document_text(title: str, text: str) -> str:
    """What an encoder reads of a document."""
    return f"{title} {text}".strip()


@dataclass(frozen=True)
class Queries:
    """Questions."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, wanted: Sequence[str]) -> Queries:
        """Those with these ids, in this order."""
        texts = dict(zip(self.ids, self.texts, strict=True))
        return Queries(tuple(wanted), tuple(texts[id] for id in wanted), self.metadata)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Lines of `queries.jsonl`."""
        for id, text in zip(self.ids, self.texts, strict=True):
            yield {"_id": id, "text": text, "metadata": self.metadata.get(id, {})}


@dataclass(frozen=True)
class RetrievalDataset:
    """Documents, the queries of a split, and which documents answer them.

    Attributes:
        notices: what was dropped on reading, in sentences.
    """

    name: str
    split: str
    corpus: Corpus
    queries: Queries
    qrels: Qrels
    notices: tuple[str, ...] = ()
