"""The scripts that measure circuits: what they need is asked for before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "edge_pruning.py"


@pytest.mark.parametrize(("part", "told"), [("small", "small needs --out DIR"), ("ioi", "ioi needs --model DIR")])
def test_a_part_that_needs_a_folder_asks_for_it_at_once(tmp_path, part, told):
    done = subprocess.run([sys.executable, SCRIPT, part], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and done.stdout == ""
