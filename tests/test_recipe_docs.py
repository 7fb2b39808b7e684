"""docs/recipes.md names the keys that stages and sources have: none that does not exist, and none left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from lmlab import plugins
from lmlab.data import MixtureOrder, source_kinds
from lmlab.models import ModelConfig
from lmlab.stages.parts.adapters import Adapters
from lmlab.stages.train import MixtureInput
from lmlab.train import TrainerConfig

_PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
_SHARED = {"model": [ModelConfig], "trainer": [TrainerConfig], "Adapters": [Adapters]}
_SHARED |= {"mixtures": [MixtureInput, MixtureOrder]}
_READ_AT_FIRST = {"model": ["preset"]}  # keys that become others before the fields are read
_SOURCES = "Sources"  # the section whose table has what all sources share


def _sections() -> dict[str, list[str]]:
    """The keys of every section: the names in the first columns of its tables of keys."""
    found: dict[str, list[str]] = {}
    heading, in_table = "", False
    for line in _PAGE.read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) < 3:
            in_table = False
        elif cells[1].startswith("key"):
            in_table = True
        elif in_table and not set(cells[1]) <= {"-", ":"}:
            found.setdefault(heading, []).extend(re.findall(r"`([^`]+)`", cells[1]))
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configurations that a field may hold, in lists, mappings and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _inner(models: list[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    return [
        each for model in models if name in model.model_fields for each in _models(model.model_fields[name].annotation)
    ]


def _unknown(models: list[type[BaseModel]], keys: list[str]) -> Iterator[str]:
    """Documented keys that there are not."""
    for key in keys:
        *path, last = key.split(".")
        at = models
        for name in path:
            at = _inner(at, name)
        if not any(last in model.model_fields for model in at):
            yield key


def _missing(models: list[type[BaseModel]], keys: list[str], prefix: str = "") -> Iterator[str]:
    """Fields that are not documented: by themselves, or by every field that they have themselves."""
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        if name == "kind" or prefix + name in keys:
            continue
        if any(key.startswith(f"{prefix}{name}.") for key in keys):
            yield from _missing(_inner(models, name), keys, f"{prefix}{name}.")
        else:
            yield prefix + name


_KEYS = _sections()
_DESCRIBED = {
    kind: [plugins.find("stages", kind, "kind of stage", "here").config_type] for kind in plugins.known("stages")
}
_DESCRIBED |= _SHARED


@pytest.mark.parametrize("section", _DESCRIBED)
def test_the_keys_of_a_section_are_those_of_the_configuration(section):
    keys = [key for key in _KEYS.get(section, []) if key not in _READ_AT_FIRST.get(section, [])]
    assert list(_unknown(_DESCRIBED[section], keys)) == [], "documented, and not there"
    assert list(_missing(_DESCRIBED[section], keys)) == [], "there, and not documented"


def test_the_keys_of_sources_are_those_of_their_configurations():
    shared = _KEYS[_SOURCES]
    for kind, made in source_kinds().items():
        own = [key for heading, keys in _KEYS.items() if kind in heading.split(", ") for key in keys]
        assert list(_missing([made], shared + own)) == [], kind
    every = list(source_kinds().values())
    for heading, keys in _KEYS.items():
        kinds = [source_kinds()[name] for name in heading.split(", ") if name in source_kinds()]
        if kinds or heading == _SOURCES:
            assert list(_unknown(kinds or every, keys)) == [], heading


def test_a_key_that_is_not_there_and_one_that_is_left_out_are_found():
    keys = [key for key in _KEYS["trainer"] if key != "clip_norm"]
    assert list(_unknown([TrainerConfig], [*keys, "stepps", "optimizer.lr"])) == ["stepps", "optimizer.lr"]
    assert list(_missing([TrainerConfig], keys)) == ["clip_norm"]
