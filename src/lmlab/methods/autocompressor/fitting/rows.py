"""Rows for kinds that learn: a context and what follows it.

Shapes: T tokens of a context, C tokens that follow.
"""

from __future__ import annotations

from typing import Any

from lmlab.data import Rows


class ContinuationRows:
    """Rows of text, each cut in two: its first tokens are compressed, and what follows is learned behind the memory.

    Arguments:
        rows: of T + C tokens, without padding in their first T.
        context: T.
    """

    def __init__(self, rows: Rows, context: int) -> None:
        self._rows, self._context = rows, context

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        ids, labels = row["input_ids"], row["labels"]
        return {
            "context": ids[: self._context],
            "input_ids": ids[self._context :],
            "labels": labels[self._context :],
        }
