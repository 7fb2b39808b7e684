"""Choosing rows by threshold: passes over a compact file find, for each domain, the key above which its budget is
spent.

Noise makes top-k a sample: the rows with the largest z / tau + Gumbel are a sample without replacement with the
probabilities softmax(z / tau) (Plackett-Luce, QuRating section 4). Such a choice maximizes the mean rating less tau
times its Kullback-Leibler divergence from the corpus.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmlab.config import validate
from lmlab.errors import UserError, reads
from lmlab.files import atomic_file
from lmlab.methods.qurating.selecting.budgets import (
    domain_budgets,
    falls_short,
    shares_of,
    until_spent,
    within_the_whole,
)
from lmlab.methods.qurating.selecting.drawing.keys import gumbels
from lmlab.methods.qurating.selecting.drawing.threshold import find_thresholds
from lmlab.methods.qurating.selecting.moments import Moments, exact_moments, standardize
from lmlab.methods.qurating.selecting.problems import BadTemperature, BudgetExceedsCorpus
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.methods.qurating.selecting.tables.ids import ids_of, sorted_by_key
from lmlab.methods.qurating.selecting.tables.lengths import Measure
from lmlab.methods.qurating.selecting.tables.scan import UNLABELED, Scan, scan
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular
from lmlab.words import counted

_COLUMNS = ("id", "shard", "row", "key", "domain", "length")


@dataclass(frozen=True)
class Manifest:
    """The rows that were chosen, by falling key.

    Attributes:
        table: columns id, shard, row, key, domain, length.
        report: counts by domain, moments, budgets, what was left out, and the settings.
    """

    table: pa.Table
    report: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[Any]:
        """Of the rows, by falling key."""
        return self.table.column("id").to_pylist()

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return int(np.asarray(self.table.column("length")).sum())

    def write(self, path: str | Path) -> None:
        """Write it as Parquet."""
        path = Path(path)
        with atomic_file(path) as file:
            pq.write_table(self.table, file)

    @classmethod
    @reads("the manifest of a selection")
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote."""
        path = Path(path)
        return cls(pq.read_table(path))


def select(
    table: Tabular,
    config: SelectionConfig | None = None,
    *,
    measure: Measure | None = None,
    text: str = "text",
    **options: Any,
) -> Manifest:
    """Choose rows of a table up to a number of tokens.

    Arguments:
        table: a location, a table of Arrow, or a mapping of columns; see `RatedTable`. Texts are not read.
        config: the settings; or give them by name as `options`: `select(path, metric="educational_value_average",
            mode="sample", tokens=10**9)`.
        measure: counts the tokens of texts where there are no lengths.

    Raises:
        NonFiniteRating, EmptyDocument, DuplicateIds, ZeroVariance, BudgetExceedsCorpus, BadTemperature: as their names
            say.
        UserError: a column is missing or a setting is wrong.
    """
    rated = RatedTable(table)
    chosen = _choose(rated, config or validate(SelectionConfig, options, "the selection"), measure, text)
    return Manifest(_manifest_table(rated, chosen.keys, chosen.rows, chosen.row_keys), _report(chosen))


