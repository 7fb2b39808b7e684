"""From sources to clean, deduplicated, split documents, with an account of everything that was dropped and why."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.data.collecting.decontamination import Decontamination
from lmlab.data.collecting.dedup import NUM_PERMUTATIONS, NearDuplicates, signature
from lmlab.data.collecting.spool import Spool, read_range
from lmlab.data.documents import Reject, Source
from lmlab.data.rejects import Rejects
from lmlab.data.sources.reading.placed import PlacedSource
from lmlab.distributed import fan_out
from lmlab.errors import UserError
from lmlab.files import atomic_file, json_value, write_json
from lmlab.progress import progress
from lmlab.words import counted

_GZIP_LEVEL = 6  # gzip's own default
_PART_BYTES = 2**26  # of text that one process hashes at once: larger parts leave processes idle at the end
_NAMED_GROUPS = 1000  # in the account, which would otherwise grow with the corpus where each document is a group


_Share = Annotated[float, Field(ge=0, le=1)]


class CollectConfig(Config):
    """How documents are chosen.

    Attributes:
        min_bytes: shorter documents are dropped.
        max_bytes: longer documents are dropped; null for no limit.
        exact_duplicates: `drop` or `keep` documents of the same words.
        near_duplicate_threshold: Jaccard similarity from which documents count as near-duplicates; null finds exact
            ones only.
        heldout_fraction: share of the bytes that is held out of training, in whole groups.
        compressible_between: keep the documents that stand between these shares of their domain, ranked by how far gzip
            compresses them: [0.2, 0.8] drops the fifth that repeats itself most and the fifth that does so least (OLMo
            3's long documents); null keeps all.
        max_reject_fraction: stop when a larger share of the records cannot be read.
    """

    min_bytes: int = Field(default=200, ge=0)
    max_bytes: int | None = Field(default=1_000_000, gt=0)
    exact_duplicates: Literal["drop", "keep"] = "drop"
    near_duplicate_threshold: float | None = Field(default=0.8, gt=0, lt=1)
    heldout_fraction: float = Field(default=0.08, ge=0, lt=1)
    compressible_between: tuple[_Share, _Share] | None = None
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _rising(self) -> CollectConfig:
        if self.compressible_between is not None and self.compressible_between[0] >= self.compressible_between[1]:
            raise ValueError("compressible_between must rise, as [0.2, 0.8] does.")
        return self

    @property
    def longest(self) -> float:
        """Bytes of the longest document that is kept."""
        return math.inf if self.max_bytes is None else self.max_bytes


KEEP_ALL: Mapping[str, Any] = {
    "min_bytes": 0,
    "max_bytes": None,
    "exact_duplicates": "keep",
    "near_duplicate_threshold": None,
    "heldout_fraction": 0,
}
"""Settings of `CollectConfig` by which every document that can be read is kept for training."""

DROPPED_BY: Mapping[str, str] = {
    "too short": "min_bytes",
    "too long": "max_bytes",
    "repeats itself": "compressible_between",
    "repeats nothing": "compressible_between",
    "exact duplicate": "exact_duplicates",
    "near-duplicate": "near_duplicate_threshold",
    "near or exact duplicate of held-out text": "near_duplicate_threshold, exact_duplicates",
    "text of an evaluation": "decontaminate",
}
"""The setting behind each reason for which documents are dropped."""


def collect(
    sources: Sequence[Source],
    config: CollectConfig,
    seed: int,
    directory: str | Path,
    workers: int | None = None,
    evaluations: Decontamination | None = None,
) -> dict[str, Any]:
    """Read all sources and write `train.jsonl`, `heldout.jsonl`, `dropped.jsonl`, `rejects.jsonl` and `collect.json` to
    `directory`.

    Documents wait on the disk, not in memory, which holds about 50 bytes of each, and 36 more to find near-duplicates.

    Held-out documents are deduplicated first, so that of two similar documents on both sides of the split the training
    one is dropped: what is measured on held-out text is not memory.

    Arguments:
        workers: processes that compute the signatures of near-duplicates; by default one a core.
        evaluations: texts that training must not see.

    Returns:
        counts of documents and bytes by domain: read, dropped by reason, training, held out.

    Raises:
        UserError: no documents, too many rejects, or nothing left for training.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _remove_remains(directory)
    spool = Spool(directory / ".documents.tmp", seed)
    try:
        notices = [notice for source in sources for notice in source.notices()]
        rejects = _read_all(sources, config, spool, directory)
        odd = _compressed_oddly(spool, config)
        heldout, notice = _choose_heldout(spool, config, odd)
        notices += [notice] if notice else []
        order = np.concatenate([np.flatnonzero(heldout), np.flatnonzero(~heldout)])
        near = None
        if config.near_duplicate_threshold is not None:
            near = NearDuplicates(
                _signatures(spool, config, directory, workers), order, config.near_duplicate_threshold
            )
        sieve = _Sieve(spool, config, order, heldout, odd, near, evaluations)
        report = sieve.write(directory)
        if near is not None:
            near.close()
    finally:
        spool.remove()
        _remove_remains(directory)
    report = {"read": _by_domain(spool, np.arange(len(spool))), **rejects, "notices": notices, **report}
    write_json(directory / "collect.json", report)
    return report


def _read_all(sources: Sequence[Source], config: CollectConfig, spool: Spool, directory: Path) -> dict[str, Any]:
    """Put all documents into the spool and list the rejects; return the account of these."""
    remedy = (
        f"Mend the source (rejects.jsonl lists them), or raise max_reject_fraction ({config.max_reject_fraction:g})."
    )
    with (
        progress("read", None, "documents") as advance,
        Rejects(directory / "rejects.jsonl", config.max_reject_fraction) as rejects,
    ):
        for item in (item for source in _told_apart(sources) for item in source.read()):
            reject = item if isinstance(item, Reject) else spool.add(item)
            if reject is not None:
                rejects.add(reject)
                if rejects.too_many(len(spool)):
                    break
            advance(note=f"{rejects.unfit} rejected" if rejects.unfit else "")
    rejects.check(len(spool), remedy)
    spool.finish()
    account = rejects.account()
    if not len(spool):
        others = account["other_splits"]
        told = f": all {counted(others, 'records are')} of other splits" if others else ": the sources hold no document"
        raise UserError(f"The corpus is empty{told}.", "Name the split (split:), or check the paths of the sources.")
    return account


def _told_apart(sources: Sequence[Source]) -> Iterator[Source]:
    """The sources, so that documents that are called by their places have ids of their own in each."""
    number = 0
    for source in sources:
        number += isinstance(source, PlacedSource)
        yield source.apart(number) if isinstance(source, PlacedSource) else source


def _fits(spool: Spool, config: CollectConfig) -> NDArray[np.bool_]:
    return (spool.sizes >= config.min_bytes) & (spool.sizes <= config.longest)


def _compressed_oddly(spool: Spool, config: CollectConfig) -> NDArray[np.int8]:
    """For each document 1 where gzip compresses it further than those that are kept of its domain, -1 where it does so
    less far, else 0. What is dropped for its length is not ranked.
    """
    odd = np.zeros(len(spool), np.int8)
    if config.compressible_between is None:
        return odd
    fits, ratios = _fits(spool, config), np.ones(len(spool))
    with progress("compress", len(spool), "documents") as advance:
        for number in range(len(spool)):
            if fits[number] and spool.sizes[number]:
                text = spool.document(number).text.encode()
                ratios[number] = len(text) / len(zlib.compress(text, _GZIP_LEVEL))
            advance()
    low, high = config.compressible_between
    for domain in np.unique(spool.domain_ids):
        chosen = np.flatnonzero((spool.domain_ids == domain) & fits)
        # ranks, not thresholds: many documents may be alike
        ranked = chosen[np.lexsort((chosen, ratios[chosen]))]
        odd[ranked[: round(low * len(ranked))]] = -1
        odd[ranked[round(high * len(ranked)) :]] = 1
    return odd


def _choose_heldout(spool: Spool, config: CollectConfig, odd: NDArray[np.int8]) -> tuple[NDArray[np.bool_], str | None]:
    """For each document whether it is held out: whole groups, in the order of their numbers, until each kind of group
    (by the domains it spans) has its share of the text. Where all groups are larger than that, as when all text is
    from one book, single documents; that is told in a sentence.
    """
    fraction = config.heldout_fraction
    keys, group_of = np.unique(spool.groups, return_inverse=True)
    # what is dropped for its length has no share: one huge document would leave nothing for training
    fits = _fits(spool, config) & (odd == 0)
    characters = np.where(fits, spool.characters, 0).astype(np.int64)
    sizes = np.bincount(group_of, characters.astype(float)).astype(np.int64)
    spans = np.unique(np.stack([group_of.astype(np.uint64), spool.domain_ids], 1), axis=0)
    strata = np.zeros(len(keys), np.uint64)
    np.add.at(
        strata,
        spans[:, 0].astype(np.int64),
        np.array([_number(name) for name in spool.domains], np.uint64)[spans[:, 1].astype(np.int64)],
    )
    found = np.zeros(len(group_of), bool)
    told: list[str] = []
    for stratum in np.unique(strata) if fraction > 0 else ():
        groups = np.flatnonzero(strata == stratum)
        share = fraction * int(sizes[groups].sum())
        chosen = _fill(groups, sizes, share)  # np.unique has sorted them by number
        if len(chosen):
            found |= np.isin(group_of, chosen)
            continue
        documents = np.flatnonzero(np.isin(group_of, groups))
        drawn = documents[np.argsort(spool.draws(documents), kind="stable")]
        single = _fill(drawn, characters, share)
        found[single] = True
        names = ", ".join(sorted({spool.domains[int(number)] for number in spool.domain_ids[documents]}))
        told.append(
            f"{names}: every group is larger than the share that is held out ({share:,.0f} characters), so"
            + (f" {counted(len(single), 'single documents are')} held out" if len(single) else " nothing is held out")
        )
    notice = f"{'; '.join(told)} (heldout_fraction {fraction:g}; groups are set by group_field)." if told else None
    return found, notice


def _fill(candidates: NDArray[np.int64], sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """The first of the candidates that fit into a share, each after those before it."""
    chosen = []
    for each in candidates.tolist():
        if sizes[each] <= share:
            chosen.append(each)
            share -= int(sizes[each])
    return np.array(chosen, np.int64)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


@dataclass(frozen=True)
class _Part:
    """A range of the spool whose signatures go to one file."""

    spool: Path
    start: int
    end: int
    target: Path
    sizes: tuple[int, float]


def _signatures(spool: Spool, config: CollectConfig, directory: Path, workers: int | None) -> list[Path]:
    """Files with the signatures of all documents, made by several processes if there is much text."""
    limits = (config.min_bytes, config.longest)
    parts = [
        _Part(spool.path, start, end, directory / f".signatures-{number:05d}.tmp", limits)
        for number, (start, end) in enumerate(spool.ranges(_PART_BYTES))
    ]
    with progress("find near-duplicates", parts[-1].end, "B") as advance:
        for index, _ in fan_out(_write_signatures, parts, workers):
            advance(parts[index].end - parts[index].start)
    return [part.target for part in parts]


def _write_signatures(part: _Part) -> None:
    blank = np.zeros(NUM_PERMUTATIONS, np.uint32)
    with open(part.target, "wb") as file:
        for document in read_range(part.spool, part.start, part.end):
            fits = part.sizes[0] <= len(document.text.encode()) <= part.sizes[1]
            file.write((signature(document.text) if fits else blank).tobytes())


class _Sieve:
    """Decides on one document after the other, held-out ones first, and writes what becomes of it."""

    def __init__(
        self,
        spool: Spool,
        config: CollectConfig,
        order: NDArray[np.int64],
        heldout: NDArray[np.bool_],
        odd: NDArray[np.int8],
        near: NearDuplicates | None,
        evaluations: Decontamination | None,
    ) -> None:
        self._evaluations, self._odd = evaluations, odd
        self._spool, self._config, self._order, self._heldout, self._near = spool, config, order, heldout, near
        self._first_equal = _first_equal(spool.digests[order])
        self._kept = np.zeros(len(order), bool)
        self._instead: dict[int, int] = {}

    def write(self, directory: Path) -> dict[str, Any]:
        """Write all files; return the account."""
        outcomes: dict[str, array[int]] = {}
        groups: set[str] = set()
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(atomic_file(directory / f"{name}.jsonl"))
                for name in ("train", "heldout", "dropped")
            }
            advance = stack.enter_context(progress("choose", len(self._order), "documents"))
            for place, number in enumerate(self._order.tolist()):
                split = "heldout" if self._heldout[number] else "train"
                reason, details = self._judge(place, number)
                if reason is None:
                    line = self._spool.line(number)
                    files[split].write(line)
                    if split == "heldout" and len(groups) <= _NAMED_GROUPS:
                        groups.add(json_value(line)["group"])
                else:
                    document = self._spool.document(number)
                    row = {"id": document.id, "domain": document.domain, "reason": reason, **details}
                    row["setting"] = DROPPED_BY[reason]
                    files["dropped"].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                outcomes.setdefault(reason or split, array("q")).append(number)
                advance()
            if "train" not in outcomes:
                dropped = {name: len(numbers) for name, numbers in outcomes.items() if name != "heldout"}
                reasons = ", ".join(f"{count} {name} ({DROPPED_BY[name]})" for name, count in dropped.items())
                raise UserError(
                    f"No document is left for training: {len(self._order)} read, {sum(dropped.values())} dropped"
                    f"{f': {reasons}' if reasons else ''}; {len(outcomes.get('heldout', ()))} held out"
                    " (heldout_fraction).",
                    "Change the settings in parentheses, or add sources.",
                )
        counted = {
            name: _by_domain(self._spool, np.frombuffer(numbers, np.int64)) for name, numbers in outcomes.items()
        }
        splits = {split: counted.pop(split, {"documents": {}, "bytes": {}}) for split in ("train", "heldout")}
        held = np.frombuffer(outcomes.get("heldout", array("q")), np.int64)
        named = {
            "heldout_groups": sorted(groups)[:_NAMED_GROUPS],
            "num_heldout_groups": len(np.unique(self._spool.groups[held])),
        }
        return {"dropped": counted, **splits, **named}

    def _judge(self, place: int, number: int) -> tuple[str | None, dict[str, Any]]:
        """Why a document is dropped, and what belongs to that; None if it is kept."""
        size = int(self._spool.sizes[number])
        if size < self._config.min_bytes:
            return "too short", {"bytes": size}
        if size > self._config.longest:
            return "too long", {"bytes": size}
        if self._odd[number]:
            return "repeats itself" if self._odd[number] > 0 else "repeats nothing", {"bytes": size}
        if self._evaluations is not None and not self._heldout[number]:
            found = self._evaluations.find(self._spool.document(number).text)
            if found is not None:
                return "text of an evaluation", {"evaluation": found.source, "words": found.words}
        if self._config.exact_duplicates == "keep":
            return self._judge_similar(place, number)
        first = int(self._first_equal[place])
        first = self._instead.get(first, first)
        if self._kept[first]:
            return self._repeats("exact duplicate", number, int(self._order[first]), 1.0)
        reason, details = self._judge_similar(place, number)
        if reason is None:
            self._kept[place] = True
            self._instead[first] = place
            if first == place:
                del self._instead[first]
        return reason, details

    def _judge_similar(self, place: int, number: int) -> tuple[str | None, dict[str, Any]]:
        """The same as regards near-duplicates alone."""
        if self._near is None:
            return None, {}
        found = self._near.find(place)
        if found is not None:
            return self._repeats(
                "near-duplicate" if found.similarity < 1 else "exact duplicate", number, found.of, found.similarity
            )
        self._near.keep(place)
        return None, {}

    def _repeats(self, reason: str, number: int, of: int, similarity: float) -> tuple[str, dict[str, Any]]:
        if self._heldout[of] and not self._heldout[number]:
            reason = "near or exact duplicate of held-out text"
        return reason, {"duplicate_of": self._spool.document(of).id, "similarity": similarity}


def _first_equal(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the first that is equal to it."""
    by_digest = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    ordered = digests[by_digest]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)]))
    first = np.empty(len(digests), np.int64)
    first[by_digest] = np.repeat(by_digest[starts], np.diff(np.append(starts, len(digests))))
    return first


def _by_domain(spool: Spool, numbers: NDArray[np.int64]) -> dict[str, Any]:
    domains, sizes = spool.domain_ids[numbers].astype(np.int64), spool.sizes[numbers].astype(float)
    documents, size = (
        np.bincount(domains, minlength=len(spool.domains)),
        np.bincount(domains, sizes, minlength=len(spool.domains)),
    )
    present = [number for number in range(len(spool.domains)) if documents[number]]
    return {
        "documents": {spool.domains[number]: int(documents[number]) for number in present},
        "bytes": {spool.domains[number]: int(size[number]) for number in present},
    }


def _remove_remains(directory: Path) -> None:
    """Remove what waits on the disk, also of an attempt that was killed."""
    for path in [directory / ".documents.tmp", *directory.glob(".signatures-*.tmp")]:
        path.unlink(missing_ok=True)
