"""What is found at a place that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.runs import Vocabulary


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A run whose stage has no tokenizer, beside a model that has nothing to do with it."""
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "tokenizer.json", {})
    write_json(tmp_path / "run" / "manifest.json", {"stages": {"collect": {}}})
    (tmp_path / "run" / "collect").mkdir()
    return tmp_path


@pytest.mark.parametrize("place", ["run", "run/collect"])
def test_another_models_tokenizer_beside_a_run_is_not_taken(beside: Path, place: str):
    with pytest.raises(UserError, match="a tokenizer"):
        Vocabulary.find(beside / place)


def test_a_checkpoint_has_the_tokenizer_of_its_stage(beside: Path):
    checkpoint = beside / "checkpoints" / "step-00000001"
    write_json(checkpoint / "state.json", {})
    assert Vocabulary.find(checkpoint).path == beside / "model"
