"""Small tokenized corpora for the tests of what reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from lmlab.data import Document, TokenizedCorpus, Tokenizer, tokenize_documents
from lmlab.files import write_jsonl

_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def text(seed: int, words: int = 200) -> str:
    generator = np.random.default_rng(seed)
    return " ".join(f"{_WORDS[i]}{generator.integers(100)}" for i in generator.integers(len(_WORDS), size=words))


@cache
def small_tokenizer(vocab_size: int = 350) -> Tokenizer:
    return Tokenizer.train((text(seed) for seed in range(40)), vocab_size)


def write_documents(path: Path, number: int = 30, first: int = 0) -> list[Document]:
    documents = [
        Document(f"d{n}", text(first + n, 30 + 17 * n % 90), "even" if n % 2 == 0 else "odd") for n in range(number)
    ]
    write_jsonl(path, (document.row() for document in documents))
    return documents


def make_corpus(directory: Path, number: int = 30, first: int = 0, shard_tokens: int = 1500) -> TokenizedCorpus:
    write_documents(directory / "documents.jsonl", number, first)
    tokenize_documents(directory / "documents.jsonl", small_tokenizer(), directory / "shards", shard_tokens, workers=1)
    return TokenizedCorpus(directory / "shards", verify=True)
