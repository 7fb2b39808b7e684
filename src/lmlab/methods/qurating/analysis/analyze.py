"""What a selection did: distributions, correlations, topics, groups, and texts to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, reads
from lmlab.files import read_mapping, write_json, write_text
from lmlab.methods.qurating.analysis.bias import bias_report
from lmlab.methods.qurating.analysis.extremes import Extreme, extremes, markdown
from lmlab.methods.qurating.analysis.thresholds import what_thresholds_keep
from lmlab.methods.qurating.config import AnalysisConfig
from lmlab.methods.qurating.selecting.clusters import cluster_texts
from lmlab.methods.qurating.selecting.selection import Manifest
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.methods.qurating.selecting.tables.lengths import LengthColumn, Measure
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, Tabular, as_floats

_AVERAGE = "_average"
NOTES = ("analysis.json", "extremes.md")  # files of an analysis
_LABELS = 24  # of a column that a page shows
_BINS = 41  # edges of 40 bars, between the outer thousandths
_TEXT_CHARACTERS = 4000  # of each text in memory: what a page can show


@dataclass
class Analysis:
    """Figures for the report; everything is JSON.

    Attributes:
        criteria: columns of ratings, without `_average`.
        histograms: by criterion the edges, and the counts by domain and of the chosen rows.
        correlations: of criteria with each other, and with the logarithm of length.
        segment_deviation: mean standard deviation over segments of a document, in units of the corpus's.
        topics: by topic its terms, mean z, share of the corpus's and of the chosen rows.
        bias: rows of `GroupBias` by column.
        extremes: texts to read.
        thresholds: what thresholds on the rating that was selected by keep and drop (`what_thresholds_keep`).
    """

    rows: int = 0
    of_rows: int = 0
    criteria: list[str] = field(default_factory=list)
    histograms: dict[str, Any] = field(default_factory=dict)
    correlations: list[list[float | None]] = field(default_factory=list)
    segment_deviation: dict[str, float | None] = field(default_factory=dict)
    topics: list[dict[str, Any]] = field(default_factory=list)
    bias: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    extremes: list[dict[str, Any]] = field(default_factory=list)
    thresholds: list[dict[str, Any]] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write `analysis.json` and `extremes.md`."""
        write_json(directory / NOTES[0], vars(self))
        write_text(directory / NOTES[1], markdown([Extreme(**each) for each in self.extremes]))

    @classmethod
    @reads("an analysis of a selection")
    def read(cls, directory: Path) -> Analysis | None:
        """What `write` wrote; None where there is nothing."""
        path = directory / NOTES[0]
        return cls(**read_mapping(path)) if path.exists() else None


def analyze(
    table: Tabular,
    manifest: Manifest | None,
    selection: SelectionConfig | None,
    settings: AnalysisConfig,
    text: str = "text",
    measure: Measure | None = None,
) -> Analysis:
    """Look into an annotated corpus and a choice from it; of large corpora, at `max_rows` rows spread evenly.

    Arguments:
        manifest, selection: the choice and its settings; None for the corpus alone.
        text: the column of texts, for topics and texts to read.
        measure: counts the tokens of texts where there are no lengths.
    """
    rated = RatedTable(table)
    known = rated.columns
    columns = [name for name in known if name.endswith(_AVERAGE)]
    columns += [name for name in (selection.metrics if selection is not None else {}) if name not in columns]
    criteria = [name.removesuffix(_AVERAGE) for name in columns]
    lengths = LengthColumn(rated, selection.length if selection is not None else "length", measure, text)
    domain = selection.domain if selection is not None else ("domain" if "domain" in known else None)
    id = (selection.id if selection is not None else None) or ("id" if "id" in known else None)
    names = [name for name in (domain, id, *settings.groups) if name]
    names += [f"{name}_chunks" for name in criteria if f"{name}_chunks" in known] + ([text] if text in known else [])
    rows = _sample(rated, columns, list(dict.fromkeys(names)), lengths, settings.max_rows)
    ratings = {name: rows[f"#{column}"] for name, column in zip(criteria, columns, strict=True)}
    z = {name: _standard(values) for name, values in ratings.items()}
    domains = largest([str(value) for value in rows[domain]]) if domain else [""] * len(rows["#place"])
    chosen = _chosen(rows, rated, manifest, lengths.columns)
    found = Analysis(len(rows["#place"]), rows["#total"], criteria)
    found.histograms = {name: _histogram(ratings[name], domains, chosen) for name in criteria}
    found.correlations = _correlations([*ratings.values(), np.log(np.maximum(1, rows["#length"]))])
    found.segment_deviation = {name: _deviation(rows.get(f"{name}_chunks"), ratings[name]) for name in criteria}
    main = _main(z, selection, len(rows["#place"]))
    for column in settings.groups:
        finite = np.isfinite(main)
        groups = largest(
            [("" if value is None else str(value)) for value, keep in zip(rows[column], finite, strict=True) if keep]
        )
        found.bias[column] = [each.row() for each in bias_report(main[finite], chosen[finite], groups)]
    texts = [str(value or "")[:_TEXT_CHARACTERS] for value in rows[text]] if text in known else []
    ids = rows[id] if id else rows["#place"].tolist()
    found.thresholds = what_thresholds_keep(main, rows["#length"], domains, ids, texts, min(3, settings.examples))
    if text in known:
        if settings.clusters:
            found.topics = _topics(texts, z, chosen, settings.clusters)
        found.extremes = [
            each for name in criteria for each in _extremes(name, ratings[name], ids, domains, texts, settings.examples)
        ]
    return found


