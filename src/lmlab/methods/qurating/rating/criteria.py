"""The method's own criteria, and the words in which a judge is asked about them: a file of data."""

from __future__ import annotations

from pathlib import Path

from lmlab.judging import Criterion, Wording, load_wording, make_criterion

DEFAULT_CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
_BUILT_IN = Path(__file__).parent / "prompts" / "v1.yaml"


def criterion(name: str, clause: str | None = None, wording: Wording | None = None) -> Criterion:
    """A built-in criterion by its name, or one of your own with its clause; in the built-in wording by default.

    Raises:
        UserError: a name of your own without a clause, or a name that cannot be one of columns.
    """
    return make_criterion(name, clause, wording or load_wording(_BUILT_IN))
