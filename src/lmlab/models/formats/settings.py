"""`config.json` to a configuration and back, by the table of families."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lmlab.config import validate
from lmlab.errors import UserError, did_you_mean
from lmlab.models.config import ModelConfig
from lmlab.models.formats.families import FAMILIES
from lmlab.models.formats.families.family import Family, Settings
from lmlab.models.formats.families.layer_kinds import fits_windows, write_windows
from lmlab.models.formats.rope_settings import rope_from_settings, rope_to_settings

_VALUES: dict[str, dict[Any, Any]] = {
    "activation": {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "quick_gelu": "gelu_quick",
        "relu": "relu",
    },
    "norm_position": {True: "pre", False: "post"},  # OPT's do_layer_norm_before
    "qk_norm": {True: "head", False: "none"},  # Phi's qk_layernorm
}
"""For the fields whose values have other names there: theirs to ours; the first of several is written."""


_NOT_YET = {
    "mpnet": "its attention adds learned biases of relative positions, which lmlab's has not",
    "gpt_oss": "its attention has sinks, a learned logit for each head in the softmax, which lmlab's has not",
}
"""Architectures that are near to one of the table, and what stands in the way."""


def family_of(config: ModelConfig, preferred: str | None = None) -> Family | None:
    """The Hugging Face family that can express this configuration, None if there is none.

    Arguments:
        preferred: taken where several can; else it is the first of the table.
    """
    found = [family for family in FAMILIES if _expresses(family, config)]
    return next((family for family in found if family.model_type == preferred), found[0] if found else None)


def find_family(settings: Settings, where: str) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: its `model_type` is not one that lmlab knows.
    """
    _refuse_quantized(settings, where)
    model_type = settings.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is not None:
        return family
    if model_type in _NOT_YET:
        raise UserError(f"{where}: the model type '{model_type}' is not supported: {_NOT_YET[model_type]}.")
    known = sorted(family.model_type for family in FAMILIES)
    reads = f"lmlab reads {', '.join(known)}."
    if isinstance(settings.get("auto_map"), dict):
        raise UserError(
            f"{where}: the model type '{model_type}' is code of the checkpoint itself (auto_map), which lmlab never"
            " runs.",
            reads,
        )
    if str(model_type) in _transformers_types():  # a real architecture, so no slip of the pen
        raise UserError(f"{where}: the model type '{model_type}' is not supported.", reads)
    near = did_you_mean(str(model_type), known)
    raise UserError(
        f"{where}: the model type '{model_type}' is not supported." + (f" {near}" if "Did you" in near else ""), reads
    )


def _refuse_quantized(settings: Settings, where: str) -> None:
    found = settings.get("quantization_config") or settings.get("compression_config")
    if not found:
        return
    method = found.get("quant_method") if isinstance(found, dict) else None
    raise UserError(
        f"{where}: the checkpoint is quantized ({method or 'quantization_config'}), which lmlab does not read.",
        "Take the checkpoint that it was made from, or let transformers de-quantize it (model.dequantize()).",
    )


def _transformers_types() -> Collection[str]:
    """The architectures that `transformers` knows, none where it is not installed."""
    try:
        from transformers.models.auto import configuration_auto
    except ImportError:
        return ()
    names: Collection[str] = vars(configuration_auto).get("CONFIG_MAPPING_NAMES", ())
    return names


def to_settings(config: ModelConfig, family: Family) -> Settings:
    """The content of `config.json`, without token ids."""
    settings: Settings = {
        "architectures": [family.classifier if config.num_labels else family.language_model],
        "model_type": family.model_type,
    }
    settings |= {theirs: _theirs(ours, _get(config, ours)) for ours, theirs in family.keys.items()} | family.constants
    if config.num_labels is not None:
        labels = {str(index): f"LABEL_{index}" for index in range(config.num_labels)}
        settings |= {"id2label": labels, "label2id": {name: int(index) for index, name in labels.items()}}
    settings |= {key: settings[other] for key, other in family.equal_keys.items()}
    settings |= write_windows(config, family) | family.write(config)
    if config.positions == "rotary":
        settings |= rope_to_settings(config, family)
    return settings


