"""How many tokens each domain gets."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.qurating.selecting.problems import BudgetExceedsCorpus
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.words import counted

_AMISS = 0.01  # of the whole budget, by which a choice may be larger or smaller


def domain_budgets(
    domains: Sequence[str], tokens: Sequence[int], config: SelectionConfig, up: bool = False
) -> list[int]:
    """The budget of each domain: floor(B T_d / T), or the domain's share of the weights that are given.

    Arguments:
        tokens: that each domain has.
        up: round up, where the parts of tokens that are cut off would add up.

    Raises:
        BudgetExceedsCorpus: the corpus or a domain has fewer tokens.
        UserError: a weight is given to an unknown domain.
    """
    total, asked = sum(tokens), config.tokens
    if asked > total:
        capped = "".join(
            f" with at most {counted(most, 'rows')} of each label in '{column}'"
            for column, most in config.cap_duplicates.items()
        )
        raise BudgetExceedsCorpus(
            f"{counted(asked, 'tokens are')} asked for, and the corpus has {total:,}{capped}.",
            "Ask for fewer, or add text.",
        )
    if config.domains == "proportional":
        return [(-(-asked * each // total) if up else asked * each // total) if total else 0 for each in tokens]
    weights = config.domains
    for name in weights:
        if name not in domains:
            raise UserError(
                f"There is no domain '{name}' in the column '{config.domain}'. {did_you_mean(name, domains)}"
            )
    whole = sum((Fraction(weight) for weight in weights.values()), Fraction(0))
    budgets = [int(asked * Fraction(weights.get(name, 0)) / whole) for name in domains]
    for name, budget, each in zip(domains, budgets, tokens, strict=True):
        if budget > each:
            raise BudgetExceedsCorpus(
                f"The domain '{name}' is to give {counted(budget, 'tokens')}, and has {each:,}.",
                "Lower its weight, or ask for fewer.",
            )
    return budgets


def shares_of(domains: Sequence[str], tokens: Sequence[int], config: SelectionConfig) -> NDArray[np.float64]:
    """What the budgets of domains are proportional to, [D]: their tokens, or the weights that are given."""
    if config.domains == "proportional":
        return np.asarray(tokens, np.float64)
    return np.array([float(config.domains.get(name, 0)) for name in domains])


def until_spent(rows: NDArray[Any], budgets: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows, in falling order of keys, are reached before the budget of their domain is spent."""
    before = _spent_before(rows)
    return before < np.asarray(budgets or [0], np.int64)[rows["domain"]]


def within_the_whole(
    rows: NDArray[Any], kept: NDArray[np.bool_], shares: NDArray[np.float64], budget: int
) -> NDArray[np.bool_]:
    """Which of the kept rows stay, so that many domains do not overshoot the budget together.

    The row with which a domain's budget is reached is chosen too. Of few domains that is as good as nothing; of
    thousands it adds up. Where it comes to more than 1 % of the whole (and more than one row), rows are taken in the
    order in which a growing budget reaches their middle, until the whole is spent: a domain is then within a row of its
    budget, and larger budgets still hold smaller ones.

    Arguments:
        rows: in falling order of keys.
    """
    lengths = np.where(kept, rows["length"], 0)
    total, longest = int(lengths.sum()), int(lengths.max(initial=0))
    if total - budget <= _least_amiss(longest, budget):
        return kept
    chosen = np.flatnonzero(kept)
    share = shares[rows["domain"][chosen]]
    reached = (_spent_before(rows)[chosen] + rows["length"][chosen] / 2) / share
    order = chosen[np.argsort(reached, kind="stable")]
    spent = np.cumsum(rows["length"][order]) - rows["length"][order]
    stays = np.zeros(len(rows), bool)
    stays[order[spent < budget]] = True
    return stays


def falls_short(rows: NDArray[Any], budget: int) -> bool:
    """Whether chosen rows are so far below the whole budget that it is due to the rounding of many small budgets."""
    return budget - int(rows["length"].sum()) > _least_amiss(int(rows["length"].max(initial=0)), budget)


def _least_amiss(longest: int, budget: int) -> float:
    """Tokens by which a choice may miss its budget: a row's, or 1 %."""
    return max(longest, _AMISS * budget)


def _spent_before(rows: NDArray[Any]) -> NDArray[np.int64]:
    """The tokens of the rows of the same domain that come before each row."""
    order = np.argsort(rows["domain"], kind="stable")
    lengths, domain = rows["length"][order], rows["domain"][order]
    running = np.cumsum(lengths) - lengths
    starts = np.r_[True, np.diff(domain) != 0] if len(domain) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(domain)), 0))
    before = np.empty(len(rows), np.int64)
    before[order] = running - running[first] if len(domain) else running
    return before
