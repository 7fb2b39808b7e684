"""Rotary positions in `config.json`: the older keys (`rope_theta`, `rope_scaling`) and the newer one
(`rope_parameters`), which may hold one section for each kind of layer.
"""

from __future__ import annotations

import math
from typing import Any

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family, Settings

_KINDS = ("full_attention", "sliding_attention")
_SCALINGS = ("linear", "dynamic", "yarn", "llama3", "longrope")
_OF_TYPE = {
    "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
_LOCAL_THETA = 10_000.0  # of Gemma 3's sliding layers
_PHI3_LENGTH = 4096  # the default of transformers' Phi3Config


def rope_to_settings(config: ModelConfig, family: Family) -> Settings:
    """All keys of a model's rotary positions, older and newer."""
    rope = _parameters(config)
    old = {key: value for key, value in rope.items() if key != "rope_theta"}
    found: Settings = {"rope_theta": config.rope_theta, "rope_parameters": rope}
    found["rope_scaling"] = None if rope["rope_type"] == "default" else old
    scaling = config.rope_scaling
    if scaling is not None and scaling.type == "dynamic":  # there, the length from which theta grows
        found["max_position_embeddings"] = scaling.original_max_seq_len
    if scaling is not None and family.model_type == "phi3":
        found["original_max_position_embeddings"] = scaling.original_max_seq_len
    if family.partial is not None:
        found |= {family.partial[0]: config.partial_rotary_factor}
        found["rope_parameters"] = {**rope, "partial_rotary_factor": config.partial_rotary_factor}
    if family.model_type == "gpt_neox":
        found["rotary_emb_base"] = config.rope_theta
    if family.rope_of_kinds:
        sliding = rope
        if config.sliding_rope_theta is not None:
            sliding = {"rope_type": "default", "rope_theta": config.sliding_rope_theta}
        found["rope_parameters"] = {"full_attention": rope, "sliding_attention": sliding}
        if family.model_type == "gemma3_text":
            found["rope_local_base_freq"] = sliding["rope_theta"]
    return found


def rope_from_settings(settings: Settings, family: Family, data: Settings, problems: list[str]) -> None:
    """Fill `rope_theta`, `rope_scaling` and what goes with them; what cannot be read goes to the problems."""
    scaling, parameters = (_mapping(settings, key, problems) for key in ("rope_scaling", "rope_parameters"))
    if scaling is None or parameters is None:
        return
    if any(key in parameters for key in _KINDS):
        if not family.rope_of_kinds:
            problems.append("rope_parameters by kinds of layers")
            return
        _read_kinds(settings, parameters, scaling, family, data, problems)
        return
    key = "rotary_emb_base" if family.model_type == "gpt_neox" else "rope_theta"
    rope = scaling or parameters
    theta = _first(rope.get("rope_theta"), parameters.get("rope_theta"), settings.get(key), family.rope_theta)
    if family.rope_of_kinds:
        sliding = {"rope_theta": _sliding_theta(settings, family, theta, problems)}
        _read_kinds(
            settings,
            {"full_attention": {**rope, "rope_theta": theta}, "sliding_attention": sliding},
            {},
            family,
            data,
            problems,
        )
        return
    data["rope_theta"] = theta
    _read_partial(settings, rope, family, data, problems)
    _read_scaling(settings, rope, family, data, problems)


def _sliding_theta(settings: Settings, family: Family, theta: Any, problems: list[str]) -> Any:
    """Where the older keys are alone: Gemma 3 has one of its own; versions of `transformers` differ on OLMo 3's."""
    if family.model_type == "gemma3_text":
        return _first(settings.get("rope_local_base_freq"), _LOCAL_THETA)
    if theta != family.rope_theta:
        problems.append(f"rope_theta = {theta} outside rope_parameters, which libraries read in different ways")
    return theta


def _read_kinds(
    settings: Settings, kinds: Settings, scaling: Settings, family: Family, data: Settings, problems: list[str]
) -> None:
    full, sliding = ({"rope_type": "default", **(_mapping(kinds, kind, problems) or {})} for kind in _KINDS)
    full |= scaling
    full["rope_theta"] = _first(full.get("rope_theta"), settings.get("rope_theta"), family.rope_theta)
    local = _LOCAL_THETA if family.model_type == "gemma3_text" else family.rope_theta
    sliding["rope_theta"] = _first(sliding.get("rope_theta"), settings.get("rope_local_base_freq"), local)
    data["rope_theta"] = full["rope_theta"]
    for each in (full, sliding):
        _read_partial(settings, each, family, data, problems)
    _read_scaling(settings, full, family, data, problems)
    if {**full, "type": None} == {**sliding, "type": None}:
        return
    if (sliding.get("rope_type") or "default") != "default":
        problems.append("rotary scaling of sliding layers")
    data["sliding_rope_theta"] = sliding["rope_theta"]


def _read_partial(settings: Settings, rope: Settings, family: Family, data: Settings, problems: list[str]) -> None:
    given = rope.get("partial_rotary_factor")
    if family.partial is None:
        given = _first(given, settings.get("partial_rotary_factor"), 1.0)
        if given != 1:
            problems.append(f"partial_rotary_factor = {given}")
        return
    key, default = family.partial
    data["partial_rotary_factor"] = _first(given, settings.get(key), default)


def _read_scaling(settings: Settings, rope: Settings, family: Family, data: Settings, problems: list[str]) -> None:
    kind = _first(rope.get("rope_type"), rope.get("type"), "default")
    if family.model_type == "phi3" and kind in ("su", "yarn"):  # older names of the same thing
        kind = "longrope"
    if kind == "default" and rope.get("mrope_section") is None:
        return
    if kind not in (family.scalings or _SCALINGS):
        problems.append(f"rotary scaling of type {'mrope' if kind == 'default' else kind}")
        return
    length = settings.get("max_position_embeddings", data.get("max_seq_len"))
    # as in transformers, a length beside the section counts before one inside it
    original = _first(settings.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings"))
    if family.model_type == "phi3":
        original = settings.get("original_max_position_embeddings", _PHI3_LENGTH)
    original = _first(original, length)
    factor = rope.get("factor")
    if not all(_is_number(each) for each in (length, original, *(() if factor is None else (factor,)))):
        problems.append(f"rotary scaling with the factor {factor} and the lengths {original} and {length}")
        return
    if factor is None:
        factor = length / original
    found: Settings = {"type": kind, "factor": factor}
    if kind == "dynamic":
        found["original_max_seq_len"] = length
        data["max_seq_len"] = round(length * factor)
    elif kind != "linear":
        found["original_max_seq_len"] = original
    if kind == "yarn":  # some files keep the pretraining length as that of the model
        data["max_seq_len"] = max(length, round(original * factor))
    found |= {key: rope[key] for key in _OF_TYPE.get(kind, ()) if rope.get(key) is not None}
    scales: tuple[Any, Any] = (rope.get("mscale"), rope.get("mscale_all_dim"))
    if kind == "yarn" and found.get("attention_factor") is None and all(_is_number(each) for each in scales):
        grown = math.log(max(factor, 1.0))
        found["attention_factor"] = (0.1 * scales[0] * grown + 1) / (0.1 * scales[1] * grown + 1)
    data["rope_scaling"] = found


def _parameters(config: ModelConfig) -> Settings:
    """The section `rope_parameters` of full layers."""
    scaling = config.rope_scaling
    rope: Settings = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = scaling.original_max_seq_len
    for key in _OF_TYPE.get(scaling.type, ()):
        if (value := getattr(scaling, key)) is not None:
            rope[key] = list(value) if isinstance(value, tuple) else value
    return rope


def _mapping(settings: Settings, key: str, problems: list[str]) -> Settings | None:
    """A section of the settings, empty where there is none; None if it is something else."""
    found = settings.get(key)
    if found is not None and not isinstance(found, dict):
        problems.append(f"{key} = {found!r}, which is no mapping")
        return None
    return found or {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
