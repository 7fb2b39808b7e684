"""Recipes: an ordered list of stages as a YAML file.

name: demo
seed: 0
stages:
  documents: {kind: collect, ...}
  tokenizer: {kind: train_tokenizer, documents: documents, ...}

A recipe that `extends` another adds stages to it and changes or removes some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.config import Config, apply_overrides, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.files import read_yaml, write_yaml
from lmlab.files.packaged import packaged_recipes, recipe_file
from lmlab.redaction import redact_all
from lmlab.runs.stage import InputField, Stage, find_stage, input_fields

_STORED = "recipe.yaml"  # what a run keeps of its recipe


class _RecipeConfig(Config):
    name: str
    seed: int = 0
    description: str = ""
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RecipeStage:
    """A validated stage: its name, kind, implementation, configuration, and where each input comes from (a stage's name
    or a path).
    """

    name: str
    kind: str
    stage: Stage[Any, Any]
    config: Config
    inputs: Mapping[str, str | Path]


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        absent: of a recipe that is only to be planned, what its stages read from that is not there.
    """

    name: str
    seed: int
    description: str
    stages: tuple[RecipeStage, ...]
    absent: tuple[UserError, ...] = ()

    @classmethod
    def load(
        cls, source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), planning: bool = False
    ) -> Recipe:
        """Read a recipe file and those that it extends, or take what one holds; `STAGE.key=value` overrides a stage's
        key, `seed=1` and `name=x` the recipe's own. `planning` is that of `parse`.
        """
        return cls.parse(read_recipe(source, overrides), called(source), planning=planning)

    @classmethod
    def stored(cls, run: str | Path) -> Recipe:
        """The recipe of a run as it was carried out, from the run's directory alone: where its stages once read from is
        not looked for, and no stage has inputs.

        Raises:
            UserError: `run` is no directory of a run, or this version of lmlab does not know its recipe.
        """
        run = Path(run)
        path = run / _STORED
        if not path.is_file():
            raise UserError(f"'{run}' is not the directory of a run ({_STORED} is missing).")
        return cls.parse(read_yaml(path), f"'{path}'", find_inputs=False)

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str, find_inputs: bool = True, planning: bool = False) -> Recipe:
        """Validate a recipe given as a mapping.

        Arguments:
            find_inputs: look for what its stages read from.
            planning: what is not there is noted in `absent`, in place of an error, so that the plan can be seen before.

        Raises:
            UserError: unknown keys or kinds, wrong types, inputs that are neither a path nor an earlier stage; the
                message names the field.
        """
        if "stages" not in data:
            raise UserError(
                f"{where} is no recipe: it has no stages.",
                "The first lines of a file of lmlab's own say which command reads it.",
            )
        recipe = validate(_RecipeConfig, data, where)
        if not recipe.stages:
            raise UserError(f"{where}: the recipe has no stages.")
        stages: list[RecipeStage] = []
        absent: dict[str, UserError] = {}
        for name, settings in recipe.stages.items():
            place = f"{where}, stage '{name}'"
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UserError(f"{place}: a stage's name may hold letters, digits, - and _ only.")
            kind = settings.get("kind")
            if not isinstance(kind, str):
                raise UserError(f"{place}: the key 'kind' is required.")
            stage = find_stage(kind, place)
            config = validate(
                stage.config_type, {key: value for key, value in settings.items() if key != "kind"}, place
            )
            earlier = {each.name: each for each in stages}
            inputs = {
                key: _resolve(value, key, earlier, place, absent if planning else None)
                for key, value in (input_fields(config).items() if find_inputs else ())
            }
            stages.append(RecipeStage(name, kind, stage, config, inputs))
        return cls(recipe.name, recipe.seed, recipe.description, tuple(stages), tuple(absent.values()))

    def to_yaml(self) -> str:
        """The recipe with every default spelled out, and without the secrets of locations."""
        stages = {each.name: {"kind": each.kind, **each.config.model_dump(mode="json")} for each in self.stages}
        data = {"name": self.name, "seed": self.seed, "description": self.description, "stages": stages}
        return write_yaml(redact_all(data))


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a recipe says, as a mapping that is not validated yet: `Recipe.load` without its last step."""
    data = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    stages = data.get("stages")
    names = set(stages) if isinstance(stages, dict) else set()
    prefixed = []
    for override in overrides:
        first = override.partition("=")[0].split(".")[0].strip()
        if first not in names | {"stages", *_RecipeConfig.model_fields}:
            raise UserError(
                f"--set {override}: the recipe has no stage or key '{first}'."
                f" {did_you_mean(first, names | {'seed', 'name'})}"
            )
        prefixed.append(f"stages.{override}" if first in names else override)
    return apply_overrides(data, prefixed)


def called(source: str | Path | Mapping[str, Any]) -> str:
    """What a recipe is called in messages."""
    return "the recipe" if isinstance(source, Mapping) else f"'{source}'"


def _read(place: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = recipe_file(place)
    if path.resolve() in readers:
        raise UserError(
            f"'{path}' extends itself by way of {' and '.join(repr(str(each)) for each in readers)}.",
            "Remove one 'extends'.",
        )
    data = read_yaml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"'{path}': extends: the path of one recipe is needed.")
    under = path.parent / Path(base).expanduser()
    if not under.exists() and Path(base).stem in packaged_recipes() and len(Path(base).parts) == 1:
        under = recipe_file(base)  # a copy of one that extends another still does
    if not under.exists():
        raise UserError(
            f"'{path}': extends: no such file: '{under}'.",
            "The path starts from the directory of the recipe that names it.",
        )
    return _extend(_read(under, (*readers, path.resolve())), data, f"'{path}'")


def _extend(base: Mapping[str, Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`base` with what `data` adds and changes. Stages that read all others, such as a report, stay last."""
    stages, changes = base.get("stages"), data.get("stages", {})
    if not isinstance(stages, dict) or not isinstance(changes, dict):
        return {**base, **data}  # refused with a message when it is validated
    merged = dict(stages)
    for name, settings in changes.items():
        before = merged.get(name)
        if settings is not None:
            same = (
                isinstance(before, dict)
                and isinstance(settings, dict)
                and settings.get("kind", before.get("kind")) == before.get("kind")
            )
            merged[name] = _merged(before, settings) if same else settings
        elif merged.pop(name, None) is None:
            raise UserError(f"{where}: there is no stage '{name}' to remove. {did_you_mean(name, merged)}")

    def last(name: str) -> bool:
        kind = merged[name].get("kind") if isinstance(merged[name], dict) else None
        return isinstance(kind, str) and find_stage(kind, f"{where}, stage '{name}'").reads_all_stages

    return {**base, **data, "stages": {name: merged[name] for name in sorted(merged, key=last)}}


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}


def _resolve(
    field: InputField, key: str, earlier: Mapping[str, RecipeStage], place: str, absent: dict[str, UserError] | None
) -> str | Path:
    value, wanted = field.value, field.artifact
    if value in earlier:
        stage = earlier[value]
        if wanted is not None and wanted not in stage.stage.gives:
            given = " and ".join(each.called for each in stage.stage.gives) or "nothing that another stage reads"
            fits = [name for name, each in earlier.items() if wanted in each.stage.gives]
            raise UserError(
                f"{place}: {key}: {wanted.called} is needed, and the stage '{value}' ({stage.kind}) gives {given}.",
                f"Name {' or '.join(fits)}." if fits else "Add a stage before it that does.",
            )
        return value
    path = Path(value).expanduser()
    if path.exists():
        return path.resolve()
    error = UserError(
        f"{place}: {key}: '{value}' is neither an earlier stage nor an existing path. {did_you_mean(value, earlier)}",
        "It is made by another recipe: run that first." if value.startswith("runs/") else "",
    )
    if absent is None:
        raise error
    absent.setdefault(value, error)
    return path
