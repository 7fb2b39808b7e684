"""A small retriever and a small collection with their vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.methods.corpus_poisoning import EncoderSpec
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from tiny_retriever import write_collection, write_retriever


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return write_retriever(tmp_path_factory.mktemp("poison") / "encoder")


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    return write_collection(tmp_path_factory.mktemp("poison") / "small", documents=120, queries=80)


@pytest.fixture(scope="session")
def target(place, small, tmp_path_factory) -> Target:
    return Target.load(Retriever(EncoderSpec(str(place)), tmp_path_factory.mktemp("cache")), str(small), "train")
