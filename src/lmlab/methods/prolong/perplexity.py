"""LongPPL of a model on research papers, with key tokens that another model found."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from lmlab.config import Config, part_of, validate
from lmlab.errors import UserError
from lmlab.evals import Evaluator
from lmlab.evals.long import LongPPL, LongPPLConfig, key_tokens, long_perplexity
from lmlab.evals.long.texts import count_words, papers
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.methods.prolong.config import PerplexitySettings
from lmlab.words import counted


class KeyFile(Config):
    """Key tokens, and what they were found by.

    Attributes:
        keys: their places in each text.
        length: tokens of each text.
        tokenizer: fingerprint of the tokenizer.
        model: that found them.
        config: which tokens count.
        texts: SHA-256 of the texts' tokens.
    """

    keys: list[list[int]]
    length: int
    tokenizer: str
    model: str
    config: LongPPLConfig
    texts: str | None = None


def measure_long_ppl(model: str, keys: Path, settings: PerplexitySettings, device: str, precision: str) -> LongPPL:
    """LongPPL of a model; the key tokens are read from a file, or found and written to it.

    Raises:
        UserError: the file is none, or of another tokenizer; the model cannot be read token by token, or its window is
            too short.
    """
    evaluator = Evaluator.load(model, device, precision)
    if evaluator.model is None:
        raise UserError(f"LongPPL needs a model of lmlab, and this one runs by {evaluator.scorer.description}.")
    fingerprint = evaluator.tokenizer.fingerprint
    known = validate(KeyFile, read_mapping(keys), f"'{keys}'") if keys.exists() else None
    if known is not None and known.tokenizer != fingerprint:
        raise UserError(f"The key tokens in '{keys}' are of another tokenizer.", "Name another file with --keys.")
    count, size = (settings.texts, settings.length) if known is None else (len(known.keys), known.length)
    if size > evaluator.scorer.max_seq_len:
        raise UserError(f"Texts of {size} tokens exceed the model's {evaluator.scorer.max_seq_len}.", "Lower --length.")
    if known is None and settings.context >= size - 1:
        raise UserError(
            f"A short context of {settings.context:,} tokens leaves none of texts of {size:,} tokens.",
            "Lower --context.",
        )
    ids = _texts(evaluator, count, size)
    if not ids:
        raise UserError(f"No text has {counted(size, 'tokens')}.", "Lower --length.")
    digest = sha256_json(ids)
    if known is not None and known.texts not in (None, digest):
        raise UserError(f"The key tokens in '{keys}' are those of other texts.", "Name another file with --keys.")
    if known is None:
        config = part_of(LongPPLConfig, settings)
        found = key_tokens(evaluator.model, ids, config, evaluator.tokenizer.begin_ids)
        known = KeyFile(keys=found, length=size, tokenizer=fingerprint, model=model, config=config, texts=digest)
        write_json(keys, known.model_dump(mode="json"))
    return long_perplexity(evaluator.model, ids, known.keys, known.config)


def _texts(evaluator: Evaluator, count: int, size: int) -> list[list[int]]:
    """The first texts that have so many tokens: the same ones, whether `count` was asked for or found."""
    ordered = sorted(papers(), key=lambda paper: -count_words(paper.body))
    encode = evaluator.tokenizer.encode_prompt
    found = (encode(f"{paper.abstract}\n\n{paper.body}", "as_text")[:size] for paper in ordered)
    return list(islice((ids for ids in found if len(ids) == size), count))
