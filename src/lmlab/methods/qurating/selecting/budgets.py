"""How many tokens each domain gets."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.qurating.selecting.problems import BudgetExceedsCorpus
from lmlab.methods.qurating.selecting.settings import SelectionConfig


def domain_budgets(domains: Sequence[str], tokens: Sequence[int], config: SelectionConfig) -> list[int]:
    """The budget of each domain: floor(B T_d / T), or the domain's share of the weights that are given.

    Arguments:
        tokens: that each domain has.

    Raises:
        BudgetExceedsCorpus: the corpus or a domain has fewer tokens.
        UserError: a weight is given to an unknown domain.
    """
    total, asked = sum(tokens), config.tokens
    if asked > total:
        raise BudgetExceedsCorpus(
            f"{asked:,} tokens are asked for, and the corpus has {total:,}.", "Ask for fewer, or add text."
        )
    if config.domains == "proportional":
        return [asked * each // total if total else 0 for each in tokens]
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
                f"The domain '{name}' is to give {budget:,} tokens, and has {each:,}.",
                "Lower its weight, or ask for fewer.",
            )
    return budgets
