"""What a memory has lost: how well a model says a text again from its memory, by the kind of word.

Names, numbers and rare words are what summaries lose first, and what the mean over all tokens hides: most tokens can be
guessed without the text.

Shapes: T tokens of a text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from lmlab.data import Tokenizer
from lmlab.methods.autocompressor.kinds.base import Compressor, create
from lmlab.models import Memory, Transformer
from lmlab.stats import Interval, bootstrap

WordKind = Literal["number", "name", "rare", "other"]
WORD_KINDS: tuple[WordKind, ...] = get_args(WordKind)
_RARE = 3  # pieces: a word that a tokenizer cuts into so many was rare where it learned


@dataclass(frozen=True)
class Lost:
    """One kind of word.

    Attributes:
        tokens: of that kind.
        without, whole, kept: mean negative log-likelihood of a token without the text, behind all of it, and behind its
            memory.
        retained: share of the gain that the memory keeps, with its interval over texts.
    """

    words: WordKind
    tokens: int
    without: float
    whole: float
    kept: float
    retained: Interval[float]


def word_kinds(ids: Sequence[int], tokenizer: Tokenizer) -> list[WordKind]:
    """The kind of word that each token belongs to: with a digit in it; with a capital that begins no sentence; in three
    pieces or more; any other.
    """
    words: list[tuple[str, list[int]]] = []
    for place, token in enumerate(ids):
        text = tokenizer.decode([token])
        if not words or text[:1].isspace() or not text.strip() or _breaks(words[-1][0], text):
            words.append((text, [place]))
        else:
            words[-1] = (words[-1][0] + text, [*words[-1][1], place])
    found: list[WordKind] = ["other"] * len(ids)
    begins = True
    for text, places in words:
        word = text.strip()
        kind: WordKind = "other"
        if any(letter.isdigit() for letter in word):
            kind = "number"
        elif word[:1].isupper() and not begins:
            kind = "name"
        elif word.isalpha() and len(places) >= _RARE:
            kind = "rare"
        for place in places:
            found[place] = kind
        if word or "\n" in text:
            begins = "\n" in text or word.endswith((".", "!", "?", ":"))
    return found


def _breaks(before: str, text: str) -> bool:
    """Whether a piece begins another word than the one before it: letters and digits hold together, marks do not."""
    return bool(re.match(r"\w", text)) != bool(re.search(r"\w$", before))


def probe(
    model: Transformer, compressor: Compressor, tokenizer: Tokenizer, texts: Sequence[Sequence[int]], ratio: float
) -> list[Lost]:
    """Texts read from their memories, which a model that has not read them cannot guess."""
    none, full = (create(kind, model) for kind in ("none", "full"))
    tables: list[dict[WordKind, np.ndarray]] = []
    for ids in texts:
        context = torch.tensor([list(ids)])
        memories = [none.compress(context), full.compress(context), compressor.compress(context, ratio=ratio)]
        nll = np.array([_again(model, memory, ids) for memory in memories])  # [3, T - 1]
        kinds = np.array(word_kinds(ids, tokenizer)[1:])
        tables.append({kind: np.array([*nll[:, kinds == kind].sum(1), (kinds == kind).sum()]) for kind in WORD_KINDS})
    return [line for kind in WORD_KINDS if (line := _line(kind, [table[kind] for table in tables])) is not None]


def _line(kind: WordKind, sums: Sequence[np.ndarray]) -> Lost | None:
    by_text = np.stack(sums)
    tokens = int(by_text[:, 3].sum())
    if not tokens:
        return None

    gained = bootstrap(lambda picked: float((by_text[picked, 0] - by_text[picked, 1]).sum()), len(by_text))

    def retained(picked: np.ndarray) -> float:
        without, whole, kept = by_text[picked, :3].sum(0)
        if gained.low <= 0 or without <= whole:  # of a gain that cannot be told from 0 a share is noise
            return math.nan
        return float((without - kept) / (without - whole))

    without, whole, kept = (float(each) / tokens for each in by_text[:, :3].sum(0))
    return Lost(kind, tokens, without, whole, kept, bootstrap(retained, len(by_text)))


@torch.no_grad()
def _again(model: Transformer, memory: Memory, ids: Iterable[int]) -> np.ndarray:
    """The negative log-likelihood of each token but the first, said again behind a memory, [T - 1]."""
    ids_1T = torch.tensor([list(ids)], device=model.embedding.weight.device)
    hidden_TD = model(ids_1T, memory=memory, logits="none").hidden_BTD[0, :-1]
    found = []
    # logits over the vocabulary take the most memory
    for part, targets in zip(hidden_TD.split(128), ids_1T[0, 1:].split(128), strict=True):
        log_probs = model.logits_of(part).float().log_softmax(-1)
        found.append(-log_probs.gather(1, targets[:, None])[:, 0])
    return torch.cat(found).double().cpu().numpy()
