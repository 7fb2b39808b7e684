"""Text that spells special tokens: kept text, to the letter.

`tokenizers` finds special tokens in any text, so that a web page that prints `<|endoftext|>` would end there. Putting
something into the spelling, or encoding the parts around it one by one, changes the text where a tokenizer marks the
beginnings of words (metaspace turns "</s>" into "< /s>"). So text goes to a copy of the tokenizer whose special tokens
have other names, which nobody can guess; where a real one is meant, its new name is written in its place.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from lmlab.errors import UserError
from lmlab.files import json_value

Span = tuple[int, int]


class SpelledTokens:
    """The copy of a tokenizer that leaves spelled special tokens text.

    Arguments:
        backend: the tokenizer.
        names: its special tokens, as they are spelled.

    Raises:
        UserError: one of them cannot be kept from being found, since it is also an ordinary piece of the vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: Iterable[str]) -> None:
        # A name cannot be met in a text: it holds 16 random hexadecimal digits between two code points that Unicode
        # keeps free of characters. The names never reach an id or a file, so that results do not depend on them.
        secret = f"\ufdd0{secrets.token_hex(8)}\ufdd0"
        self._renamed = {name: f"{secret}{name}{secret}" for name in names}
        description = json_value(backend.to_str())
        for token in description["added_tokens"]:
            if token["content"] in self._renamed:
                # a normalizer may change a name beyond recognition; what strips blanks around it stays
                token |= {"content": self._renamed[token["content"]], "normalized": False}
        _rename_in_model(description["model"], self._renamed)
        description["truncation"] = description["padding"] = None
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(description))
        there = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        self.backend.add_special_tokens(  # begin and end are in the vocabulary of some, and no special tokens there
            [tokenizers.AddedToken(new, normalized=False) for new in self._renamed.values() if new not in there]
        )
        for name in self._renamed:
            if len(name) == 1:  # without it the vocabulary would lack the character
                raise UserError(
                    f"The special token '{name}' is a single character, so that text which holds it cannot be told from"
                    " it.",
                    "Allow it with special_tokens: as_tokens.",
                )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which nothing is a special token."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def write(self, text: str, real: Sequence[Span]) -> tuple[str, list[int]]:
        """A text for `backend` in which some spans are special tokens, and for each of its characters, and its end,
        the place in the text that was given.

        Arguments:
            real: spans [start, end) that spell special tokens and are meant as such, in order.
        """
        pieces, places, done = list[str](), list[int](), 0
        for start, end in real:
            name = self._renamed[text[start:end]]
            pieces += [text[done:start], name]
            # all of a new name but its first characters stand for the end of the old one
            places += [*range(done, start), *(min(start + number, end) for number in range(len(name)))]
            done = end
        return "".join([*pieces, text[done:]]), [*places, *range(done, len(text) + 1)]


def _rename_in_model(model: dict[str, Any], renamed: dict[str, str]) -> None:
    """Give special tokens that are also in the model's vocabulary their new names; ids stay."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(piece, piece): id for piece, id in vocab.items()}
    else:  # Unigram: [piece, score] by id
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if merges := model.get("merges"):
        model["merges"] = [merge for merge in merges if renamed.keys().isdisjoint(_parts(merge))]


def _parts(merge: Any) -> set[str]:
    """Both sides of a merge and what they become; older files write a merge as one string."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}
