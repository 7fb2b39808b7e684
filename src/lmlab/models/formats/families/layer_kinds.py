"""Layers that differ within one model: sliding windows, layers without positions, layers with experts, as the
configurations of Hugging Face families tell them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family, Settings
from lmlab.words import counted

_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}
_PATTERNS = {"olmo3": 4, "gemma2": 2, "gemma3_text": 6}
"""Where nothing lists the layers, all but every so-many-th have a window."""


def uniform(kinds: Sequence[Any]) -> Any:
    """One value where all are equal, else all of them."""
    return kinds[0] if len(set(kinds)) == 1 else tuple(kinds)


def read_all_windows(default: int | None) -> Callable[[Settings, Settings, list[str]], None]:
    """Reads `sliding_window`, which holds for all layers."""

    def read(settings: Settings, data: Settings, problems: list[str]) -> None:
        window = settings.get("sliding_window", default)
        if window is not None:
            data |= {"attention": "sliding", "sliding_window": window}
        if len(set(settings.get("layer_types") or ())) > 1:
            problems.append("layer_types of several kinds")

    return read


def windows_of_qwen(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Reads `use_sliding_window`, and where no `layer_types` are listed `max_window_layers`."""
    _read_window_of_qwen(settings, data, problems, lambda layer, first: layer >= first)


def _read_window_of_qwen(
    settings: Settings, data: Settings, problems: list[str], has_window: Callable[[int, int], bool]
) -> None:
    # here and below: defaults of transformers
    window = settings.get("sliding_window", 4096) if settings.get("use_sliding_window") else None
    first, count = settings.get("max_window_layers", 28), data.get("num_layers")
    listed = settings.get("layer_types")
    if listed is None and window is not None and isinstance(first, int) and isinstance(count, int):
        listed = [
            "sliding_attention" if has_window(layer, first) else "full_attention" for layer in range(min(count, 4096))
        ]
    set_windows(data, listed, window, problems)


def read_layer_types(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Reads `layer_types` and `sliding_window` of families that always have them."""
    model_type, count = str(settings.get("model_type")), data.get("num_layers")
    listed = settings.get("layer_types")
    if listed is None and isinstance(count, int):
        every = settings.get("sliding_window_pattern", 6) if model_type == "gemma3_text" else _PATTERNS[model_type]
        if not isinstance(every, int) or every < 1:
            problems.append(f"sliding_window_pattern = {every}")
            return
        listed = [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(min(count, 4096))
        ]
    set_windows(data, listed, settings.get("sliding_window", 4096), problems)


def read_layers_without_positions(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Reads SmolLM3's `no_rope_layers`, in which 1 is a layer with positions, and its windows."""
    count, rotates = data.get("num_layers"), settings.get("no_rope_layers")
    if not isinstance(count, int) or count > 4096:  # the most layers that a configuration may have
        return
    if rotates is None:
        every = settings.get("no_rope_layer_interval", 4)
        if not isinstance(every, int) or every < 1:
            problems.append(f"no_rope_layer_interval = {every}")
            return
        rotates = [int((layer + 1) % every != 0) for layer in range(count)]
    if not isinstance(rotates, list) or len(rotates) < count or not all(each in (0, 1) for each in rotates):
        problems.append("no_rope_layers that are not a 0 or 1 for each layer")
        return
    rotates = rotates[:count]
    if not all(rotates):
        data["rotary_layers"] = [bool(each) for each in rotates]
    window = settings.get("sliding_window") if settings.get("use_sliding_window") else None
    listed = settings.get("layer_types")
    if listed is None and window is not None:
        listed = ["full_attention" if each else "sliding_attention" for each in rotates]
    set_windows(data, listed, window, problems)


def write_layers_without_positions(config: ModelConfig) -> Settings:
    """SmolLM3's list of layers with (1) and without (0) positions."""
    return {"no_rope_layers": [int(each) for each in config.rotary_layers or [True] * config.num_layers]}


def read_sparse_layers(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Reads which layers of a Qwen 3 mixture have experts, and its window."""
    _read_layers_with_experts(settings, data, problems)
    if settings.get("use_sliding_window"):
        read_all_windows(default=4096)(settings, data, problems)


def read_sparse_layers_of_qwen2(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Reads which layers of a Qwen 2 mixture have experts, its windows, and that its shared expert has no width."""
    _read_layers_with_experts(settings, data, problems)
    if (shared := settings.get("shared_expert_intermediate_size", 5632)) != 0:  # transformers' default
        problems.append(f"a shared expert with a gate of its own (shared_expert_intermediate_size = {shared})")
    # where nothing lists the layers, every second of the first ones has a window
    _read_window_of_qwen(settings, data, problems, lambda layer, first: layer % 2 == 0 and layer < first)


def _read_layers_with_experts(settings: Settings, data: Settings, problems: list[str]) -> None:
    count, step = data.get("num_layers"), settings.get("decoder_sparse_step", 1)
    dense = settings.get("mlp_only_layers") or []
    if not isinstance(step, int) or step < 1 or not isinstance(dense, list):
        problems.append(f"decoder_sparse_step = {step}, mlp_only_layers = {dense}")
    elif isinstance(count, int) and 0 < count <= 4096:
        kinds = ["moe" if layer not in dense and (layer + 1) % step == 0 else "dense" for layer in range(count)]
        data["ffn"] = uniform(kinds)
        if "moe" not in kinds:
            data.pop("moe", None)


def write_sparse_layers(config: ModelConfig) -> Settings:
    """Qwen's list of layers without experts."""
    dense = [layer for layer, kind in enumerate(config.ffn_kinds) if kind == "dense"]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def write_windows(config: ModelConfig, family: Family) -> Settings:
    """The keys of a family for sliding windows."""
    kinds, window = config.attention_kinds, config.sliding_window
    if family.windows == "none":
        return {}
    if family.windows == "all":
        used = {"use_sliding_window": window is not None} if family.model_type == "qwen3_moe" else {}
        return {"sliding_window": window, **used}
    names = {ours: theirs for theirs, ours in _KINDS.items()}
    found: Settings = {"layer_types": [names[kind] for kind in kinds], "sliding_window": window}
    if family.model_type in _PATTERNS:
        return found | ({} if window is not None else {"sliding_window": 4096})  # unused, and there must be one
    first = kinds.index("sliding") if "sliding" in kinds else config.num_layers
    return found | {"use_sliding_window": window is not None, "max_window_layers": first}


def set_windows(data: Settings, listed: Any, window: Any, problems: list[str]) -> None:
    """Take over a list of layer types."""
    if listed is None:
        return
    count = data.get("num_layers")
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        problems.append("layer_types that are not a list of names")
        return
    if unknown := sorted({each for each in listed if each not in _KINDS}):
        problems.append(f"layer_types of the kind {unknown[0]}")
        return
    kinds = [_KINDS[each] for each in listed]
    if "sliding" not in kinds:
        return
    if window is None:
        problems.append("sliding layers without sliding_window")
    elif len(kinds) != count:
        problems.append(f"layer_types of {counted(len(kinds), 'layers')}, not {count}")
    else:
        data |= {"attention": uniform(kinds), "sliding_window": window}


def fits_windows(config: ModelConfig, family: Family) -> bool:
    """Whether a family can tell a model's windows."""
    kinds = set(config.attention_kinds)
    return family.windows == "layers" or kinds == {"full"} or (family.windows == "all" and len(kinds) == 1)