def largest(labels: Sequence[Any], most: int = _LABELS) -> list[Any]:
    """The labels, all but the largest put together: a page cannot show thousands, nor does a reader compare them."""
    counts = Counter(labels)
    if len(counts) <= most:
        return list(labels)
    kept = {label for label, _ in counts.most_common(most - 1)}
    rest = f"{len(counts) - len(kept):,} others"
    return [label if label in kept else rest for label in labels]


def _sample(
    rated: RatedTable, numbers: Sequence[str], names: Sequence[str], lengths: LengthColumn, limit: int
) -> dict[str, Any]:
    """Columns of rows that are spread evenly over the corpus: lists by their names, numbers as arrays by `#` and their
    names. `#length` is tokens, `#place` each one's number and `#total` the number of all rows.
    """
    total = sum(chunk.num_rows for chunk in rated.chunks(lengths.columns))
    wanted = np.arange(total) if total <= limit else np.linspace(0, total - 1, limit).astype(np.int64)
    found: dict[str, Any] = {name: [] for name in names}
    arrays: dict[str, list[Any]] = {name: [np.zeros(0)] for name in [f"#{name}" for name in numbers] + ["#length"]}
    start = 0
    for chunk in rated.chunks(list(dict.fromkeys([*numbers, *names, *lengths.columns]))):
        first, last = np.searchsorted(wanted, [start, start + chunk.num_rows])
        places = wanted[first:last] - start
        some = Chunk(chunk.shard, 0, {name: column.take(places) for name, column in chunk.columns.items()})
        arrays["#length"].append(lengths.of(some).astype(np.float64))
        for name in numbers:
            arrays[f"#{name}"].append(as_floats(some.columns[name], name))
        for name in names:
            found[name] += some.columns[name].to_pylist()
        start += chunk.num_rows
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    return found | joined | {"#place": wanted, "#total": total}


def _chosen(
    rows: dict[str, Any], rated: RatedTable, manifest: Manifest | None, columns: Sequence[str]
) -> NDArray[np.bool_]:
    if manifest is None:
        return np.zeros(len(rows["#place"]), bool)
    firsts: dict[str, int] = {}
    start = 0
    for chunk in rated.chunks(columns):
        firsts.setdefault(rated.shards[chunk.shard], start)
        start += chunk.num_rows
    shards = manifest.table.column("shard").to_pylist()
    if missing := next((shard for shard in shards if shard not in firsts), None):
        raise UserError(f"The choice has rows of '{missing}', which the corpus has not.", "Give its own corpus (--in).")
    places = np.array([firsts[shard] for shard in shards], np.int64) + np.asarray(manifest.table.column("row"))
    return np.isin(rows["#place"], places)


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = values[np.isfinite(values)]
    spread = finite.std() if len(finite) else 0.0
    return (values - finite.mean()) / spread if spread else np.zeros(len(values))


def _main(z: dict[str, NDArray[np.float64]], selection: SelectionConfig | None, count: int) -> NDArray[np.float64]:
    """The normalized rating that was selected by, of `count` rows; without one the mean of all."""
    weights = {
        name.removesuffix(_AVERAGE): weight
        for name, weight in (selection.metrics if selection is not None else {}).items()
    }
    weights = weights or dict.fromkeys(z, 1.0)
    return _standard(np.sum([weight * z[name] for name, weight in weights.items()], axis=0)) if z else np.zeros(count)


def _histogram(values: NDArray[np.float64], domains: Sequence[str], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    finite = np.isfinite(values)
    if not finite.any():
        return {"edges": [], "domains": {}, "chosen": []}
    low, high = np.quantile(values[finite], [0.001, 0.999])
    edges = np.linspace(low, max(high, low + 1e-9), _BINS)
    labels = np.array(domains)
    by_domain = {
        name: np.histogram(values[finite & (labels == name)], edges)[0].tolist() for name in sorted(set(domains))
    }
    return {
        "edges": edges.tolist(),
        "domains": by_domain,
        "chosen": np.histogram(values[finite & chosen], edges)[0].tolist(),
    }


def _correlations(columns: Sequence[NDArray[np.float64]]) -> list[list[float | None]]:
    kept = np.all([np.isfinite(column) for column in columns], axis=0)
    if kept.sum() < 3:
        return [[None] * len(columns)] * len(columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.atleast_2d(np.corrcoef([column[kept] for column in columns]))
    return [[None if not np.isfinite(value) else round(float(value), 4) for value in row] for row in matrix]


def _deviation(chunks: Any, ratings: NDArray[np.float64]) -> float | None:
    if chunks is None:
        return None
    spread = float(np.nanstd(ratings))
    several = [np.std(each) for each in chunks if each is not None and len(each) > 1]
    return float(np.mean(several) / spread) if several and spread else None


def _topics(
    texts: Sequence[str], z: dict[str, NDArray[np.float64]], chosen: NDArray[np.bool_], count: int
) -> list[dict[str, Any]]:
    clusters = cluster_texts(texts, count)
    found = []
    for number, terms in enumerate(clusters.terms):
        mine = clusters.labels == number
        if not mine.any():
            continue
        ratings = {
            name: float(np.nanmean(values[mine])) if np.isfinite(values[mine]).any() else None
            for name, values in z.items()
        }
        shares = {"share": float(mine.mean()), "chosen": float(mine[chosen].mean()) if chosen.any() else None}
        found.append({"terms": terms, "rows": int(mine.sum()), "z": ratings, **shares})
    return sorted(found, key=lambda topic: -topic["rows"])


def _extremes(
    name: str,
    ratings: NDArray[np.float64],
    ids: Sequence[Any],
    domains: Sequence[str],
    texts: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    return [
        vars(Extreme(name, domain, place, float(ratings[row]), str(ids[row]), texts[row][:600]))
        for domain, place, row in extremes(name, ratings, ids, domains, count)
    ]
