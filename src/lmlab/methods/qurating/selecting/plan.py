"""What a selection will be like, computed exactly from the ratings before anything is drawn or written.

Rows are counted in fine bins of normalized rating, for each domain (and each other label that is asked for), so that a
plan of any corpus needs little memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.methods.qurating.selecting.budgets import domain_budgets
from lmlab.methods.qurating.selecting.drawing.inclusion import inclusion_probability
from lmlab.methods.qurating.selecting.drawing.temperature import is_zero
from lmlab.methods.qurating.selecting.moments import Moments
from lmlab.methods.qurating.selecting.selection import Keys, with_ids
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.methods.qurating.selecting.tables.lengths import Measure
from lmlab.methods.qurating.selecting.tables.scan import Scan, scan
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular

_BINS = 4096  # of ratings, each counted as its mean: fewer blur a threshold, more take memory
_CELLS = 2**22  # of all domains
_DECILES = 10  # of `decile_shares`
TAUS = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)  # from the best alone to all alike

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelectionPlan:
    """What one temperature will choose from ratings with these moments, if they are normal and lengths do not depend on
    them: for a first look.

    Attributes:
        moments: of the ratings.
        budget: share of the corpus that is chosen, between 0 and 1.
    """

    moments: Moments
    tau: float
    budget: float

    @property
    def mean_z(self) -> float:
        """Expected mean of the normalized ratings of what is chosen."""
        z, p = self._law()
        return float((z * p).sum() / p.sum())

    @property
    def mean_rating(self) -> float:
        """The same in the unit of the ratings."""
        return self.moments.mean + self.moments.std * self.mean_z

    @property
    def decile_shares(self) -> list[float]:
        """Expected share of each decile of ratings in what is chosen, lowest first."""
        _, p = self._law()
        return (p.reshape(_DECILES, -1).sum(1) / p.sum()).tolist()

    def _law(self) -> tuple[Floats, Floats]:
        from scipy.special import ndtri

        z = ndtri((np.arange(10_000) + 0.5) / 10_000)  # quantiles: 1,000 of each decile
        return z, inclusion_probability(z, np.ones(len(z)), self.budget * len(z), self.tau)


@dataclass(frozen=True)
class Outlook:
    """What one temperature will choose.

    Attributes:
        tau: 0 for top-k, infinity for uniform.
        tokens, rows, mean_z: expected, of what is chosen.
        effective_rows: exp of the entropy of softmax(z / tau), the law of the first draw: among how many rows that is
            spread, which says how strongly the temperature prefers, and not how many rows are chosen.
        deciles: expected share in the chosen tokens of each tenth of the corpus's tokens by rating, lowest first.
        domains: of each domain.
        overlap: share of the chosen tokens that another temperature chooses too, with the same seed: keyed noise makes
            both races of one exponential variable a row, so that the chance of both is the smaller of the two.
    """

    tau: float
    tokens: float
    rows: float
    mean_z: float
    effective_rows: float
    deciles: list[float]
    domains: dict[str, float]
    overlap: dict[str, float]

    @property
    def name(self) -> str:
        """Of the temperature."""
        return tau_name(self.tau)


@dataclass(frozen=True)
class Plan:
    """What a selection will be like, at each of some temperatures.

    Attributes:
        repeats: how often all rows have to be repeated to fill the budget; 1 where the corpus suffices.
    """

    tokens: int
    corpus_tokens: int
    corpus_rows: int
    repeats: float
    corpus_domains: dict[str, float]
    outlooks: list[Outlook]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        rows = [{**vars(each), "tau": each.name} for each in self.outlooks]
        return {**vars(self), "outlooks": rows}


def tau_name(tau: float) -> str:
    """A temperature for people."""
    return "top-k" if tau == 0 else "uniform" if math.isinf(tau) else f"tau={tau:g}"


def plan_selection(
    table: Tabular,
    config: SelectionConfig,
    taus: Sequence[float] = TAUS,
    *,
    measure: Measure | None = None,
    text: str = "text",
) -> Plan:
    """What a selection will be like at several temperatures; nothing is drawn, and texts are not read.

    Raises:
        NonFiniteRating, EmptyDocument, DuplicateIds, ZeroVariance, BudgetExceedsCorpus: as `select`; more tokens than
            the corpus has are not an
        error.
    """
    rated = RatedTable(table)
    config = with_ids(config, rated)
    with tempfile.TemporaryDirectory(prefix="lmlab-plan-") as folder:
        found = scan(rated, config, Path(folder), measure, text)
        bins = _Bins.of(Keys(found, config))
    asked = min(config.tokens, found.num_tokens)
    budgets = domain_budgets(found.domains, found.domain_tokens, config.model_copy(update={"tokens": asked}))
    chances = {tau: bins.chances(budgets, tau) for tau in taus}
    corpus = {
        name: tokens / max(1, found.num_tokens) for name, tokens in zip(found.domains, found.domain_tokens, strict=True)
    }
    outlooks = [bins.outlook(tau, chances, found) for tau in taus]
    repeats = max(1.0, config.tokens / max(1, found.num_tokens))
    return Plan(config.tokens, found.num_tokens, found.num_rows, repeats, corpus, outlooks)


@dataclass(frozen=True)
class _Bins:
    """Rows and tokens by domain and bin of z, [domains, bins]; `z` is the mean of each cell."""

    z: Floats
    rows: Floats
    tokens: Floats

    @classmethod
    def of(cls, keys: Keys) -> _Bins:
        low, high = math.inf, -math.inf
        for rows in keys.found.rows():
            z = keys.z(rows)
            if len(z):
                low, high = min(low, float(z.min())), max(high, float(z.max()))
        domains = len(keys.found.domains)
        bins = max(32, min(_BINS, _CELLS // max(1, domains)))
        size = domains * bins
        counts, tokens, sums = np.zeros(size), np.zeros(size), np.zeros(size)
        for rows in keys.found.rows():
            z = keys.z(rows)
            bin = np.clip((z - low) / max(high - low, 1e-300) * bins, 0, bins - 1).astype(np.int64)
            index = rows["domain"].astype(np.int64) * bins + bin
            counts += np.bincount(index, minlength=size)
            tokens += np.bincount(index, rows["length"].astype(np.float64), size)
            sums += np.bincount(index, z, size)
        shape = (domains, bins)
        mean = np.divide(sums, counts, out=np.zeros(size), where=counts > 0)
        return cls(mean.reshape(shape), counts.reshape(shape), tokens.reshape(shape))

    def chances(self, budgets: Sequence[int], tau: float) -> Floats:
        """P(chosen) of the rows of each cell; of a cell that top-k cuts in two, the share above the cut."""
        found = np.zeros(self.z.shape)
        for domain, budget in enumerate(budgets):
            some = self.tokens[domain] > 0
            if is_zero(tau):
                tokens = self.tokens[domain]
                above = np.cumsum(tokens[::-1])[::-1] - tokens
                found[domain] = np.clip(
                    np.divide(budget - above, tokens, out=np.zeros(len(tokens)), where=tokens > 0), 0, 1
                )
            else:
                found[domain, some] = inclusion_probability(
                    self.z[domain, some], self.tokens[domain, some], budget, tau
                )
        return found

    def outlook(self, tau: float, chances: dict[float, Floats], found: Scan) -> Outlook:
        chance = chances[tau]
        chosen = self.tokens * chance
        total, rows = float(chosen.sum()), float((self.rows * chance).sum())
        overlap = {
            tau_name(other): float((self.tokens * np.minimum(chance, their)).sum() / max(total, 1e-300))
            for other, their in chances.items()
        }
        return Outlook(
            tau,
            total,
            rows,
            float((self.rows * chance * self.z).sum() / max(rows, 1e-300)),
            self._effective(tau, rows),
            self._deciles(chosen),
            {name: float(chosen[number].sum() / max(total, 1e-300)) for number, name in enumerate(found.domains)},
            overlap,
        )

    def _effective(self, tau: float, rows: float) -> float:
        if is_zero(tau):
            return rows
        logit = np.zeros(self.z.shape) if math.isinf(tau) else self.z / tau
        weight = self.rows * np.exp(logit - logit.max(where=self.rows > 0, initial=-1e300))
        weight = np.where(self.rows > 0, weight, 0)
        share = weight / max(weight.sum(), 1e-300)
        each = np.divide(share, self.rows, out=np.ones(share.shape), where=(self.rows > 0) & (share > 0))
        return float(np.exp(-(share * np.log(np.where(each > 0, each, 1))).sum()))

    def _deciles(self, chosen: Floats) -> list[float]:
        order = np.argsort(self.z, axis=None, kind="stable")
        tokens, taken = self.tokens.ravel()[order], chosen.ravel()[order]
        ends = np.cumsum(tokens)
        edges = np.linspace(0, ends[-1] if len(ends) else 0, _DECILES + 1)
        sums = np.interp(edges, np.r_[0, ends], np.r_[0, np.cumsum(taken)])
        return (np.diff(sums) / max(float(taken.sum()), 1e-300)).tolist()
