from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from quality_parts import make_rater, sentence

from lmlab.data import Document, Tokenizer
from lmlab.methods.qurating import Rater


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    return Tokenizer.train([sentence(rng, 200) + " Grüße an die Küste, 東京 🎉" for _ in range(20)], 400)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    rng = np.random.default_rng(1)
    return [
        Document(f"d{number}", sentence(rng, int(rng.integers(20, 120))), ("a", "b")[number % 2])
        for number in range(60)
    ]


@pytest.fixture
def rater(tokenizer: Tokenizer) -> Rater:
    return make_rater(tokenizer)


@pytest.fixture(scope="session")
def shared() -> Path:
    place = Path(os.environ.get("LMLAB_SHARED", "../shared"))
    if not (place / "data" / "texts").is_dir():
        pytest.skip("the shared texts are not here; set LMLAB_SHARED")
    return place


@pytest.fixture(scope="session")
def quality_texts() -> list[str]:
    rng = np.random.default_rng(1)
    return [sentence(rng, int(rng.integers(20, 60))) for _ in range(60)]
