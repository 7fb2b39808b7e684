"""Packed sequences as rows for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data.packing import IGNORE, Row
from lmlab.data.packs.local import map_shard
from lmlab.data.sources.mds import MDSError, MDSShard, read_mds_index
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError, did_you_mean
from lmlab.files import DamagedError, read_mapping

NOTES = "packs.json"
"""Beside the index: what `write_packs` knows of the whole; sequences that others packed have none."""
_OPEN_SHARDS = 512  # mapped at once; each costs a file


def is_packs(path: Path | str) -> bool:
    """Whether a folder, or one below it, is an MDS data set of token ids."""
    try:
        entries = read_mds_index(str(path))
    except UserError:
        return False
    return bool(entries) and "input_ids" in entries[0][1]["column_names"]


class PackRows:
    """Rows of `seq_len` tokens of packed sequences, by number: `rows[i]`; each is a sequence, or several that belong
    together, such as eight of 64K in a row of 512K.

    Rows are as those of `PackedRows`: no label reaches into the next document, and positions restart there.

    Arguments:
        folder: path or URL of an MDS data set with the columns `input_ids` and, where sequences hold several
            documents, `indices` [documents, 2]; `mask` where not every token is learned.
        seq_len: a multiple of the length of a sequence.
        vocab_size: of the model that learns; ids must be below.
        domains: take only these, where the folder says what it has.

    Attributes:
        domains: names of all domains.
        pack_length: tokens of a sequence.
        shortened, left_out: 0; conversations were cut when they were packed.

    Raises:
        UserError: there are no such sequences, or not enough for a row; `seq_len` does not suit.
    """

    shortened = left_out = 0
    padding_fraction = 0.0

    def __init__(
        self, folder: Path | str, seq_len: int, vocab_size: int | None = None, domains: Sequence[str] | None = None
    ) -> None:
        self.folder, self.seq_len, self.vocab_size = str(folder), seq_len, vocab_size
        self._entries = [each for each in read_mds_index(self.folder) if each[1]["samples"]]
        if not self._entries or "input_ids" not in self._entries[0][1]["column_names"]:
            raise UserError(f"'{folder}' holds no packed sequences (a column input_ids).", "Make them: lmlab data pack")
        self._ends = np.cumsum([entry["samples"] for _, entry in self._entries])
        self._shard = lru_cache(_OPEN_SHARDS)(self._open)
        self.pack_length = int(np.size(self._sample(0)["input_ids"]))
        if not self.pack_length:
            raise DamagedError(self._where(0), "it has no tokens", remedy="Pack the documents again.")
        self.per_row, rest = divmod(seq_len, self.pack_length)
        if rest or not self.per_row:
            raise UserError(
                f"seq_len {seq_len} is no multiple of the {self.pack_length} tokens of a sequence of '{folder}'.",
                f"Set it to {self.pack_length}, or pack the documents again.",
            )
        notes = Path(self.folder, NOTES)
        known = read_mapping(notes).get("domains") if notes.is_file() else None
        self.domains = [str(each) for each in known] if isinstance(known, list) and known else [Path(self.folder).name]
        for domain in domains or ():
            if domain not in self.domains:
                raise UserError(f"'{folder}' has no domain '{domain}'. {did_you_mean(domain, self.domains)}")
        self._chosen = self._of_domains(domains) if domains is not None else None
        count = int(self._ends[-1]) if self._chosen is None else len(self._chosen)
        self._num_rows = count // self.per_row
        if not self._num_rows:
            raise UserError(
                f"'{folder}' has {count} sequences of {self.pack_length} tokens, less than one row of seq_len"
                f" {seq_len}.",
                "Lower seq_len or pack more text.",
            )

    def __len__(self) -> int:
        return self._num_rows

    def stored_tokenizer(self) -> Tokenizer | None:
        """That which made the ids, where it is stored with them."""
        place = Path(self.folder, "tokenizer")
        return Tokenizer.load(place) if place.is_dir() else None

    def __getitem__(self, index: int) -> Row:
        """One row.

        Raises:
            DamagedError: a sequence is not what it should be; the message names shard and sample.
        """
        if not 0 <= index < self._num_rows:
            raise IndexError(index)
        row: Row = {
            "input_ids": np.zeros(self.seq_len, np.int64),
            "labels": np.full(self.seq_len, IGNORE),
            "document_ids": np.full(self.seq_len, -1),
            "domain_ids": np.zeros(self.seq_len, np.int64),
        }
        documents = 0
        for part in range(self.per_row):
            number = index * self.per_row + part
            number = number if self._chosen is None else int(self._chosen[number])
            documents = self._fill(row, part * self.pack_length, number, documents)
        return row

    def _fill(self, row: Row, place: int, number: int, documents: int) -> int:
        sample = self._sample(number)
        borders, mask = self._checked(sample, number)
        tokens = sample["input_ids"].astype(np.int64)
        span = slice(place, place + self.pack_length)
        row["input_ids"][span] = tokens
        domain = sample.get("domain")
        row["domain_ids"][span] = self.domains.index(domain) if domain in self.domains else 0
        for start, stop in borders.tolist():
            row["document_ids"][place + start : place + stop] = documents
            documents += 1
            labels = row["labels"][place + start : place + stop - 1]
            labels[:] = tokens[start + 1 : stop]
            if mask is not None:
                labels[mask[start + 1 : stop] == 0] = IGNORE
        return documents

    def _checked(self, sample: dict[str, Any], number: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The borders of documents and the mask of a sample that is what it should be."""
        tokens, mask, length = np.asarray(sample["input_ids"]), sample.get("mask"), self.pack_length
        borders = np.asarray(sample.get("indices", [[0, length]]), np.int64)
        fault = None
        if tokens.shape != (length,):
            fault = f"it has {np.size(tokens)} tokens, the others {length}"
        elif tokens.dtype.kind not in "iu" or int(tokens.min()) < 0:
            fault = "input_ids are no token ids"
        elif borders.ndim != 2 or borders.shape[1] != 2:
            fault = "indices is no list of pairs"
        elif (borders[:, 0] > borders[:, 1]).any() or (borders[1:, 0] < borders[:-1, 1]).any():
            fault = "indices do not rise"
        elif borders.size and (borders[0, 0] < 0 or borders[-1, 1] > length):
            fault = f"indices reach to {borders[-1, 1]} of {length} tokens"
        elif mask is not None and np.shape(mask) != (length,):
            fault = f"mask has {np.size(mask)} entries for {length} tokens"
        elif self.vocab_size is not None and int(tokens.max()) >= self.vocab_size:
            fault = f"it has the token {int(tokens.max())}, and the vocabulary {self.vocab_size}"
        if fault is not None:
            remedy = "Pack the documents again."
            if "vocabulary" in fault:
                remedy = (
                    "It was made with another tokenizer: make it anew for the model's own, lmlab tokenize --ids-of."
                )
            raise DamagedError(self._where(number), fault, remedy=remedy)
        return borders, mask

    def _where(self, number: int) -> str:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        folder, entry = self._entries[shard]
        return f"{folder}/{entry['raw_data']['basename']}:{number - int(self._ends[shard]) + entry['samples']}"

    def _sample(self, number: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        try:
            found = self._shard(shard)
            return found[number - int(self._ends[shard]) + len(found)]
        except MDSError as error:
            raise DamagedError(self._where(number), error.message.rstrip(".")) from None

    def _open(self, shard: int) -> MDSShard:
        folder, entry = self._entries[shard]
        return map_shard(entry, folder)

    def _of_domains(self, domains: Sequence[str]) -> NDArray[np.int64]:
        return np.array([n for n in range(int(self._ends[-1])) if self._sample(n).get("domain") in domains], np.int64)
