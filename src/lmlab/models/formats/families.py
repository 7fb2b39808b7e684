"""Hugging Face architectures as tables: the features each has, what its configuration calls them, and what it calls
each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.config import validate
from lmlab.errors import UserError, did_you_mean
from lmlab.models.config import ModelConfig

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to lmlab's features.

    Attributes:
        model_type: its name in `config.json`.
        language_model, classifier: the names of its classes; the classifier holds a scalar head.
        prefix: of the tensors of its body.
        features: what every model of the family has, by our names of configuration fields.
        keys: their key for each of our fields that varies (dotted: `moe.top_k`). Fields that share a key must agree.
        defaults: values of our fields whose keys are absent.
        constants: keys that must have this value where present, and are written.
        names: our tensor names to theirs, without `.weight` and `.bias`; `{i}` stands for the layer.
        experts: our stacked matrices of experts to theirs, laid end to end along the output; `{e}` stands for an
            expert.
        stacked: our stacked matrices to tensors that some of their checkpoints hold in place of those.
        transposed: ends of our names whose matrices they store transposed.
        fused: their names of tensors that hold several of ours, laid end to end along the output.
        equal_keys: keys that must have the same value as another one.
        other_keys: second names of keys.
        fits: what else a configuration must satisfy.
    """

    model_type: str
    language_model: str
    classifier: str | None
    prefix: str
    features: Settings
    keys: dict[str, str]
    defaults: Settings
    constants: Settings
    names: dict[str, str]
    transposed: tuple[str, ...] = ()
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    equal_keys: dict[str, str] = field(default_factory=dict)
    other_keys: dict[str, str] = field(default_factory=dict)
    experts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stacked: dict[str, str] = field(default_factory=dict)
    fits: Callable[[ModelConfig], bool] = lambda config: True


_VALUES: dict[str, dict[Any, Any]] = {
    "activation": {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    },
    "norm_position": {True: "pre", False: "post"},  # OPT's do_layer_norm_before
}
"""For the fields whose values have other names there: theirs to ours."""

_LLAMA_FEATURES = {
    "norm": "rmsnorm",
    "norm_bias": False,
    "norm_weight": True,
    "norm_position": "pre",
    "qk_norm": "none",
    "positions": "rotary",
    "gated": True,
    "ffn": "dense",
}
_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attention_output_bias": "attention_bias"}
_LLAMA_NAMES = {
    "embedding": "embed_tokens",
    "final_norm": "norm",
    "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.output": "layers.{i}.self_attn.o_proj",
    "blocks.{i}.ffn.gate": "layers.{i}.mlp.gate_proj",
    "blocks.{i}.ffn.up": "layers.{i}.mlp.up_proj",
    "blocks.{i}.ffn.down": "layers.{i}.mlp.down_proj",
}
_QK_NORM_NAMES = {
    "blocks.{i}.attention.query_norm": "layers.{i}.self_attn.q_norm",
    "blocks.{i}.attention.key_norm": "layers.{i}.self_attn.k_norm",
}
_GPT_FEATURES = {
    "norm": "layernorm",
    "norm_bias": True,
    "norm_weight": True,
    "qk_norm": "none",
    "positions": "learned",
    "gated": False,
    "ffn": "dense",
}
_NO_WINDOW = {"use_sliding_window": False}


def _whole_heads(config: ModelConfig) -> bool:
    return config.head_dim * config.num_heads == config.d_model


def _plain_experts(config: ModelConfig) -> bool:
    moe = config.moe
    assert moe is not None
    dropless = moe.router == "token_choice" and moe.capacity_factor is None and moe.bias_update_rate is None
    return _whole_heads(config) and dropless and not moe.num_shared_experts and not moe.share_across_layers


def _plain_heads(config: ModelConfig) -> bool:
    return _whole_heads(config) and config.num_kv_heads == config.num_heads


FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "model.",
        _LLAMA_FEATURES,
        _LLAMA_KEYS | _ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        {"norm_eps": 1e-6, "tie_embeddings": False},
        {},
        _LLAMA_NAMES,
        fits=lambda config: config.d_model % config.num_heads == 0,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "qkv_bias": True, "attention_output_bias": False, "ffn_bias": False},
        _LLAMA_KEYS,
        {"norm_eps": 1e-6, "tie_embeddings": False},
        _NO_WINDOW,
        _LLAMA_NAMES,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "qk_norm": "head", "ffn_bias": False},
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {"norm_eps": 1e-6, "tie_embeddings": False, "head_dim": 128},
        _NO_WINDOW,
        _LLAMA_NAMES | _QK_NORM_NAMES,
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn_bias": False},
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {"norm_eps": 1e-5, "tie_embeddings": False},
        {},
        _LLAMA_NAMES
        | _QK_NORM_NAMES
        | {
            "blocks.{i}.attention_norm": "layers.{i}.post_attention_layernorm",
            "blocks.{i}.ffn_norm": "layers.{i}.post_feedforward_layernorm",
        },
    ),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        None,
        "model.",
        {**_LLAMA_FEATURES, "qk_norm": "full", "ffn": "moe", "ffn_bias": False},
        {
            **_LLAMA_KEYS,
            **_ATTENTION_BIAS,
            "moe.num_experts": "num_experts",
            "moe.top_k": "num_experts_per_tok",
            "moe.expert_hidden_size": "intermediate_size",
            "moe.norm_topk_prob": "norm_topk_prob",
        },
        {"norm_eps": 1e-5, "tie_embeddings": False, "moe.num_experts": 64, "moe.top_k": 8, "moe.norm_topk_prob": False},
        {"clip_qkv": None},
        _LLAMA_NAMES
        | _QK_NORM_NAMES
        | {
            "blocks.{i}.ffn.router": "layers.{i}.mlp.gate",
        },
        other_keys={"num_local_experts": "num_experts"},
        experts={
            "blocks.{i}.ffn.experts.gate_up": (
                "layers.{i}.mlp.experts.{e}.gate_proj",
                "layers.{i}.mlp.experts.{e}.up_proj",
            ),
            "blocks.{i}.ffn.experts.down": ("layers.{i}.mlp.experts.{e}.down_proj",),
        },
        stacked={
            "blocks.{i}.ffn.experts.gate_up": "layers.{i}.mlp.experts.gate_up_proj",
            "blocks.{i}.ffn.experts.down": "layers.{i}.mlp.experts.down_proj",
        },
        fits=_plain_experts,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "transformer.",
        {
            **_GPT_FEATURES,
            "norm_position": "pre",
            "position_offset": 0,
            "qkv_bias": True,
            "attention_output_bias": True,
            "ffn_bias": True,
        },
        {
            "vocab_size": "vocab_size",
            "num_layers": "n_layer",
            "d_model": "n_embd",
            "num_heads": "n_head",
            "d_ff": "n_inner",
            "max_seq_len": "n_positions",
            "activation": "activation_function",
            "norm_eps": "layer_norm_epsilon",
            "tie_embeddings": "tie_word_embeddings",
            "init_std": "initializer_range",
        },
        {"norm_eps": 1e-5, "tie_embeddings": True, "activation": "gelu_tanh"},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        {
            "embedding": "wte",
            "position_embedding": "wpe",
            "final_norm": "ln_f",
            "blocks.{i}.attention_norm": "h.{i}.ln_1",
            "blocks.{i}.ffn_norm": "h.{i}.ln_2",
            "blocks.{i}.attention.output": "h.{i}.attn.c_proj",
            "blocks.{i}.ffn.up": "h.{i}.mlp.c_fc",
            "blocks.{i}.ffn.down": "h.{i}.mlp.c_proj",
        },
        transposed=("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down"),
        fused={
            "h.{i}.attn.c_attn": (
                "blocks.{i}.attention.query",
                "blocks.{i}.attention.key",
                "blocks.{i}.attention.value",
            )
        },
        fits=_plain_heads,
    ),
    Family(
        "opt",
        "OPTForCausalLM",
        "OPTForSequenceClassification",
        "model.decoder.",
        {**_GPT_FEATURES, "norm_eps": 1e-5, "position_offset": 2},
        {
            "vocab_size": "vocab_size",
            "num_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "num_heads": "num_attention_heads",
            "d_ff": "ffn_dim",
            "max_seq_len": "max_position_embeddings",
            "activation": "activation_function",
            "norm_position": "do_layer_norm_before",
            "qkv_bias": "enable_bias",
            "attention_output_bias": "enable_bias",
            "ffn_bias": "enable_bias",
            "tie_embeddings": "tie_word_embeddings",
            "init_std": "init_std",
        },
        {
            "activation": "relu",
            "tie_embeddings": True,
            "qkv_bias": True,
            "attention_output_bias": True,
            "ffn_bias": True,
        },
        {"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
        {
            "embedding": "embed_tokens",
            "position_embedding": "embed_positions",
            "final_norm": "final_layer_norm",
            "blocks.{i}.attention_norm": "layers.{i}.self_attn_layer_norm",
            "blocks.{i}.ffn_norm": "layers.{i}.final_layer_norm",
            "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
            "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
            "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
            "blocks.{i}.attention.output": "layers.{i}.self_attn.out_proj",
            "blocks.{i}.ffn.up": "layers.{i}.fc1",
            "blocks.{i}.ffn.down": "layers.{i}.fc2",
        },
        equal_keys={"word_embed_proj_dim": "hidden_size"},
        fits=_plain_heads,
    ),
)


