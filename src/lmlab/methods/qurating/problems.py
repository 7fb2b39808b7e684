"""What can be wrong with judgments, ratings and budgets, each with a name that programs can catch."""

from __future__ import annotations

from lmlab.errors import UserError


class NonFiniteRating(UserError):
    """A rating is null, not a number, or infinite."""


class ZeroVariance(UserError):
    """All ratings of a column are equal, so that they cannot be normalised."""


class BudgetExceedsCorpus(UserError):
    """More tokens are asked for than there are."""


class EmptyDocument(UserError):
    """A row has no tokens."""


class DuplicateIds(UserError):
    """Two rows have one id, and would share their noise."""


class NoConfidentPairs(UserError):
    """No judgment of a criterion is confident enough to be learned from."""


class CriteriaMismatch(UserError):
    """A rater and a request name other criteria."""


class TokenizerMismatch(UserError):
    """Token ids were made by another tokenizer than the rater's."""


class BadTemperature(UserError, ValueError):
    """A temperature is negative or not a number."""
