"""How the makers of a model want texts to be drawn: the `generation_config.json` of a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, StrictBool

from lmlab.config import validate
from lmlab.files import read_mapping

_TokenId = Annotated[int, Field(strict=True)]


class _File(BaseModel):
    """What of the file says how to continue a text; what it says beyond that is for other kinds of generation."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    do_sample: StrictBool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_k: NonNegativeInt | None = None
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: PositiveFloat | None = None
    max_new_tokens: PositiveInt | None = None
    eos_token_id: _TokenId | list[_TokenId] | None = None


def generation_defaults(directory: str | Path) -> dict[str, Any]:
    """The fields of `GenerationConfig` that a model directory sets: temperature (0 where it says not to sample), top_k,
    top_p, min_p, repetition_penalty, max_new_tokens.

    Raises:
        UserError: the file is malformed.
    """
    directory = Path(directory)
    found = _read(directory)
    fields = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    defaults = {name: value for name in fields if (value := getattr(found, name)) is not None}
    if defaults.get("top_k") == 0:  # there, no limit
        defaults["top_k"] = None
    if defaults.get("top_p") == 0:  # the fewest tokens are still one
        defaults |= {"top_p": None, "top_k": 1}
    if found.do_sample is False:
        defaults["temperature"] = 0.0
    return defaults


def end_token_ids(directory: str | Path) -> tuple[int, ...]:
    """The tokens that end a text, by `generation_config.json`; none where it says nothing.

    Raises:
        UserError: the file is malformed.
    """
    directory = Path(directory)
    known = _read(directory).eos_token_id
    return tuple(known) if isinstance(known, list) else () if known is None else (known,)


def _read(directory: Path) -> _File:
    path = directory / "generation_config.json"
    return validate(_File, read_mapping(path), f"'{path}'") if path.exists() else _File()
