"""From sources to clean, deduplicated, split documents, with an account of everything that was dropped and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from lmlab.config import Config
from lmlab.data.dedup import Deduplicator
from lmlab.data.documents import Document, Reject, Source
from lmlab.errors import UserError
from lmlab.files import write_json, write_jsonl
from lmlab.progress import progress


class CollectConfig(Config):
    """How documents are chosen.

    Attributes:
        min_bytes: shorter documents are dropped.
        max_bytes: longer documents are dropped.
        near_duplicate_threshold: Jaccard similarity from which documents count as near-duplicates; null finds exact ones only.
        heldout_fraction: share of the bytes that is held out of training, in whole groups.
        max_reject_fraction: stop when a larger share of the records cannot be read.
    """

    min_bytes: int = Field(default=200, ge=0)
    max_bytes: int = Field(default=1_000_000, gt=0)
    near_duplicate_threshold: float | None = Field(default=0.8, gt=0, lt=1)
    heldout_fraction: float = Field(default=0.08, ge=0, lt=1)
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)


@dataclass
class _Tally:
    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, document: Document) -> None:
        self.documents[document.domain] += 1
        self.bytes[document.domain] += len(document.text.encode())

    def row(self) -> dict[str, Any]:
        return {"documents": dict(self.documents), "bytes": dict(self.bytes)}


def collect(sources: Sequence[Source], config: CollectConfig, seed: int, directory: Path) -> dict[str, Any]:
    """Read all sources and write `train.jsonl`, `heldout.jsonl`, `dropped.jsonl`, `rejects.jsonl` and `collect.json` to `directory`.

    Held-out documents are deduplicated first, so that of two similar documents on both sides of the split the training one is dropped: what is
    measured on held-out text is not memory.

    Returns:
        counts of documents and bytes by domain: read, dropped by reason, training, held out.

    Raises:
        UserError: no documents, too many rejects, or nothing left for training.
    """
    read, rejects = _read_all(sources, config)
    dropped: list[dict[str, Any]] = []
    kept: dict[str, list[Document]] = {"heldout": [], "train": []}
    tallies: dict[str, _Tally] = {}
    deduplicator = Deduplicator(config.near_duplicate_threshold)
    heldout_groups = _choose_heldout(read, config.heldout_fraction, seed)
    ordered = sorted(read, key=lambda document: document.group not in heldout_groups)
    heldout_ids = set()
    with progress("deduplicate", len(ordered), "documents") as advance:
        for number, document in enumerate(ordered):
            split = "heldout" if document.group in heldout_groups else "train"
            key = f"{document.id}#{number}"
            if split == "heldout":
                heldout_ids.add(key)
            reason, details = _judge(document, key, config, deduplicator)
            if reason and split == "train" and details.get("duplicate_of") in heldout_ids:
                reason = "near or exact duplicate of held-out text"
            tallies.setdefault(reason or split, _Tally()).add(document)
            if reason:
                details = {name: value.rpartition("#")[0] if name == "duplicate_of" else value for name, value in details.items()}
                dropped.append({"id": document.id, "domain": document.domain, "reason": reason, **details})
            else:
                kept[split].append(document)
            advance()
    if not kept["train"]:
        raise UserError(
            f"No document is left for training: {len(read)} read, {len(dropped)} dropped, {len(kept['heldout'])} held out.",
            "Lower min_bytes or heldout_fraction, or add sources.",
        )
    total = _Tally()
    for document in read:
        total.add(document)
    for split, documents in kept.items():
        write_jsonl(directory / f"{split}.jsonl", (document.row() for document in documents))
    write_jsonl(directory / "dropped.jsonl", dropped)
    write_jsonl(directory / "rejects.jsonl", ({"where": reject.where, "reason": reject.reason} for reject in rejects))
    reasons = {reason: tally.row() for reason, tally in tallies.items() if reason not in kept}
    splits = {split: tallies.get(split, _Tally()).row() for split in ("train", "heldout")}
    heldout = sorted({document.group for document in kept["heldout"]})
    report = {"read": total.row(), "rejects": len(rejects), "dropped": reasons, **splits, "heldout_groups": heldout}
    write_json(directory / "collect.json", report)
    return report


def _read_all(sources: Sequence[Source], config: CollectConfig) -> tuple[list[Document], list[Reject]]:
    documents: list[Document] = []
    rejects: list[Reject] = []
    with progress("read", None, "documents") as advance:
        for source in sources:
            for item in source.read():
                if isinstance(item, Reject):
                    rejects.append(item)
                else:
                    documents.append(item)
                advance(note=f"{len(rejects)} rejected" if rejects else "")
    if len(rejects) > config.max_reject_fraction * (len(documents) + len(rejects)):
        first = rejects[0]
        raise UserError(
            f"{len(rejects)} of {len(documents) + len(rejects)} records cannot be read; the first is {first.where}: {first.reason}.",
            "Mend the source, or raise max_reject_fraction.",
        )
    if not documents:
        raise UserError("The corpus is empty: the sources hold no document.", "Check the paths of the sources.")
    return documents, rejects


def _judge(document: Document, key: str, config: CollectConfig, deduplicator: Deduplicator) -> tuple[str | None, dict[str, Any]]:
    size = len(document.text.encode())
    if size < config.min_bytes:
        return "too short", {"bytes": size}
    if size > config.max_bytes:
        return "too long", {"bytes": size}
    duplicate = deduplicator.find(key, document.text)
    if duplicate is None:
        return None, {}
    reason = "exact duplicate" if duplicate.similarity == 1.0 else "near-duplicate"
    return reason, {"duplicate_of": duplicate.of, "similarity": duplicate.similarity}


def _choose_heldout(documents: Sequence[Document], fraction: float, seed: int) -> set[str]:
    """Whole groups, in an order drawn from the seed, until each kind of group (by the domains it spans) has its share of bytes."""
    sizes: Counter[str] = Counter()
    domains: dict[str, set[str]] = {}
    for document in documents:
        sizes[document.group] += len(document.text)
        domains.setdefault(document.group, set()).add(document.domain)
    strata: dict[tuple[str, ...], list[str]] = {}
    for group, spanned in domains.items():
        strata.setdefault(tuple(sorted(spanned)), []).append(group)
    chosen: set[str] = set()
    for groups in strata.values():
        left = fraction * sum(sizes[group] for group in groups)
        for group in sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest()):
            if sizes[group] <= left:
                chosen.add(group)
                left -= sizes[group]
    return chosen
