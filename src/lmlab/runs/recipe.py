"""Recipes: an ordered list of stages as a YAML file.

name: demo
seed: 0
stages:
  documents: {kind: collect, ...}
  tokenizer: {kind: train_tokenizer, documents: documents, ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmlab.config import Config, apply_overrides, load_yaml, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.runs.stage import Stage, find_stage, input_fields


class _RecipeConfig(Config):
    name: str
    seed: int = 0
    description: str = ""
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RecipeStage:
    """A validated stage: its name, kind, implementation, configuration, and where each input comes from (a stage's name or a path)."""

    name: str
    kind: str
    stage: Stage[Any]
    config: Config
    inputs: Mapping[str, str | Path]


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    seed: int
    description: str
    stages: tuple[RecipeStage, ...]

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe file; `STAGE.key=value` overrides a stage's key, `seed=1` and `name=x` the recipe's own."""
        data = load_yaml(path)
        stages = data.get("stages")
        names = set(stages) if isinstance(stages, dict) else set()
        prefixed = []
        for override in overrides:
            first = override.partition("=")[0].split(".")[0].strip()
            if first not in names | {"stages", *_RecipeConfig.model_fields}:
                raise UserError(f"--set {override}: the recipe has no stage or key '{first}'. {did_you_mean(first, names | {'seed', 'name'})}")
            prefixed.append(f"stages.{override}" if first in names else override)
        return cls.parse(apply_overrides(data, prefixed), f"'{path}'")

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str) -> Recipe:
        """Validate a recipe given as a mapping.

        Raises:
            UserError: unknown keys or kinds, wrong types, inputs that are neither a path nor an earlier stage; the message names the field.
        """
        recipe = validate(_RecipeConfig, data, where)
        if not recipe.stages:
            raise UserError(f"{where}: the recipe has no stages.")
        stages: list[RecipeStage] = []
        for name, settings in recipe.stages.items():
            place = f"{where}, stage '{name}'"
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UserError(f"{place}: a stage's name may hold letters, digits, - and _ only.")
            kind = settings.get("kind")
            if not isinstance(kind, str):
                raise UserError(f"{place}: the key 'kind' is required.")
            stage = find_stage(kind, place)
            config = validate(stage.config_type, {key: value for key, value in settings.items() if key != "kind"}, place)
            earlier = {each.name for each in stages}
            inputs = {key: _resolve(value, key, earlier, place) for key, value in input_fields(config).items()}
            stages.append(RecipeStage(name, kind, stage, config, inputs))
        return cls(recipe.name, recipe.seed, recipe.description, tuple(stages))

    def to_yaml(self) -> str:
        """The recipe with every default spelled out."""
        stages = {each.name: {"kind": each.kind, **each.config.model_dump(mode="json")} for each in self.stages}
        data = {"name": self.name, "seed": self.seed, "description": self.description, "stages": stages}
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _resolve(value: str, key: str, earlier: set[str], place: str) -> str | Path:
    if value in earlier:
        return value
    path = Path(value).expanduser()
    if path.exists():
        return path.resolve()
    raise UserError(f"{place}: {key}: '{value}' is neither an earlier stage nor an existing path. {did_you_mean(value, earlier)}")
