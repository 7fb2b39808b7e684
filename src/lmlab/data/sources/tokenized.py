"""Documents from token ids, to tokenize them again in another way: shards that lmlab wrote, packed sequences, and MDS
or JSON lines with the ids of any tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lmlab.data.documents import Document, Reject
from lmlab.data.packs.read import TokenSource
from lmlab.data.shards import TokenizedCorpus
from lmlab.data.sources.reading.placed import PlacedSource
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import describe, find_files, is_folder, names_within, sha256_file
from lmlab.redaction import redact

_FILES = (".json", ".jsonl", ".mds", ".zstd")
_INDEX = "index.json"
_CUT = "\ufffd"  # what is left of a character of which a sequence ends in the middle


class TokenizedSource(PlacedSource):
    """Token ids, as text again. What a tokenizer did not keep exactly is a reject where that can be seen, as in shards
    that lmlab wrote. Of packed sequences every document, or part of one, is a document of its own.

    Attributes:
        path: shards that lmlab wrote, a folder of MDS with a column `input_ids`, or JSON lines with that key: files, a
            glob or a folder.
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
            for item in corpus.documents():
                yield replace(item, id=self._prefix + item.id) if isinstance(item, Document) else item
            return
        called = names_within(self.path)
        for place in self._places():
            yield from self._of(place, called)

    def _of(self, place: str, called: Callable[[str], str]) -> Iterator[Document | Reject]:
        words, default = self._words(place), Path(place).name.partition(".")[0] or "text"
        for where, found in TokenSource(place).documents():
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
                name = called(shown)
                yield Document(self._prefix + name, text, found.domain or default, name)
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
        places = self._places()
        files = [[redact(path), *describe(path)] for place in places for path in find_files(place, _FILES)]
        made_by = list(dict.fromkeys(self._words(place).fingerprint for place in places))
        return {**settings, "path": redact(self.path), "files": files, "tokenizer": made_by}

    def _is_corpus(self) -> bool:
        return Path(self.path, "manifest.json").is_file()

    def _places(self) -> list[str]:
        """The data sets that the path means: files of JSON lines, or folders with an index of MDS."""
        found = find_files(self.path, (".jsonl", _INDEX))
        indexes = [path for path in found if path.endswith(f"/{_INDEX}")]
        if indexes and is_folder(self.path):
            return [self.path]  # read as a whole, whatever stands below
        return [path.removesuffix(f"/{_INDEX}") for path in indexes or found]

    def _words(self, place: str) -> Tokenizer:
        if self.tokenizer is not None:
            return Tokenizer.load(self.tokenizer)
        stored = TokenSource(place).tokenizer
        if stored is None:
            raise UserError(
                f"'{redact(place)}' does not hold the tokenizer that made its ids.",
                "Name its directory: --ids-of, or the key tokenizer of the source.",
            )
        return stored
