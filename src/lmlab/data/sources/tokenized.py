"""Documents from token ids, to tokenize them again in another way: shards that lmlab wrote, packed sequences, and MDS
or JSON lines with the ids of any tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.data.packs.read import TokenSource
from lmlab.data.shards import TokenizedCorpus
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import describe, find_files, sha256_file
from lmlab.redaction import redact

_FILES = (".json", ".jsonl", ".mds", ".zstd")
_CUT = "\ufffd"  # what is left of a character of which a sequence ends in the middle


class TokenizedSource(Config):
    """Token ids, as text again. What a tokenizer did not keep exactly is a reject where that can be seen, as in shards
    that lmlab wrote. Of packed sequences every document, or part of one, is a document of its own.

    Attributes:
        path: shards that lmlab wrote, a folder of MDS with a column `input_ids`, or JSON lines with that key.
        tokenizer: directory of the tokenizer that made the ids, where it does not stand with them.
    """

    kind: Literal["tokenized"] = "tokenized"
    path: str
    tokenizer: str | None = None

    def read(self) -> Iterator[Document | Reject]:
        """Yield the documents in order.

        Raises:
            UserError: a shard is not the one that was written, it is not known which tokenizer made the ids, or another
                did; or the data say which tokens are learned, which text does not keep. The message names the place.
        """
        if self._is_corpus():
            corpus = TokenizedCorpus(Path(self.path), verify=True)
            if self.tokenizer is not None:
                corpus.check_tokenizer(Tokenizer.load(self.tokenizer))
            yield from corpus.documents()
            return
        words, default = self._words(), Path(self.path).name.partition(".")[0] or "text"
        for where, found in TokenSource(self.path).documents():
            shown = redact(where)
            if found.mask is not None and not found.mask.all():
                raise UserError(
                    f"{shown} says which of its tokens are learned, and text would not.",
                    "Tokenize its conversations instead: lmlab tokenize --help",
                )
            if len(found.tokens) and int(found.tokens.max()) >= words.vocab_size:
                raise UserError(
                    f"{shown} has the token {int(found.tokens.max()):,}; the tokenizer has {words.vocab_size:,}.",
                    "Name the tokenizer that made the data.",
                )
            text = words.decode(found.tokens.tolist()).strip(_CUT)
            if text:
                name = shown.removeprefix(f"{redact(self.path).rstrip('/')}/")  # which stays when all of it moves
                yield Document(name, text, found.domain or default, name)
            else:
                yield Reject(shown, "its tokens stand for no text")

    def notices(self) -> list[str]:
        """None: token data are of one split."""
        return []

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with the hash of the manifest, which holds those of the shards; of other data with names,
        sizes and digests of the files, and the tokenizer.
        """
        settings = self.model_dump(exclude_none=True)
        if self._is_corpus():
            TokenizedCorpus(Path(self.path))
            return {**settings, "manifest": sha256_file(Path(self.path) / "manifest.json")}
        files = [[redact(path), *describe(path)] for path in find_files(self.path, _FILES)]
        return {**settings, "path": redact(self.path), "files": files, "tokenizer": self._words().fingerprint}

    def _is_corpus(self) -> bool:
        return Path(self.path, "manifest.json").is_file()

    def _words(self) -> Tokenizer:
        if self.tokenizer is not None:
            return Tokenizer.load(self.tokenizer)
        stored = TokenSource(self.path).tokenizer
        if stored is None:
            raise UserError(
                f"'{redact(self.path)}' does not hold the tokenizer that made its ids.",
                "Name its directory: --ids-of, or the key tokenizer of the source.",
            )
        return stored
