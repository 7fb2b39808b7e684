"""Mixtures of experts: their rows of the table of families."""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family, Settings
from lmlab.models.formats.families.layer_kinds import (
    read_all_windows,
    read_sparse_layers,
    read_sparse_layers_of_qwen2,
    write_sparse_layers,
)
from lmlab.models.formats.families.llama_like import (
    ATTENTION_BIAS,
    DEFAULTS,
    FEATURES,
    KEYS,
    NAMES,
    NO_BIAS,
    QK_NORM_NAMES,
    REORDERED_NAMES,
    whole_heads,
    without,
)

_EXPERT_KEYS = {
    "moe.num_experts": "num_experts",
    "moe.top_k": "num_experts_per_tok",
    "moe.norm_topk_prob": "norm_topk_prob",
}
_ROUTER_NAMES = {"blocks.{i}.ffn.router": "layers.{i}.mlp.gate"}
_EXPERTS = {
    "blocks.{i}.ffn.experts.gate_up": ("layers.{i}.mlp.experts.{e}.gate_proj", "layers.{i}.mlp.experts.{e}.up_proj"),
    "blocks.{i}.ffn.experts.down": ("layers.{i}.mlp.experts.{e}.down_proj",),
}
_STACKED = {
    "blocks.{i}.ffn.experts.gate_up": "layers.{i}.mlp.experts.gate_up_proj",
    "blocks.{i}.ffn.experts.down": "layers.{i}.mlp.experts.down_proj",
}


def _plain_experts(config: ModelConfig) -> bool:
    moe = config.moe
    assert moe is not None
    dropless = moe.router == "token_choice" and moe.capacity_factor is None and moe.bias_update_rate is None
    return dropless and not moe.num_shared_experts and not moe.share_across_layers


def _some_plain_experts(config: ModelConfig) -> bool:
    return config.moe is not None and "moe" in config.ffn_kinds and _plain_experts(config)


def _write_qwen2(config: ModelConfig) -> Settings:
    return write_sparse_layers(config) | {"shared_expert_intermediate_size": 0}


def _empty_shared_experts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Qwen 2's class always has a shared expert; without width it adds nothing, whatever its gate says."""
    width, found = config.d_model, dict[str, tuple[int, ...]]()
    for layer in (layer for layer, kind in enumerate(config.ffn_kinds) if kind == "moe"):
        place = f"layers.{layer}.mlp.shared_expert"
        found |= {f"{place}.{name}.weight": (0, width) for name in ("gate_proj", "up_proj")}
        found |= {f"{place}.down_proj.weight": (width, 0), f"{place}_gate.weight": (1, width)}
    return found


MIXTURES = (
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        None,
        "model.",
        {**without(FEATURES, "clip_qkv"), "qk_norm": "full", "ffn": "moe", "ffn_bias": False},
        {
            **without(KEYS, "d_ff"),
            **ATTENTION_BIAS,
            **_EXPERT_KEYS,
            "moe.expert_hidden_size": "intermediate_size",
            "clip_qkv": "clip_qkv",
        },
        {
            **DEFAULTS,
            "norm_eps": 1e-5,
            "max_seq_len": 4096,
            "moe.num_experts": 64,
            "moe.top_k": 8,
            "moe.norm_topk_prob": False,
        },
        {},
        NAMES | QK_NORM_NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        fits=lambda config: _plain_experts(config) and whole_heads(config),
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        "MixtralForSequenceClassification",
        "model.",
        {**FEATURES, **NO_BIAS, "ffn": "moe", "moe.norm_topk_prob": True},
        {
            **without(KEYS, "d_ff"),
            "moe.num_experts": "num_local_experts",
            "moe.top_k": "num_experts_per_tok",
            "moe.expert_hidden_size": "intermediate_size",
        },
        {
            **DEFAULTS,
            "norm_eps": 1e-5,
            "num_kv_heads": 8,
            "max_seq_len": 131_072,
            "moe.num_experts": 8,
            "moe.top_k": 2,
        },
        {},
        NAMES | {"blocks.{i}.ffn.router": "layers.{i}.block_sparse_moe.gate"},
        other_keys={"num_experts": "num_local_experts"},
        experts={
            "blocks.{i}.ffn.experts.gate_up": (
                "layers.{i}.block_sparse_moe.experts.{e}.w1",
                "layers.{i}.block_sparse_moe.experts.{e}.w3",
            ),
            "blocks.{i}.ffn.experts.down": ("layers.{i}.block_sparse_moe.experts.{e}.w2",),
        },
        windows="all",
        rope_theta=1e6,
        read=read_all_windows(default=None),
        fits=_plain_experts,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeForSequenceClassification",
        "model.",
        {**without(FEATURES, "ffn"), "qk_norm": "head", "ffn_bias": False},
        {**KEYS, **ATTENTION_BIAS, **_EXPERT_KEYS, "moe.expert_hidden_size": "moe_intermediate_size"},
        {
            **DEFAULTS,
            "num_kv_heads": 4,
            "max_seq_len": 32_768,
            "moe.num_experts": 128,
            "moe.top_k": 8,
            "moe.norm_topk_prob": False,
            "moe.expert_hidden_size": 768,
        },
        {},
        NAMES | QK_NORM_NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        windows="all",
        read=read_sparse_layers,
        write=write_sparse_layers,
        fits=_some_plain_experts,
    ),
    Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeForSequenceClassification",
        "model.",
        {**without(FEATURES, "ffn"), "attention_output_bias": False, "ffn_bias": False},
        {**KEYS, **_EXPERT_KEYS, "qkv_bias": "qkv_bias", "moe.expert_hidden_size": "moe_intermediate_size"},
        {
            **DEFAULTS,
            "num_kv_heads": 16,
            "max_seq_len": 32_768,
            "qkv_bias": True,
            "moe.num_experts": 60,
            "moe.top_k": 4,
            "moe.norm_topk_prob": False,
            "moe.expert_hidden_size": 1408,
        },
        {},
        NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        windows="layers",
        read=read_sparse_layers_of_qwen2,
        write=_write_qwen2,
        inert=_empty_shared_experts,
        fits=_some_plain_experts,
    ),
    Family(
        "flex_olmo",
        "FlexOlmoForCausalLM",
        None,
        "model.",
        {**FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn": "moe", "ffn_bias": False},
        {**without(KEYS, "d_ff"), **ATTENTION_BIAS, **_EXPERT_KEYS, "moe.expert_hidden_size": "intermediate_size"},
        {
            **DEFAULTS,
            "max_seq_len": 4096,
            "moe.num_experts": 7,
            "moe.top_k": 5,
            "moe.norm_topk_prob": False,
        },
        {},
        NAMES | QK_NORM_NAMES | REORDERED_NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        rope_theta=5e5,
        fits=_plain_experts,
    ),
)
