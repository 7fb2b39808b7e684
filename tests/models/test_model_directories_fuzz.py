"""Random model directories of every family: what lmlab reads and writes equals `transformers`, or is refused by name.

`benchmarks/fuzz_models.py` runs 300 of them.
"""

from __future__ import annotations

import pytest
from compared_directories import compare
from odd_directories import compare_adapters, compare_refusals, compare_tokenizer
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


@pytest.mark.parametrize("seed", range(10))
def test_random_adapters_are_those_of_peft_or_refused(seed, tmp_path):
    found = compare_adapters(2000 + seed, tmp_path)
    assert not found.wrong
    if found.refused is not None:
        assert "does not support" in found.refused


@pytest.mark.parametrize("seed", range(6))
def test_tokenizers_that_were_used_and_their_templates_are_those_of_transformers(seed, tmp_path):
    assert not compare_tokenizer(3000 + seed, tmp_path).wrong


@pytest.mark.parametrize("seed", range(8))
def test_what_lmlab_does_not_have_is_called_so(seed, tmp_path):
    found = compare_refusals(4000 + seed, tmp_path)
    assert found.refused and not found.wrong