def from_settings(settings: Settings, family: Family, path: Path) -> ModelConfig:
    """The configuration that a `config.json` describes.

    Raises:
        UserError: it asks for what lmlab does not have, or a value is impossible; all problems at once.
    """
    expected = family.constants | {key: settings.get(other) for key, other in family.equal_keys.items()}
    problems = [f"{key} = {settings[key]}" for key, value in expected.items() if settings.get(key, value) != value]
    data: Settings = {}
    settings = {family.other_keys.get(key, key): value for key, value in settings.items()}
    for ours, theirs in family.keys.items():
        value = settings.get(theirs)
        if value is None:
            value = family.defaults.get(ours)
        elif ours in _VALUES:
            if not isinstance(value, str | bool) or value not in _VALUES[ours]:
                problems.append(f"{theirs} = {value}")
                continue
            value = _VALUES[ours][value]
        if value is not None:
            _set(data, ours, value)
    for ours, value in family.features.items():
        _set(data, ours, value)
    family.read(settings, data, problems)
    if family.features["positions"] == "rotary":
        rope_from_settings(settings, family, data, problems)
    if problems:
        raise UserError(f"'{path}': lmlab's {family.model_type} does not support " + "; ".join(problems) + ".")
    architectures, labels = settings.get("architectures"), settings.get("id2label")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not family.features["lm_head"] and "Classification" in first:
        raise UserError(f"'{path}': lmlab reads encoders without the head of {first}.")
    if first.endswith(("ForTokenClassification", "ForQuestionAnswering")):
        raise UserError(f"'{path}': lmlab reads language models and sequence classifiers, not {first}.")
    if first.endswith("ForSequenceClassification"):
        data["num_labels"] = settings.get("num_labels") or (len(labels) if isinstance(labels, dict) and labels else 2)
    return validate(ModelConfig, data, f"'{path}'")


def why_no_family(config: ModelConfig) -> str:
    """A sentence: what keeps a model from the Hugging Face family that comes nearest to it.

    Raises:
        ValueError: a family can express it.
    """
    family, misfits = min(((each, _misfits(each, config)) for each in FAMILIES), key=lambda found: len(found[1]))
    if not misfits:
        raise ValueError(f"{family.model_type} expresses this configuration")
    return (
        f"No Hugging Face family has all features of this model: the nearest, {family.model_type}, lacks"
        f" {', '.join(misfits)}."
    )


def _expresses(family: Family, config: ModelConfig) -> bool:
    return not _misfits(family, config)


def _misfits(family: Family, config: ModelConfig) -> list[str]:
    """What a model has that a family cannot express."""
    found = [
        f"{name}: {json.dumps(_get(config, name))}"
        for name, value in family.features.items()
        if _get(config, name) != value
    ]
    if not fits_windows(config, family):
        found.append("these sliding windows")
    if not _fits_rope(config, family):
        found.append("these rotary positions")
    if config.num_labels is not None and family.classifier is None:
        found.append("a scalar head")
    shared: dict[str, tuple[str, Any]] = {}
    for ours, theirs in family.keys.items():
        other, value = shared.setdefault(theirs, (ours, _get(config, ours)))
        if value != _get(config, ours):
            found.append(f"{ours} without {other}" if _get(config, ours) else f"{other} without {ours}")
    if not found and not family.fits(config):
        found.append(
            "a key for " + ("such widths of heads" if config.moe is None else "such experts or widths of heads")
        )
    return found


def _get(config: ModelConfig, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _fits_rope(config: ModelConfig, family: Family) -> bool:
    if family.partial is None and config.partial_rotary_factor != 1:
        return False
    if not family.rope_of_kinds and config.sliding_rope_theta is not None:
        return False
    return config.rope_scaling is None or family.scalings is None or config.rope_scaling.type in family.scalings


def _set(data: Settings, dotted: str, value: Any) -> None:
    *parents, name = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[name] = value


def _theirs(ours: str, value: Any) -> Any:
    return next(theirs for theirs, mine in _VALUES[ours].items() if mine == value) if ours in _VALUES else value
