"""Facts about counted nouns."""

from __future__ import annotations

import pytest

from lmlab.words import counted


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("shards", "1 shard"),
        ("training documents", "1 training document"),
        ("queries", "1 query"),
        ("batches", "1 batch"),
        ("classes", "1 class"),
        ("bytes", "1 byte"),
        ("cases", "1 case"),
        ("prefixes", "1 prefix"),
        ("caches", "1 cache"),
        ("questions have", "1 question has"),
        ("judgments were", "1 judgment was"),
    ],
)
def test_one_is_counted_in_the_singular(plural: str, one: str) -> None:
    assert counted(1, plural) == one
    assert counted(0, plural) == f"0 {plural}"
    assert counted(12345, plural) == f"12,345 {plural}"
