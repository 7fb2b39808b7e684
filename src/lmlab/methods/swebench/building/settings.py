"""Settings of the builder, apart from its code so that help is instant."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from lmlab.config import Config

Kind = Literal["one-off", "conflicting"]


class CollectConfig(Config):
    """Which changes are candidates.

    Attributes:
        split: how tests are told from source: by words of paths, or as in the original collection (reference).
        max_source_files: Python files outside of tests that a change edits.
        max_source_lines: lines of those that it adds or removes.
        since: only changes from this date on, such as 2024-01-01.
        limit: at most so many candidates, the newest.
    """

    split: Literal["words", "reference"] = "words"
    max_source_files: PositiveInt | None = 3
    max_source_lines: PositiveInt | None = 80
    since: str | None = None
    limit: PositiveInt | None = None


class ValidateConfig(Config):
    """How sure it must be.

    Attributes:
        repeats: runs after the change.
        before_runs: runs before it.
        hash_seeds: one more run before and after for each of these values of PYTHONHASHSEED.
        reject_after_errors: reject a candidate if any test fails after the change.
        reject_name_errors: reject a candidate whose tests fail before for names that the issue does not give; else it
            is marked `requires_unstated_names`.
        reject_leaks: reject a candidate whose solution stands somewhere in the workspace or environment.
    """

    repeats: PositiveInt = 3
    before_runs: PositiveInt = 2
    hash_seeds: tuple[int, ...] = (1,)
    reject_after_errors: bool = False
    reject_name_errors: bool = False
    reject_leaks: bool = True
