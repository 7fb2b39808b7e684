"""The `adapter_config.json` of the `peft` library: what of it lmlab reads, and what it refuses by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.files import read_json

CONFIG = "adapter_config.json"
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the base model's weights
_WITHOUT_EFFECT = frozenset(
    (
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "layers_pattern",
        "megatron_core",
        "runtime_config",
        "qalora_group_size",
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "corda_config",
        "ensure_weight_tying",  # both tensors are in the file then
    )
)
"""What describes how adapters were made or are run, and not what they compute."""

_FOLDED = frozenset(("use_dora", "lora_bias"))  # see fold.py

_Rank = Annotated[int, Field(strict=True, gt=0, le=2**16)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class AdapterSettings(BaseModel):
    """What the file says of the adapters; every other key is in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    r: _Rank = 8
    lora_alpha: _Number = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool | None = False
    fan_in_fan_out: bool | None = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Number] | None = None
    target_modules: StrictStr | list[StrictStr] | None = None
    exclude_modules: StrictStr | list[StrictStr] | None = None
    target_parameters: list[StrictStr] | None = None
    modules_to_save: list[StrictStr] | None = None
    layers_to_transform: StrictInt | list[StrictInt] | None = None

    @field_validator("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
    @classmethod
    def _are_patterns(cls, value: Any) -> Any:
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression ({error})") from None
        return value


def read_adapter_settings(directory: Path) -> dict[str, Any]:
    """The settings of a directory of adapters.

    Raises:
        UserError: there are none, they are malformed, or the adapters are of a kind that lmlab does not have.
    """
    path = directory / CONFIG
    if not path.exists():
        raise UserError(f"'{directory}' is not a directory of adapters ({CONFIG} is missing).")
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"'{path}' does not hold a mapping.", "Copy the adapters again.")
    settings = validate(AdapterSettings, found, f"'{path}'")
    expected: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", "all", "lora_only"),
        "init_lora_weights": _PLAIN_INITS,
    }
    extra = settings.model_extra or {}
    problems = [f"{key} = {extra[key]}" for key, values in expected.items() if extra.get(key, values[0]) not in values]
    problems += [
        f"{key} = {value}"
        for key, value in extra.items()
        if value and key not in expected and key not in _WITHOUT_EFFECT and key not in _FOLDED
    ]
    if problems:
        raise UserError(
            f"'{path}': lmlab does not support " + "; ".join(problems) + ".",
            "Fold the adapters into the model with the peft library (merge_and_unload), and use the result.",
        )
    return settings.model_dump()