def select_mixture(
    table: Tabular, config: SelectionConfig, *, measure: Measure | None = None, text: str = "text"
) -> Manifest:
    """Choose by several ratings in turns: each column of `weights` takes its best row that is not yet taken, one after
    the other, until the budget of a domain is spent. Keys are those of the column that took the row; noise is the same
    for all columns.

    Raises:
        UserError: fewer than two columns; and as `select`.
    """
    metrics = list(config.weights)
    if len(metrics) < 2:
        raise UserError("A mixture needs at least two columns of ratings.", "Give --weights A=1,B=1.")
    rated = RatedTable(table)
    capped = bool(config.cap_duplicates)  # which rows the cap leaves is known only as the turns go on
    parts = [
        _choose(rated, config.model_copy(update={"weights": {}, "metric": name}), measure, text, every=capped)
        for name in metrics
    ]
    found = parts[0].keys.found
    budgets = domain_budgets(found.domains, found.domain_tokens, config) if capped else parts[0].budgets
    shares = shares_of(found.domains, found.domain_tokens, config)
    chosen_of = _in_turns([part.rows for part in parts], found.domains, budgets, shares, config)
    rows = np.concatenate([part.rows[places] for part, places in zip(parts, chosen_of, strict=True)])
    row_keys = np.concatenate([part.row_keys[places] for part, places in zip(parts, chosen_of, strict=True)])
    order = np.lexsort((rows["position"], -row_keys))
    mixture = _Choice(parts[0].keys, rows[order], row_keys[order], budgets)
    turns = {name: len(places) for name, places in zip(metrics, chosen_of, strict=True)}
    report = _report(mixture) | {"mean_z": None, "turns": turns, "config": config.model_dump(mode="json")}
    return Manifest(_manifest_table(rated, mixture.keys, mixture.rows, mixture.row_keys), report)


def _in_turns(
    parts: list[NDArray[Any]],
    domains: list[str],
    budgets: list[int],
    shares: NDArray[np.float64],
    config: SelectionConfig,
) -> list[NDArray[np.int64]]:
    """Which rows of each part are taken, in turns within each domain, no more of a label than the cap allows."""
    most = next(iter(config.cap_duplicates.values()), 0)
    orders = [np.argsort(part["domain"], kind="stable") for part in parts]
    firsts = [
        np.searchsorted(part["domain"][order], np.arange(len(budgets) + 1))
        for part, order in zip(parts, orders, strict=True)
    ]
    rows, lengths = [part["position"].tolist() for part in parts], [part["length"].tolist() for part in parts]
    labels = [part["cap"].tolist() for part in parts] if most else []
    taken, of_label, kept = set[int](), Counter[int](), list[tuple[int, int]]()

    def free(which: int, place: int) -> bool:
        if rows[which][place] in taken:
            return False
        return not most or labels[which][place] == UNLABELED or of_label[labels[which][place]] < most

    for domain, budget in enumerate(budgets):
        queues = [
            iter(order[first[domain] : first[domain + 1]].tolist()) for order, first in zip(orders, firsts, strict=True)
        ]
        spent, turn, idle = 0, 0, 0
        while spent < budget and idle < len(queues):
            which = turn % len(queues)
            turn += 1
            place = next((place for place in queues[which] if free(which, place)), None)
            idle = idle + 1 if place is None else 0
            if place is not None:
                taken.add(rows[which][place])
                if most:
                    of_label[labels[which][place]] += 1
                kept.append((which, place))
                spent += lengths[which][place]
        if most and spent < budget:
            named = f"The domain '{domains[domain]}'" if config.domain is not None else "The corpus"
            raise BudgetExceedsCorpus(
                f"{named} is to give {counted(budget, 'tokens')}, and has {spent:,} with at most"
                f" {counted(most, 'rows')} of each label in '{next(iter(config.cap_duplicates))}'.",
                "Ask for fewer, or allow more of each.",
            )
    chosen = np.array(kept, np.int64).reshape(-1, 2)
    every = np.zeros(len(chosen), parts[0].dtype)
    for which, part in enumerate(parts):
        every[chosen[:, 0] == which] = part[chosen[chosen[:, 0] == which, 1]]
    chosen = chosen[within_the_whole(every, np.ones(len(every), bool), shares, config.tokens)]
    return [chosen[chosen[:, 0] == which, 1] for which in range(len(parts))]


def with_ids(config: SelectionConfig, rated: RatedTable) -> SelectionConfig:
    """The settings with the column `id` for ids where there is one, and neither another nor `row_ids` is said."""
    wanted = config.id is None and not config.row_ids and "id" in rated.columns
    return config.model_copy(update={"id": "id"}) if wanted else config


