"""Texts to ids for encoders: special tokens around each text, prompts before it, truncation as its makers meant it.

This is not `lmlab.data.Tokenizer`, which reads documents with begin and end marks: encoders of the BERT family have
neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from lmlab.data.tokenizer_files import read_tokenizer
from lmlab.errors import UserError, reads

_PROBES = ("a", "the", "1", "é")


class EncoderTokenizer:
    """A tokenizer with what its encoder puts around a text.

    Arguments:
        backend: neither truncates nor pads.
        special: name -> text of special tokens.
        lower: lower-case texts first, whatever the tokenizer does.
        end_token: a token that follows every text where the tokenizer puts none, as last-token pooling needs it.
        add_special: put the tokenizer's special tokens around texts.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: dict[str, str],
        lower: bool = False,
        end_token: str | None = None,
        add_special: bool = True,
    ) -> None:
        self.backend, self.special, self.lower = backend, special, lower
        self.end_token, self.add_special = end_token, add_special

    @classmethod
    @reads("the directory of a tokenizer")
    def load(
        cls, directory: Path, lower: bool = False, end_token: bool = False, add_special: bool = True
    ) -> EncoderTokenizer:
        """Read a directory.

        Arguments:
            end_token: put the tokenizer's end token after every text, unless it does so itself.
        """
        files = read_tokenizer(directory)
        special = files.special_tokens
        end = special.get("eos_token") if end_token else None
        if end is not None and files.backend.encode("a").ids[-1:] == [files.backend.token_to_id(end)]:
            end = None
        return cls(files.backend, special, lower, end, add_special)

    @cached_property
    def fingerprint(self) -> str:
        """A short digest of all that decides on ids."""
        settings = f"{self.lower} {self.end_token} {self.add_special} {self.backend.to_str()}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.backend.get_vocab_size()

    @cached_property
    def pad_id(self) -> int:
        """What padding is written as; masks tell it from text."""
        found = self.backend.token_to_id(self.special.get("pad_token", ""))
        return 0 if found is None else int(found)

    @cached_property
    def mask_id(self) -> int | None:
        """The mask token, of encoders that have one."""
        return self.backend.token_to_id(self.special.get("mask_token", ""))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens."""
        named = {self.backend.token_to_id(text) for text in self.special.values()}
        added = {id for id, token in self.backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(id for id in named | added if id is not None)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids before and after every text."""
        after = [] if self.end_token is None else [self._id(self.end_token)]
        if not self.add_special:
            return [], after
        for probe in _PROBES:
            inner, whole = self.inner([probe])[0], self.backend.encode(probe).ids
            for start in range(len(whole) - len(inner) + 1):
                if inner and whole[start : start + len(inner)] == inner:
                    return whole[:start], whole[start + len(inner) :] + after
        return [], after

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(f"The tokenizer has no token '{token}'.")
        return int(found)

    def inner(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts alone."""
        given = [text.lower() for text in texts] if self.lower else list(texts)
        return [each.ids for each in self.backend.encode_batch_fast(given, add_special_tokens=False)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each id of a text alone stands in it, in characters; in the lower-cased text where `lower` is set."""
        given = text.lower() if self.lower else text
        found: list[tuple[int, int]] = self.backend.encode(given, add_special_tokens=False).offsets
        return found

    def read(self, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
        """The ids of a text with the tokenizer's special tokens, and where each stands in it; None for those."""
        found = self.backend.encode(text.lower() if self.lower else text)
        marks = zip(found.offsets, found.special_tokens_mask, strict=True)
        return list(found.ids), [None if special else span for span, special in marks]

    def encode(self, texts: Sequence[str], max_length: int | None, prompt: str = "") -> list[list[int]]:
        """The ids of texts with all that stands around them, cut to `max_length` ids; what stands around is kept."""
        before, after = self.around
        room = None if max_length is None else max(0, max_length - len(before) - len(after))
        return [[*before, *ids[:room], *after] for ids in self.inner([prompt + text for text in texts])]

    def prompt_length(self, prompt: str) -> int:
        """How many ids a prompt takes before a text, with those that stand before it."""
        return len(self.around[0]) + len(self.inner([prompt])[0]) if prompt else 0

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens, as an indexer would store it."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The names of ids."""
        return [self.backend.id_to_token(id) or "" for id in ids]
