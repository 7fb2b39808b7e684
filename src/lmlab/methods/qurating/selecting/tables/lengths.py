"""How many tokens rows have: by a column of lengths, of ids, or of texts that are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, Tabular, as_floats
from lmlab.methods.qurating.selecting.token_counts import parse_tokens, share_of

_log = logging.getLogger(__name__)
_LONGEST = 2**40  # tokens of a row: no text has so many, and sums of them stay far within 64 bits
Measure = Callable[[pa.Array], NDArray[np.int64]]


class LengthColumn:
    """Where lengths come from.

    Arguments:
        path: the column of lengths; without it `input_ids` are counted.
        measure: counts the tokens of texts, where there are neither; `text` is their column.

    Attributes:
        columns: that it reads.

    Raises:
        UserError: there is nothing to count.
    """

    def __init__(self, table: RatedTable, path: str, measure: Measure | None, text: str) -> None:
        self._path, self._measure = path, None
        if table.has(path):
            self.columns = [path]
        elif table.has("input_ids"):
            _log.warning("there is no column '%s': 'input_ids' are counted", path)
            self.columns, self._measure = (
                ["input_ids"],
                lambda ids: np.asarray(pc.fill_null(pc.list_value_length(ids), 0)).astype(np.int64),
            )
        elif measure is not None and table.has(text):
            _log.warning("there is no column '%s': texts are tokenized", path)
            self.columns, self._measure = [text], measure
        else:
            raise UserError(
                f"There is neither a column '{path}' nor 'input_ids'.",
                "Name the column of lengths, or give a tokenizer that counts the texts.",
            )

    def of(self, chunk: Chunk) -> NDArray[np.int64]:
        """The tokens of each row; 0 where there is no number.

        Raises:
            UserError: a length is beyond that of any text.
        """
        array = chunk.columns[self.columns[0]]
        if self._measure is not None:
            return self._measure(array)
        values = as_floats(array, self._path)
        values = np.where(np.isfinite(values), values, 0)
        if len(values) and values.max() > _LONGEST:
            raise UserError(
                f"A row has {values.max():,.0f} tokens by the column '{self._path}'.", "Name the column of lengths."
            )
        return values.astype(np.int64)


def budget_of(
    tokens: str | float, table: Tabular, length: str = "length", measure: Measure | None = None, text: str = "text"
) -> int:
    """A number of tokens, or a share of a table's.

    Arguments:
        length, measure, text: as of `LengthColumn`.

    Raises:
        UserError: it is neither, or there are no lengths to take a share of.
    """
    share = share_of(tokens)
    if share is None:
        return parse_tokens(tokens)
    rated = RatedTable(table)
    lengths = LengthColumn(rated, length, measure, text)
    return int(share * sum(int(np.maximum(lengths.of(chunk), 0).sum()) for chunk in rated.chunks(lengths.columns)))
