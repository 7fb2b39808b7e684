"""Texts for traces: tokenized, joined by domain, cut to sequences of one length; the last remainder is dropped
(Muennighoff et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab.config import validate
from lmlab.data import Document, Reject, SourceConfig, source_settings
from lmlab.errors import UserError
from lmlab.progress import console
from lmlab.runs import Vocabulary

BYTES = "bytes"


@dataclass(frozen=True)
class CutTexts:
    """Token ids of equal sequences, [S, T], and the domain of each."""

    ids_ST: NDArray[np.int64]
    domains: tuple[str, ...]
    domain_S: NDArray[np.int64]


def cut_texts(
    location: str,
    tokenizer: str,
    length: int,
    most: int,
    text_field: str = "text",
    domain_field: str | None = None,
    split: str | None = None,
) -> CutTexts:
    """Read texts and cut each domain to at most `most` sequences.

    Raises:
        UserError: there is no text, or not enough for one sequence.
    """
    encode = _encoder(tokenizer)
    fields = {"text_field": text_field} | ({"domain_field": domain_field} if domain_field else {})
    fields |= {"split": split} if split else {}
    source = validate(SourceConfig, source_settings(location, fields), f"'{location}'")
    kept: dict[str, list[int]] = {}
    rejects: list[Reject] = []
    for each in source.read():
        if not isinstance(each, Document):
            rejects.append(each)
        elif len(kept.setdefault(each.domain, [])) < length * most:
            kept[each.domain] += encode(each.text)
    if rejects:
        console.print(
            f"{len(rejects)} records were set aside; the first: {rejects[0].where}: {rejects[0].reason}", style="yellow"
        )
    domains, rows, numbers = tuple(sorted(kept)), [], []
    for number, domain in enumerate(domains):
        count = min(most, len(kept[domain]) // length)
        rows += [kept[domain][place * length : (place + 1) * length] for place in range(count)]
        numbers += [number] * count
    if not rows:
        raise UserError(
            f"The texts at '{location}' do not fill one sequence of {length} tokens.", "Lower --length, or add text."
        )
    return CutTexts(np.array(rows, np.int64), domains, np.array(numbers, np.int64))


def decoder(tokenizer: str) -> Callable[[int], str]:
    """The text of a token id."""
    if tokenizer == BYTES:
        return lambda token: bytes([token]).decode("utf-8", "backslashreplace") if token < 256 else f"token {token}"
    loaded = Vocabulary.find(tokenizer).load()
    return lambda token: loaded.decode([token])


def _encoder(tokenizer: str) -> Callable[[str], list[int]]:
    if tokenizer == BYTES:
        return lambda text: list(text.encode())
    try:
        found = Vocabulary.find(tokenizer)
    except UserError:
        raise UserError(
            f"'{tokenizer}' has no tokenizer.",
            "Name its directory with --tokenizer, or --tokenizer bytes for a model of raw bytes.",
        ) from None
    loaded = found.load()
    return lambda text: loaded.encode(text, "as_text")
