"""Packing: documents laid end to end and cut to rows of equal length, with their boundaries kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmlab.data.shards import TokenizedCorpus
from lmlab.errors import UserError

IGNORE = -100

Row = dict[str, NDArray[np.int64]]


class PackedRows:
    """Rows of `seq_len` tokens over a tokenised corpus, by number: `rows[i]`.

    A row is a dictionary of int64 arrays [seq_len]: `input_ids`, `labels` (the next token; -100 where the next token belongs to another document),
    `document_ids` (counted within the row) and `domain_ids`. The last tokens of a shard that do not fill a row are left out.

    Raises:
        UserError: the corpus is shorter than one row.
    """

    def __init__(self, corpus: TokenizedCorpus, seq_len: int) -> None:
        self.corpus, self.seq_len = corpus, seq_len
        self._first_rows = np.cumsum([0] + [max(0, len(shard.tokens) - 1) // seq_len for shard in corpus.shards])
        if len(self) == 0:
            raise UserError(f"The corpus has {corpus.num_tokens} tokens, less than one row of seq_len {seq_len}.", "Lower seq_len or add text.")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __getitem__(self, index: int) -> Row:
        shard_number = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        shard = self.corpus.shards[shard_number]
        start = (index - int(self._first_rows[shard_number])) * self.seq_len
        tokens = np.asarray(shard.tokens[start : start + self.seq_len + 1], np.int64)
        documents = np.searchsorted(shard.ends, np.arange(start, start + self.seq_len + 1), side="right")
        labels = np.where(documents[1:] == documents[:-1], tokens[1:], IGNORE)
        documents = documents[:-1]
        return {
            "input_ids": tokens[:-1],
            "labels": labels,
            "document_ids": documents - documents[0],
            "domain_ids": shard.domains[documents],
        }
