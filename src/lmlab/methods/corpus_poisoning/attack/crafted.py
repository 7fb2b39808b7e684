"""Crafted passages: an overlay beside a corpus, never a part of one. Every record says that it is one of an attack,
which run made it, and how; a list of ids says what to remove.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmlab.data.documents import is_redteam
from lmlab.errors import UserError, reads
from lmlab.files import read_jsonl, write_jsonl, write_text
from lmlab.retrieval import REDTEAM, Corpus

OVERLAY, REMOVAL, ATTACKERS = "adversarial.jsonl", "removal.txt", "attack-queries.txt"


def query_digests(texts: Sequence[str]) -> list[str]:
    """Short digests of queries, without regard to case and the spaces around them, by which a later evaluation tells
    those that the attacker had.
    """
    return [hashlib.sha256(text.strip().casefold().encode()).hexdigest()[:16] for text in texts]


@dataclass(frozen=True)
class Passage:
    """One crafted passage.

    Attributes:
        id: `redteam-RUN-CLUSTER-N`.
        text: what an inserter would post.
        cluster: of queries, or the question that it is for.
        token_ids: what was optimized; the text becomes these ids again, unless it was imported.
        objective_ids, objective_text: the objective of the ids, and of the text as an indexer would read it.
        evaluations: passage forwards that were spent.
        payload: the text that had to be in it.
        note: what the reader of a report should know, such as a retry in fp32.
    """

    id: str
    text: str
    run: str
    optimizer: str
    retriever: str
    cluster: str
    token_ids: tuple[int, ...] = ()
    objective_ids: float | None = None
    objective_text: float | None = None
    evaluations: int = 0
    seed: int = 0
    payload: str = ""
    stopped: str = ""
    note: str = ""

    def row(self) -> dict[str, Any]:
        """A line of the overlay."""
        metadata = {REDTEAM: True, **asdict(self)}
        for name in ("id", "text"):
            metadata.pop(name)
        metadata["token_ids"] = list(self.token_ids)
        return {"_id": self.id, "title": "", "text": self.text, "metadata": metadata}


@dataclass(frozen=True)
class AdversarialSet:
    """Passages of one run."""

    passages: tuple[Passage, ...]

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return [passage.id for passage in self.passages]

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        return [passage.text for passage in self.passages]

    @property
    def corpus(self) -> Corpus:
        """As documents, to overlay a corpus."""
        empty = ("",) * len(self)
        metadata = {passage.id: passage.row()["metadata"] for passage in self.passages}
        return Corpus(tuple(self.ids), empty, tuple(self.texts), metadata)

    def save(self, directory: str | Path) -> None:
        """Write the overlay and the list of ids to remove."""
        directory = Path(directory)
        if doubled := len(self.ids) - len(set(self.ids)):
            raise UserError(f"{doubled} ids of crafted passages stand twice.")
        write_jsonl(directory / OVERLAY, (passage.row() for passage in self.passages))
        write_text(directory / REMOVAL, "".join(f"{id}\n" for id in self.ids))

    @classmethod
    @reads("a set of crafted passages")
    def load(cls, place: str | Path) -> AdversarialSet:
        """Read an overlay, or the folder of one.

        Raises:
            UserError: a record is not marked as crafted.
        """
        place = Path(place)
        path = place / OVERLAY if place.is_dir() else place
        if not path.exists():
            raise UserError(f"'{place}' holds no {OVERLAY}.", "Run: lmlab poison craft")
        return cls(tuple(_passages(path)))


def _passages(path: Path) -> Iterator[Passage]:
    known = set(Passage.__dataclass_fields__)
    for number, row in enumerate(read_jsonl(path), 1):
        if not is_redteam(row):
            raise UserError(
                f"'{path}', line {number}: the record is not marked as crafted ('{REDTEAM}': true).",
                "This file is to hold crafted passages alone; a corpus goes elsewhere.",
            )
        metadata = {key: value for key, value in row["metadata"].items() if key in known}
        metadata["token_ids"] = tuple(metadata.get("token_ids") or ())
        yield Passage(id=str(row["_id"]), text=str(row["text"]), **metadata)


def passage_id(run: str, cluster: str | int, number: int = 0) -> str:
    """The id of a passage."""
    return f"redteam-{run}-{cluster}-{number}"


def joined(sets: Sequence[AdversarialSet]) -> AdversarialSet:
    """Several sets as one."""
    return AdversarialSet(tuple(passage for each in sets for passage in each.passages))
