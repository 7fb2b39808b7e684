"""Texts, judgments and raters for the tests of data selection."""

from __future__ import annotations

import numpy as np

from lmlab.data import Tokenizer
from lmlab.judging import Judgment
from lmlab.methods.qurating import Rater
from lmlab.models import ModelConfig, Transformer

WORDS = (
    "river stone garden window letter engine morning silver winter forest button candle market shadow thunder pocket "
    * 4
).split()


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def make_rater(tokenizer: Tokenizer, criteria: tuple[str, ...] = ("one", "two"), segment: int = 32) -> Rater:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_layers=2,
        d_model=32,
        num_heads=4,
        max_seq_len=64,
        num_labels=len(criteria),
        init_std=0.3,
    )
    return Rater(Transformer(config).initialize(3), tokenizer, criteria, segment=segment, precision="fp32")


def pair(a: str, b: str, p: float, name: str = "one", ids: tuple[str, ...] = ()) -> Judgment:
    return Judgment((a, b), {name: np.array([[-100.0, p], [1 - p, -100.0]])}, {}, ids)
