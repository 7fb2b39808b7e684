"""Documents from tokenized shards, to tokenize them again in another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.data.shards import TokenizedCorpus
from lmlab.files import sha256_file


class TokenizedSource(Config):
    """A tokenized corpus, as text again; what its tokenizer did not keep exactly is a reject."""

    kind: Literal["tokenized"] = "tokenized"
    path: str

    def read(self) -> Iterator[Document | Reject]:
        """Yield the documents in order.

        Raises:
            UserError: a shard is not the one that was written; the message names it.
        """
        yield from TokenizedCorpus(Path(self.path), verify=True).documents()

    def notices(self) -> list[str]:
        """None: shards are of one split."""
        return []

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with the hash of the manifest, which holds those of the shards."""
        TokenizedCorpus(Path(self.path))
        return {**self.model_dump(), "manifest": sha256_file(Path(self.path) / "manifest.json")}
