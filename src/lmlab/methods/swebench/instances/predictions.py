"""Predictions: for an instance, the patch that a model proposes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import kind_of, read_json, read_jsonl, require_mapping, write_jsonl
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import shown

GOLD = "gold"


@dataclass(frozen=True)
class Prediction:
    """A proposed patch.

    Attributes:
        patch: a unified diff; None where the model gave none.
        extra: what else was recorded, such as `full_output` and `cost`.
    """

    instance_id: str
    model: str
    patch: str | None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def empty(self) -> bool:
        """There is nothing to apply."""
        return self.patch is None or not self.patch.strip()

    def to_row(self) -> dict[str, Any]:
        """The record that the public harness reads."""
        return {
            "instance_id": self.instance_id,
            "model_name_or_path": self.model,
            "model_patch": self.patch,
            **self.extra,
        }


def load_predictions(source: str | Path, instances: Sequence[Instance]) -> list[Prediction]:
    """Read predictions: `.jsonl`, `.json` with a list or a mapping of ids, or the word `gold` for the reference
    solutions.

    Raises:
        UserError: the file cannot be read, names an unknown instance, or has two patches of one model for one.
    """
    if str(source) == GOLD:
        if missing := [each.instance_id for each in instances if not each.patch]:
            raise UserError(f"The instances have no gold patch: {shown(missing)}.")
        return [Prediction(each.instance_id, GOLD, each.patch) for each in instances]
    path, known = Path(source), {each.instance_id for each in instances}
    found: dict[tuple[str, str], Prediction] = {}
    for where, row in _rows(path):
        prediction = _prediction(row, where)
        key = prediction.instance_id, prediction.model
        if found.setdefault(key, prediction).patch != prediction.patch:
            raise UserError(f"{where}: a second, different patch of '{key[1]}' for '{key[0]}'.", "Remove one of them.")
    if unknown := sorted({each.instance_id for each in found.values()} - known):
        raise UserError(f"'{path}' has patches for instances that the dataset has not: {shown(unknown)}.")
    if not found:
        raise UserError(f"'{path}' has no predictions.")
    return list(found.values())


def by_model(predictions: Iterable[Prediction]) -> dict[str, dict[str, Prediction]]:
    """Model to id to prediction."""
    found: dict[str, dict[str, Prediction]] = {}
    for each in predictions:
        found.setdefault(each.model, {})[each.instance_id] = each
    return found


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Write JSON lines; how many."""
    return write_jsonl(path, (each.to_row() for each in predictions))


def _rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    if path.suffix == ".json":
        found = read_json(path)
        if isinstance(found, dict):
            for key, row in found.items():
                where = f"'{path}', entry '{key}'"
                yield where, {"instance_id": key} | require_mapping(row, where)
            return
        if not isinstance(found, list):
            raise UserError(f"'{path}' is neither a list of predictions nor a mapping of ids to them.")
        yield from (
            (f"'{path}', entry {place}", require_mapping(row, f"'{path}', entry {place}"))
            for place, row in enumerate(found, 1)
        )
    elif path.name.removesuffix(".gz").endswith(".jsonl"):
        yield from ((f"'{path}', line {number}", row) for number, row in enumerate(read_jsonl(path), 1))
    else:
        raise UserError(f"'{path}': predictions are .jsonl or .json files, or the word 'gold'.")


def _prediction(row: dict[str, Any], where: str) -> Prediction:
    row = dict(row)
    instance_id, model = row.pop("instance_id", None), row.pop("model_name_or_path", None)
    patch = row.pop("model_patch", None)
    if not isinstance(instance_id, str):
        raise UserError(f"{where} has no 'instance_id'.")
    if patch is not None and not isinstance(patch, str):
        raise UserError(f"{where}: 'model_patch' is text, not {kind_of(patch)}.")
    return Prediction(instance_id, model if isinstance(model, str) and model else "None", patch, row)
