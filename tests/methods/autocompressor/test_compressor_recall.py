"""A known answer: what was read is recalled when only its summaries are left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lmlab.methods.autocompressor.training.recall import (
    SEGMENTS,
    RecallRows,
    fit_recall,
    recall_trainer,
    recall_training,
)
from lmlab.models import IGNORE


def test_rows_ask_for_the_pairs_of_both_segments() -> None:
    rows = RecallRows(50, 0)
    for number in range(50):
        row = rows[number]
        ids, labels = row["input_ids"], row["labels"]
        pairs = {int(ids[place]): int(ids[place + 1]) for place in (1, 3, 6, 8)}
        assert len(pairs) == 4 and len(ids) == sum(SEGMENTS.lengths or ())
        learned = np.flatnonzero(labels != IGNORE)
        assert {int(ids[place]): int(labels[place]) for place in learned} == pairs
        assert sorted(row["sources"][learned].tolist()) == [0, 0, 1, 1] and (learned > 10).all()
    assert all((rows[3][name] == RecallRows(50, 0)[3][name]).all() for name in rows[3])


@pytest.mark.slow
def test_accumulated_summaries_are_recalled_replaced_ones_less_and_without_them_nothing_is(tmp_path: Path) -> None:
    """In 200 of the 2,500 steps that the task allows; chance is 1/8. benchmarks/autocompressor.py has the rest."""
    reached = {}
    for kind, steps in (("accumulate", 200), ("replace", 200), ("none", 30)):
        recall_trainer(kind, 0, steps, str(tmp_path / kind), evaluate_every=steps).fit()  # type: ignore[arg-type]
        row = json.loads((tmp_path / kind / "metrics.jsonl").read_text().splitlines()[-1])
        reached[kind] = row["heldout_accuracy"]
    assert reached["accumulate"] >= 0.9 and reached["none"] <= 0.2
    assert reached["none"] < reached["replace"] < reached["accumulate"] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["meanpool", "bi_tokens", "anchor_kv"])
def test_memories_that_see_both_ways_are_recalled_too(tmp_path: Path, kind: str) -> None:
    """With as many slots as two summaries of four vectors have; 100 steps teach about a half, and chance is 1/8."""
    fit_recall(kind, 0, 8, recall_training(100, evaluate_every=100), str(tmp_path))
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["heldout_accuracy"] >= 0.4
