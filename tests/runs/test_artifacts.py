"""What is found at a place that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.models import LoRAConfig
from lmlab.runs import Model, Vocabulary
from lmlab.runs.artifacts import ADAPTERS


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


@pytest.mark.parametrize("loop", [["model"], ["model", "other"]])
def test_adapters_whose_base_leads_back_to_them_are_refused(tmp_path: Path, loop: list[str]):
    lora = LoRAConfig().model_dump(mode="json")
    for name, base in zip(loop, [*loop[1:], loop[0]], strict=True):
        write_json(tmp_path / name / "checkpoints" / "step-00000001" / "state.json", {"step": 1})
        write_json(tmp_path / name / "checkpoints" / ADAPTERS, {"base": f"../../{base}", "lora": lora})
    with pytest.raises(UserError, match="is itself based on it"):
        Model.find(tmp_path / "model")
