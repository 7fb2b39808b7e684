"""What a passage starts from: its payload in place, the positions that are free, and the ids that stand there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, places_of, spell
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.retrieval import AnyEncoder
from lmlab.words import counted

CANARY = "REDTEAM-CANARY-{run}"


def payload_of(config: CraftConfig, run: str) -> str:
    if config.payload_position == "none":
        return ""
    return config.payload or CANARY.format(run=run)


def layout_of(encoder: AnyEncoder, config: CraftConfig, payload: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The ids of a passage with its payload in place, and which positions are free.

    Raises:
        UserError: the payload has unknown tokens, or leaves no room.
    """
    tokenizer = encoder.tokenizer
    behind = " " if config.payload_position == "suffix" else ""  # which some tokenizers spell
    fixed = tokenizer.inner([behind + payload])[0] if payload else []
    unknown = tokenizer.backend.token_to_id(tokenizer.special.get("unk_token", "")) if payload else None
    if payload and (not fixed or (unknown is not None and unknown in fixed)):
        raise UserError("The payload holds what the encoder's vocabulary cannot spell.", "Use other words.")
    if payload:
        back = _folded(spell(tokenizer, fixed))
        if back != _folded(payload):
            raise UserError(f"The payload is read by the encoder as '{back:.100}'.", "Use plain words.")
    if len(fixed) >= config.length:
        around = len(encoder.wrap([]))
        raise UserError(
            f"The payload has {counted(len(fixed), 'tokens')}, and with {around} around it leaves no room in a passage"
            f" of {config.length} tokens.",
            "Raise --length, or shorten the payload.",
        )
    free = np.ones(config.length, bool)
    ids = np.zeros(config.length, np.int64)
    if fixed:
        place = slice(0, len(fixed)) if config.payload_position == "prefix" else slice(-len(fixed), None)
        ids[place], free[place] = fixed, False
    return ids, free


def with_payload(text: str, payload: str, config: CraftConfig) -> str:
    """A text with its payload where it belongs."""
    if config.payload_position == "none":
        return text.strip()
    return " ".join([payload, text.strip()] if config.payload_position == "prefix" else [text.strip(), payload])


def as_read(encoder: AnyEncoder, payload: str) -> str:
    """A payload as an encoder without case reads it; nothing where it reads it as it is written."""
    read = spell(encoder.tokenizer, encoder.tokenizer.inner([payload])[0])
    return "" if "".join(read.split()) == "".join(payload.split()) else read.strip()


def _folded(text: str) -> str:
    """A text without case and spaces, as uncased encoders see it."""
    return re.sub(r"\s+", "", text.casefold())


def nearest_first(vectors_nH: NDArray[np.float32]) -> NDArray[np.int64]:
    """The numbers of vectors, those nearest to their mean first, [n]."""
    return np.argsort(-(vectors_nH @ vectors_nH.astype(np.float64).mean(0)), kind="stable")


def start_ids(
    config: CraftConfig, encoder: AnyEncoder, texts: Sequence[str], vectors_nH: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Where the optimization starts, [length]: texts one after another, those first whose queries are nearest to their
    mean (of the queries themselves this is stuffing), mask tokens, or random words.

    Arguments:
        texts: one for each query.

    Raises:
        UserError: the encoder has no mask token.
    """
    length, tokenizer = config.length, encoder.tokenizer
    if config.start == "mask":
        if tokenizer.mask_id is None:
            raise UserError("The encoder has no mask token to start from.", "Use --start queries.")
        return np.full(length, tokenizer.mask_id, np.int64)
    if config.start == "random":
        generator = np.random.default_rng(config.seed)
        allowed = allowed_ids(tokenizer, config.words)
        first_V, later_V = places_of(tokenizer, allowed)
        return np.concatenate(
            [generator.choice(allowed[first_V], 1), generator.choice(allowed[later_V], length - 1)]
        ).astype(np.int64)
    chosen: list[str] = []
    for row in nearest_first(vectors_nH):
        chosen.append(texts[int(row)])
        if len(chosen) >= length:
            break  # one word of each would be enough
    found = tokenizer.inner([" ".join(chosen)])[0]
    if config.optimizer == "none":
        filler = tokenizer.inner(["."])[0][:1] or [int(allowed_ids(tokenizer)[0])]
        return np.array((found + filler * length)[:length], np.int64)
    # pieces of words cannot be kept beside words that change: the optimizers start without them
    allowed = allowed_ids(tokenizer, config.words)
    first, later = (set(allowed[each].tolist()) for each in places_of(tokenizer, allowed))
    while found and found[0] not in first:
        found = found[1:]
    found = [*found[:1], *(id for id in found[1:] if id in later)] or [min(first or later)]
    dot = tokenizer.inner(["a."])[0][-1]
    filler = [dot if dot in later else min(later or first)]
    return np.array((found + filler * length)[:length], np.int64)
