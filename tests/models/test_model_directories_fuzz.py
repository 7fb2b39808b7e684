"""Random model directories of every family: what lmlab reads and writes equals `transformers`, or is refused by name.

`benchmarks/fuzz_models.py` runs 300 of them.
"""

from __future__ import annotations

import pytest
from compared_directories import compare
from random_directories import FAMILIES, draw_directory


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(2))
def test_a_random_directory_is_exact_or_refused(family, number, tmp_path):
    seed = 1000 + 31 * FAMILIES.index(family) + number
    drawn = draw_directory(seed, tmp_path / "model", family)
    found = compare(drawn, tmp_path / "model", seed)
    assert not found.wrong, (drawn.config, drawn.notes)
    if found.refused is not None:
        assert drawn.refused or "does not support" in found.refused, found.refused
