"""Excerpts of documents for a judge: all members of a group are equally long, so that length cannot decide (QuRating,
section 3 and appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from lmlab.data import Document, Tokenizer
from lmlab.methods.qurating.config import ExcerptConfig

_CHARACTERS_A_TOKEN = 40  # hardly any text has longer tokens, so that the excerpt still fills up


@dataclass(frozen=True)
class Excerpt:
    """A piece of a document.

    Attributes:
        document: the id of the document.
        start, length: the window in its tokens.
    """

    document: str
    text: str
    domain: str
    start: int
    length: int

    @property
    def id(self) -> str:
        """That of the document, by which judgments name it."""
        return self.document


def group_length(documents: Sequence[Document], config: ExcerptConfig) -> int:
    """The length that the excerpts of a group have in common, drawn from the seed and the members' ids, in whatever
    order they are.
    """
    name = "\n".join(sorted(document.id for document in documents))
    low, high = config.tokens
    if _uniform(config.seed, "longest", name) < config.p_max:
        return high
    return low + int(_uniform(config.seed, "length", name) * (high - low + 1))


def excerpt(document: Document, length: int, tokenizer: Tokenizer, config: ExcerptConfig) -> Excerpt:
    """The excerpt of a document: all of it if it is not longer than the longest, else a window whose start is drawn
    from the seed and the id.
    """
    longest = config.tokens[1]
    text = document.text
    most = _CHARACTERS_A_TOKEN * longest
    if len(text) > most:  # to save tokenizing
        start = int(_uniform(config.seed, "characters", document.id) * (len(text) - most + 1))
        text = text[start : start + most]
    ids = tokenizer.encode(text, "as_text")
    if len(ids) <= longest:
        return Excerpt(document.id, text, document.domain, 0, len(ids))
    start = int(_uniform(config.seed, "start", document.id) * (len(ids) - longest + 1))
    window = ids[start : start + length]
    return Excerpt(document.id, decode_window(tokenizer, window), document.domain, start, length)


def excerpts(
    documents: Sequence[Document], tokenizer: Tokenizer, config: ExcerptConfig | None = None, k: int = 2
) -> list[list[Excerpt]]:
    """Excerpts of groups of `k` adjacent documents; documents that do not fill a group at the end are left out.

    Raises:
        ValueError: k is less than 2.
    """
    if k < 2:
        raise ValueError("a group has at least 2 texts")
    settings = config or ExcerptConfig()
    groups = [documents[start : start + k] for start in range(0, len(documents) - k + 1, k)]
    return [group_excerpts(group, tokenizer, settings) for group in groups]


def group_excerpts(group: Sequence[Document], tokenizer: Tokenizer, config: ExcerptConfig) -> list[Excerpt]:
    """The excerpts of the documents of one group."""
    length = group_length(group, config)
    return [excerpt(document, length, tokenizer, config) for document in group]


def decode_window(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some tokens; a character that the window cuts in two, at either end, is left out."""
    return tokenizer.decode(ids).strip("\ufffd")


def _uniform(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on nothing else."""
    digest = blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