class Keys:
    """The keys of all rows under some settings.

    Attributes:
        moments: of the combined rating.
    """

    def __init__(self, found: Scan, config: SelectionConfig) -> None:
        self.found, self.config = found, config
        self._columns = [
            (f"r{number}", found.moments[name], weight) for number, (name, weight) in enumerate(config.metrics.items())
        ]
        self.moments = (
            exact_moments(lambda: (self._combined(rows) for rows in found.rows())) if self._columns else Moments()
        )

    def _combined(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if len(self._columns) == 1:
            column, _, weight = self._columns[0]
            return np.ascontiguousarray(rows[column]) * weight
        total = np.zeros(len(rows))
        for column, moments, weight in self._columns:
            total += weight * (standardize(rows[column], moments) if moments.std else rows[column] - moments.mean)
        return total

    def z(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Normalized ratings as they are compared: high is good, whatever the mode."""
        z = self._combined(rows) if self._columns else np.zeros(len(rows))
        if self._columns and self.config.normalize and self.moments.std:
            z = standardize(z, self.moments)
        if self.config.uncertainty:
            z = z - self.config.penalty * rows["sd"]
        return -z if self.config.invert else z

    def of(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Keys in float64; the largest are chosen."""
        config = self.config
        if config.mode == "uniform" or (config.mode == "sample" and math.isinf(config.tau)):
            return gumbels(rows["id64"], config.seed)
        if not config.noise:
            return -self.z(rows) if config.mode == "bottom_k" else self.z(rows)
        with np.errstate(over="ignore"):
            keys = self.z(rows) / config.tau + gumbels(rows["id64"], config.seed)
        if not np.isfinite(keys).all():
            raise BadTemperature(
                f"Ratings divided by the temperature {config.tau:g} exceed what numbers hold.", "Normalize them."
            )
        return keys

    def all(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
        """Rows and their keys."""
        for rows in self.found.rows():
            yield rows, self.of(rows)


@dataclass(frozen=True)
class _Choice:
    """Rows by falling key, with their keys, and the budgets of the domains."""

    keys: Keys
    rows: NDArray[Any]
    row_keys: NDArray[np.float64]
    budgets: list[int]


def _choose(
    table: RatedTable, config: SelectionConfig, measure: Measure | None, text: str, every: bool = False
) -> _Choice:
    """The rows that the settings choose.

    Arguments:
        every: all rows in the order of their keys, whatever the budget and the cap.
    """
    config = with_ids(config, table)
    with tempfile.TemporaryDirectory(prefix="lmlab-select-") as folder:
        found = scan(table, config, Path(folder), measure, text)
        keys = Keys(found, config)
        allowed = _capped(table, found, keys) if config.cap_duplicates and not every else None
        tokens_D = found.domain_tokens if allowed is None else _tokens_of(found, allowed)
        if every:
            return _Choice(keys, *_reached(table, keys, tokens_D, allowed), tokens_D)
        for up in (False, True):
            budgets = domain_budgets(found.domains, tokens_D, config, up)
            rows, row_keys = _reached(table, keys, budgets, allowed)
            kept = within_the_whole(
                rows, np.ones(len(rows), bool), shares_of(found.domains, tokens_D, config), config.tokens
            )
            rows, row_keys = rows[kept], row_keys[kept]
            if config.domains != "proportional" or not falls_short(rows, config.tokens):
                break
        return _Choice(keys, rows, row_keys, budgets)


def _reached(
    table: RatedTable, keys: Keys, budgets: list[int], allowed: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The rows that are reached before the budgets of their domains are spent, by falling key, and their keys."""
    found = keys.found
    rows, row_keys, certain = find_thresholds(keys, np.array(budgets, np.int64), len(found.domains), allowed)
    if not len(rows):
        rows = np.zeros(0, found.kind)
    order = sorted_by_key(table, found, keys.config.id, rows, row_keys)
    rows, row_keys, certain = rows[order], row_keys[order], certain[order]
    kept = until_spent(rows, budgets)
    assert kept[certain].all(), "rows above a threshold are chosen"
    return rows[kept], row_keys[kept]


def _capped(table: RatedTable, found: Scan, keys: Keys) -> NDArray[np.bool_]:
    """Which rows are among the first so many, by key and then by id, of their label."""
    most = next(iter(keys.config.cap_duplicates.values()))
    kind = np.dtype([("cap", "<u8"), ("key", "<f8"), ("id64", "<u8"), ("position", "<i8")])
    rows = np.empty(found.num_rows, kind)
    start = 0
    for part, row_keys in keys.all():
        piece = rows[start : start + len(part)]
        piece["key"] = row_keys
        for name in ("cap", "id64", "position"):
            piece[name] = part[name]
        start += len(part)
    allowed = rows["cap"] == UNLABELED
    labeled = np.flatnonzero(~allowed)
    _, group, size = np.unique(rows["cap"][labeled], return_inverse=True, return_counts=True)
    allowed[labeled[size[group] <= most]] = True
    crowded = labeled[size[group] > most]
    some, group = rows[crowded], group[size[group] > most]
    order = sorted_by_key(table, found, keys.config.id, some, some["key"], group)
    starts = np.r_[True, np.diff(group[order]) != 0] if len(order) else np.zeros(0, bool)
    place = np.arange(len(order))
    allowed[crowded[order]] = place - np.maximum.accumulate(np.where(starts, place, 0)) < most
    return allowed


def _tokens_of(found: Scan, allowed: NDArray[np.bool_]) -> list[int]:
    tokens, start = np.zeros(len(found.domains), np.int64), 0
    for rows in found.rows():
        kept = allowed[start : start + len(rows)]
        np.add.at(tokens, rows["domain"][kept], rows["length"][kept])
        start += len(rows)
    return tokens.tolist()


def _manifest_table(table: RatedTable, keys: Keys, rows: NDArray[Any], row_keys: NDArray[np.float64]) -> pa.Table:
    found = keys.found
    ids = ids_of(table, found, keys.config.id, rows)
    shard = np.searchsorted(np.array(found.firsts), rows["position"], side="right") - 1
    row = rows["position"] - np.array(found.firsts, np.int64)[shard] if len(rows) else rows["position"]
    columns = [
        ids,
        pa.DictionaryArray.from_arrays(pa.array(shard.astype(np.int32)), pa.array(found.shards)),
        pa.array(row),
        pa.array(row_keys),
        pa.DictionaryArray.from_arrays(pa.array(rows["domain"]), pa.array(found.domains or [""])),
        pa.array(rows["length"]),
    ]
    return pa.Table.from_arrays(columns, names=_COLUMNS)


def _report(choice: _Choice) -> dict[str, Any]:
    rows, found, config, budgets = choice.rows, choice.keys.found, choice.keys.config, choice.budgets
    tokens, counts = np.zeros(len(found.domains), np.int64), np.bincount(rows["domain"], minlength=len(found.domains))
    np.add.at(tokens, rows["domain"], rows["length"])
    z = choice.keys.z(rows)
    with np.errstate(over="ignore"):
        mean_z = float(z.mean()) if len(z) else math.nan
    domains = {
        name: {
            "rows": int(counts[d]),
            "tokens": int(tokens[d]),
            "budget": budgets[d],
            "of_rows": found.domain_rows[d],
            "of_tokens": found.domain_tokens[d],
        }
        for d, name in enumerate(found.domains)
    }
    return {
        "rows": len(rows),
        "tokens": int(tokens.sum()),
        "budget": config.tokens,
        "of_rows": found.num_rows,
        "of_tokens": found.num_tokens,
        "noise": config.describe_noise(),
        "mean_z": mean_z if math.isfinite(mean_z) else None,
        "moments": {
            name: {"mean": moments.mean, "std": moments.std if math.isfinite(moments.std) else None}
            for name, moments in found.moments.items()
        },
        "dropped": found.dropped,
        "domains": domains,
        "config": config.model_dump(mode="json"),
    }
