"""What can be wrong with judgments and raters, each with a name that programs can catch."""

from __future__ import annotations

from lmlab.errors import UserError


class NoConfidentPairs(UserError):
    """No judgment of a criterion is confident enough to be learned from."""


class CriteriaMismatch(UserError):
    """A rater and a request name other criteria."""


class TokenizerMismatch(UserError):
    """Token ids were made by another tokenizer than the rater's."""
