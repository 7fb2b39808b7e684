"""Judgments on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging_parts import CLARITY, DEPTH, LONGER

from lmlab.judging import BadJudgment, JudgePairs, Judgment, flat_rows, read_judgments, write_judgments


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_judgments_come_back_as_they_were_written(suffix: str, tmp_path: Path) -> None:
    found = JudgePairs(LONGER, [CLARITY, DEPTH]).run([["a b", "because 12", "c"]]).judgments
    write_judgments(found, tmp_path / f"judgments{suffix}")
    back = list(read_judgments(tmp_path / f"judgments{suffix}"))
    assert back[0].texts == found[0].texts and back[0].prompts == found[0].prompts
    for name in found[0].average:
        np.testing.assert_array_equal(back[0].average[name], found[0].average[name])
        np.testing.assert_array_equal(back[0].votes[name], found[0].votes[name])


def test_the_flat_layout_goes_both_ways(tmp_path: Path) -> None:
    found = JudgePairs(LONGER, CLARITY).run([["a b", "because 12"]]).judgments
    rows = list(flat_rows(found, "clarity"))
    assert rows[0]["comparisons_avg"] == pytest.approx(
        (rows[0]["comparisons_forward"] + 1 - rows[0]["comparisons_backward"]) / 2
    )
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert next(iter(read_judgments(tmp_path / "flat.jsonl"))).average["clarity"][0, 1] == pytest.approx(
        rows[0]["comparisons_avg"]
    )


@pytest.mark.parametrize(
    "matrix",
    [
        [[-100, 0.7]],
        [[-100, 0.7], [0.4, -100]],
        [[-100, 1.7], [-0.7, -100]],
        [[-100, "x"], [0.3, -100]],
        [[-100, 0.7, 0.1], [0.3, -100, 0.1]],
    ],
)
def test_labels_that_cannot_be_are_an_error_with_their_row(matrix: Any, tmp_path: Path) -> None:
    good = {"texts": ["a", "b"], "q_average": [[-100, 0.7], [0.3, -100]]}
    (tmp_path / "j.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps({"texts": ["a", "b"], "q_average": matrix}) + "\n"
    )
    with pytest.raises(BadJudgment, match="row 2"):
        list(read_judgments(tmp_path / "j.jsonl"))


def test_missing_labels_are_exempt_from_the_sum(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(
        json.dumps({"texts": ["a", "b"], "q_average": [[-100, -100], [-100, -100]]}) + "\n"
    )
    judgment: Judgment = next(iter(read_judgments(tmp_path / "j.jsonl")))
    assert (judgment.average["q"] == -100).all()
