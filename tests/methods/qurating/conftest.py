from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lmlab.data import Document, Tokenizer
from lmlab.methods.qurating import Judgment, Rater
from lmlab.models import ModelConfig, Transformer

WORDS = ("river stone garden window letter engine morning silver winter forest button candle market shadow thunder pocket " * 4).split()


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    return Tokenizer.train([sentence(rng, 200) + " Grüße an die Küste, 東京 🎉" for _ in range(20)], 400)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    rng = np.random.default_rng(1)
    return [Document(f"d{number}", sentence(rng, int(rng.integers(20, 120))), ("a", "b")[number % 2]) for number in range(60)]


@pytest.fixture
def rater(tokenizer: Tokenizer) -> Rater:
    return make_rater(tokenizer)


def make_rater(tokenizer: Tokenizer, criteria: tuple[str, ...] = ("one", "two"), segment: int = 32) -> Rater:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=4, max_seq_len=64, num_labels=len(criteria), init_std=0.3)
    return Rater(Transformer(config).initialize(3), tokenizer, criteria, segment=segment, precision="fp32")


def pair(a: str, b: str, p: float, name: str = "one", ids: tuple[str, ...] = ()) -> Judgment:
    return Judgment((a, b), {name: np.array([[-100.0, p], [1 - p, -100.0]])}, {}, ids)


@pytest.fixture(scope="session")
def shared() -> Path:
    place = Path(os.environ.get("LMLAB_SHARED", "../shared"))
    if not (place / "data" / "texts").is_dir():
        pytest.skip("the shared texts are not here; set LMLAB_SHARED")
    return place
