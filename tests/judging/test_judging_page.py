"""The example of the documentation's page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "judging.md"


def test_the_example_of_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    scores, figures, accuracy = done.stdout.splitlines()
    low, middle, high = sorted(map(float, scores.strip("[]").split()))
    assert low < middle < high and abs(low + middle + high) < 1e-6
    assert "'swap_consistency': 1.0" in figures and accuracy.startswith("Interval(value=1.0, low=0.4")
