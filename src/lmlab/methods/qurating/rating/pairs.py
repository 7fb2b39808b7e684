"""Which documents are compared with which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lmlab.data import Document
from lmlab.errors import UserError
from lmlab.methods.qurating.config import PairConfig

_POOL = 8  # an active design chooses among so many times the groups that are wanted


def make_groups(
    documents: Sequence[Document], config: PairConfig, ratings: Mapping[str, float] | None = None
) -> list[list[Document]]:
    """Groups of documents to compare; fewer than asked for where `adjacent` runs out of documents.

    Arguments:
        ratings: of documents by id, for the design `active`.

    Raises:
        UserError: the documents do not suffice for one group, or the design lacks what it needs.
    """
    unique = list({document.id: document for document in documents}.values())
    if len(unique) < config.k:
        raise UserError(f"{len(unique)} documents do not make a group of {config.k}.", "Give more documents.")
    rng = np.random.default_rng([config.seed, 7])  # draws of its own, beside others of this seed
    match config.design:
        case "adjacent":
            return [unique[start : start + config.k] for start in range(0, len(unique) - config.k + 1, config.k)][
                : config.n
            ]
        case "random":
            return _take(_random(unique, config.k, rng), config.n)
        case "active":
            return _active(unique, config, rng, ratings)
        case "within_domain":
            by_domain = [members for members in _by_domain(unique).values() if len(members) >= config.k]
            if not by_domain:
                raise UserError(f"No domain has {config.k} documents.", "Use the design random.")
            streams = [_random(members, config.k, rng) for members in by_domain]
            return _take((next(stream) for number in _cycle(len(streams)) for stream in [streams[number]]), config.n)
        case "cross_domain":
            by_domain = list(_by_domain(unique).values())
            if len(by_domain) < config.k:
                raise UserError(
                    f"There are {len(by_domain)} domains for groups of {config.k}.", "Use the design random."
                )
            return [_across(by_domain, config.k, rng) for _ in range(config.n)]


def _random(documents: Sequence[Document], k: int, rng: np.random.Generator) -> Iterator[list[Document]]:
    while True:
        order = rng.permutation(len(documents))
        for start in range(0, len(order) - k + 1, k):
            yield [documents[number] for number in order[start : start + k]]


def _active(
    documents: Sequence[Document], config: PairConfig, rng: np.random.Generator, ratings: Mapping[str, float] | None
) -> list[list[Document]]:
    if ratings is None:
        raise UserError("The design active needs ratings.", "Rate the documents with an earlier rater first.")
    known = [document for document in documents if document.id in ratings]
    if len(known) < config.k:
        raise UserError(f"Only {len(known)} of the documents have ratings.")
    pool = _take(_random(known, config.k, rng), _POOL * config.n)
    spread = [
        max(ratings[document.id] for document in group) - min(ratings[document.id] for document in group)
        for group in pool
    ]
    return [pool[number] for number in np.argsort(spread, kind="stable")[: config.n]]


def _across(by_domain: Sequence[list[Document]], k: int, rng: np.random.Generator) -> list[Document]:
    chosen = rng.choice(len(by_domain), k, replace=False)
    return [by_domain[number][rng.integers(len(by_domain[number]))] for number in chosen]


def _by_domain(documents: Sequence[Document]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in documents:
        found.setdefault(document.domain, []).append(document)
    return found


def _cycle(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


def _take(groups: Iterator[list[Document]], count: int) -> list[list[Document]]:
    return [group for group, _ in zip(groups, range(count), strict=False)]