def family_of(config: ModelConfig) -> Family | None:
    """The Hugging Face family that can express this configuration, None if there is none."""
    return next((family for family in FAMILIES if _expresses(family, config)), None)


def find_family(settings: Settings, where: str) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: its `model_type` is not one that lmlab knows.
    """
    model_type = settings.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None:
        known = [family.model_type for family in FAMILIES]
        raise UserError(
            f"{where}: the model type '{model_type}' is not supported. {did_you_mean(str(model_type), known)}"
        )
    return family


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
    if config.positions == "rotary":
        rope = _rope_to_settings(config)
        if (
            config.rope_scaling is not None and config.rope_scaling.type == "dynamic"
        ):  # there, the length from which theta grows
            settings["max_position_embeddings"] = config.rope_scaling.original_max_seq_len
        settings |= {"rope_theta": config.rope_theta, "rope_parameters": rope}
        settings["rope_scaling"] = (
            None
            if rope["rope_type"] == "default"
            else {key: value for key, value in rope.items() if key != "rope_theta"}
        )
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
            if value not in _VALUES[ours]:
                problems.append(f"{theirs} = {value}")
            value = _VALUES[ours].get(value)
        if value is not None:
            _set(data, ours, value)
    if family.features["positions"] == "rotary":
        _rope_from_settings(settings, data, problems)
    if problems:
        raise UserError(f"'{path}': lmlab's {family.model_type} does not support " + "; ".join(problems) + ".")
    if str((settings.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        data["num_labels"] = settings.get("num_labels") or len(settings.get("id2label") or (0, 1))
    return validate(ModelConfig, {**family.features, **data}, f"'{path}'")


def _expresses(family: Family, config: ModelConfig) -> bool:
    if not config.causal or any(getattr(config, name) != value for name, value in family.features.items()):
        return False
    if not family.fits(config) or (config.num_labels is not None and family.classifier is None):
        return False
    shared: Settings = {}
    return all(
        shared.setdefault(theirs, _get(config, ours)) == _get(config, ours) for ours, theirs in family.keys.items()
    )


def _get(config: ModelConfig, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _set(data: Settings, dotted: str, value: Any) -> None:
    *parents, name = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[name] = value


def _theirs(ours: str, value: Any) -> Any:
    return next(theirs for theirs, mine in _VALUES[ours].items() if mine == value) if ours in _VALUES else value


def _rope_to_settings(config: ModelConfig) -> Settings:
    scaling = config.rope_scaling
    rope: Settings = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.type == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.type == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            rope["attention_factor"] = scaling.attention_factor
    return rope


def _rope_from_settings(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Read both the older keys (`rope_theta`, `rope_scaling`) and the newer one (`rope_parameters`)."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    parameters = settings.get("rope_parameters") or {}
    data["rope_theta"] = (
        rope.get("rope_theta") or parameters.get("rope_theta") or settings.get("rope_theta") or 10_000.0
    )
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", settings.get("partial_rotary_factor") or 1.0) != 1.0:
        problems.append("partial_rotary_factor")
    if kind == "default":
        return
    if kind not in ("linear", "dynamic", "yarn", "llama3"):
        problems.append(f"rotary scaling of type {kind}")
        return
    length = settings.get("max_position_embeddings")
    original = rope.get("original_max_position_embeddings") or length
    factor = rope.get("factor") or (length / original if length and original else 1.0)
    scaling: Settings = {"type": kind, "factor": factor}
    if kind == "dynamic":
        scaling["original_max_seq_len"] = length
        if length is not None:
            data["max_seq_len"] = round(length * factor)
    elif kind != "linear":
        scaling["original_max_seq_len"] = original
        known = (
            ("beta_fast", "beta_slow", "truncate", "attention_factor")
            if kind == "yarn"
            else ("low_freq_factor", "high_freq_factor")
        )
        scaling |= {key: rope[key] for key in known if rope.get(key) is not None}
    if kind == "yarn" and rope.get("attention_factor") is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        grown = math.log(max(factor, 1.0))
        scaling["attention_factor"] = (0.1 * rope["mscale"] * grown + 1) / (0.1 * rope["mscale_all_dim"] * grown + 1)
    data["rope_scaling"] = scaling
