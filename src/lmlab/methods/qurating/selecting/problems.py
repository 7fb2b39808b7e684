"""What can be wrong with ratings and budgets, each with a name that programs can catch."""

from __future__ import annotations

from lmlab.errors import UserError


class NonFiniteRating(UserError):
    """A rating is null, not a number, or infinite."""


class ZeroVariance(UserError):
    """All ratings of a column are equal, so that they cannot be normalized."""


class BudgetExceedsCorpus(UserError):
    """More tokens are asked for than there are."""


class EmptyDocument(UserError):
    """A row has no tokens."""


class DuplicateIds(UserError):
    """Two rows have one id, and would share their noise."""


class BadTemperature(UserError, ValueError):
    """A temperature is negative or not a number."""
