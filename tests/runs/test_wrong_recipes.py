"""Whatever a recipe holds, at any depth, is refused by a sentence that names the field: hundreds of odd recipes of
every kind of stage, the same ones each time.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from lmlab import plugins
from lmlab.config import _models_in
from lmlab.errors import UserError
from lmlab.runs import Recipe
from lmlab.runs.stage import find_stage

Path = tuple[tuple[str, type[BaseModel] | None], ...]
_DEEPEST = 5
_OF_A_KIND = 12


def _nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"a": [found]}
    return found


ODD: list[Any] = [
    None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\x00", "x" * 5000, "1e400", "-5B",
    [], [[]], [1], ["x", None], [{"x": 1}], {}, {1: 2}, {None: 1}, {True: [1]}, {"kind": "x"}, {"kind": {}},
    {"x": [{}]}, datetime.date(2020, 1, 1), b"x", {1}, -(2**70), _nested(60),
]  # fmt: skip


def _paths(model: type[BaseModel], before: Path = ()) -> Iterator[Path]:
    """Every field of a configuration, and those of the configurations in it."""
    for name, info in model.model_fields.items():
        yield (*before, (name, None))
        if len(before) < _DEEPEST:
            for inner in _models_in(info.annotation):
                yield from _paths(inner, (*before, (name, inner)))


def _placed(path: Path, value: Any) -> dict[str, Any]:
    """A mapping that has a value at a path; alternatives are chosen by their kind."""
    for name, inner in reversed(path):
        kind = None if inner is None else inner.model_fields.get("kind")
        if kind is not None and isinstance(value, dict) and (tags := get_args(kind.annotation)):
            value = {"kind": tags[0], **value}
        value = {name: value}
    return dict(value)


def test_odd_values_at_any_depth_are_refused_in_a_sentence() -> None:
    kinds = plugins.known("stages")
    assert {"collect", "train", "report"} <= set(kinds)
    draw, told = random.Random(0), list[tuple[Any, str]]()
    for kind in kinds:
        paths = [*_paths(find_stage(kind, "the test").config_type)]
        for path in [draw.choice(paths) for _ in range(_OF_A_KIND)] if paths else []:
            stage = {"kind": kind, **_placed(path, draw.choice(ODD))}
            try:
                Recipe.parse({"name": "odd", "stages": {"one": stage}}, "'odd.yaml'", find_inputs=False).to_yaml()
            except UserError as error:
                told.append((stage, error.message))
    assert len(told) > 200
    for stage, message in told:
        assert message.startswith("'odd.yaml'"), (stage, message)
        assert "pydantic" not in message, (stage, message)
