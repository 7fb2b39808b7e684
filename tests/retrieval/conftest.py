"""The shared retrieval collections, and small ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmlab.retrieval import AnyEncoder, load_encoder
from tiny_retriever import write_collection, write_retriever

SHARED = Path(os.environ.get("LMLAB_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "retrieval"


@pytest.fixture(scope="session")
def collections() -> Path:
    """The published collections."""
    if not SHARED.is_dir():
        pytest.skip("the shared retrieval data are not there; LMLAB_SHARED names their folder")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> AnyEncoder:
    return load_encoder(write_retriever(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection") / "small")
