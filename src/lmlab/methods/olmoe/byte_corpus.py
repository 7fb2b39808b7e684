"""Toy training on bytes: windows drawn evenly from domains, and a fixed validation (specification of the ablations at
toy scale).

A model reads raw UTF-8 bytes, without marks. The first nine tenths of the records of each domain are learned from, the
last tenth is measured on.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.data import Document, JsonlSource
from lmlab.errors import UserError

_TRAIN_SHARE = 0.9  # of each domain's records, the first ones; the rest is never trained on
Bytes = NDArray[np.uint8]


class ByteCorpus:
    """Bytes of several domains.

    Arguments:
        directory: JSON lines, compressed or not, with `text` and `domain`.

    Attributes:
        domains: their names, sorted.
        train, validation: the bytes of each domain; records are joined by line ends.

    Raises:
        UserError: a record cannot be read, or a domain has too little text.
    """

    def __init__(self, directory: Path, shortest: int = 512) -> None:
        texts: dict[str, list[str]] = defaultdict(list)
        for each in JsonlSource(kind="jsonl", path=str(directory), domain_field="domain").read():
            if not isinstance(each, Document):
                raise UserError(f"{each.where}: {each.reason}.")
            texts[each.domain].append(each.text)
        self.domains = sorted(texts)
        self.train: dict[str, Bytes] = {}
        self.validation: dict[str, Bytes] = {}
        for domain in self.domains:
            cut = int(_TRAIN_SHARE * len(texts[domain]))
            for part, records in ((self.train, texts[domain][:cut]), (self.validation, texts[domain][cut:])):
                part[domain] = np.frombuffer("\n".join(records).encode(), np.uint8)
                if len(part[domain]) < shortest:
                    raise UserError(
                        f"The domain '{domain}' of '{directory}' has too little text to learn from and to measure.",
                        "Add records.",
                    )

    def validation_windows(self, length: int, per_domain: int = 16) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows of each domain, [domains * per_domain, length], and the numbers of their domains."""
        rows = []
        for domain in self.domains:
            text = self.validation[domain]
            starts = np.linspace(0, len(text) - length, per_domain, endpoint=False).astype(int)
            rows += [text[start : start + length] for start in starts]
        domains = torch.arange(len(self.domains)).repeat_interleave(per_domain)
        return torch.from_numpy(np.stack(rows).astype(np.int64)), domains


class ByteWindows:
    """Row n of a training: a domain and a place in it, drawn evenly by the seed and n alone."""

    def __init__(self, corpus: ByteCorpus, length: int, rows: int, seed: int) -> None:
        self._corpus, self._length, self._rows, self._seed = corpus, length, rows, seed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng([self._seed, index])
        domain = int(random.integers(len(self._corpus.domains)))
        text = self._corpus.train[self._corpus.domains[domain]]
        start = int(random.integers(len(text) - self._length + 1))
        ids = text[start : start + self._length].astype(np.int64)
        zeros = np.zeros(self._length, np.int64)
        return {
            "input_ids": ids,
            "labels": np.append(ids[1:], -100),
            "document_ids": zeros,
            "domain_ids": zeros + domain,
        }
