"""Dense decoders in the manner of Llama: their rows of the table of families."""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family, Settings
from lmlab.models.formats.families.layer_kinds import (
    read_all_windows,
    read_layer_types,
    read_layers_without_positions,
    windows_of_qwen,
    write_layers_without_positions,
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


def _read_granite(settings: Settings, data: Settings, problems: list[str]) -> None:
    for ours, theirs in (
        ("embedding_scale", "embedding_multiplier"),
        ("residual_multiplier", "residual_multiplier"),
        ("attention_scale", "attention_multiplier"),
    ):
        data[ours] = settings.get(theirs, 1.0)
    divisor = settings.get("logits_scaling", 1.0)
    if not isinstance(divisor, int | float) or divisor <= 0:
        problems.append(f"logits_scaling = {divisor}")
    else:
        data["logit_scale"] = 1 / divisor


def _write_granite(config: ModelConfig) -> Settings:
    return {
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_multiplier,
        "attention_multiplier": config.attention_scale or config.head_dim**-0.5,
        "logits_scaling": 1 / config.logit_scale,
    }


DENSE = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "model.",
        FEATURES,
        KEYS | ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        DEFAULTS,
        {},
        NAMES,
        fits=lambda config: config.d_model % config.num_heads == 0,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        "model.",
        FEATURES | NO_BIAS,
        KEYS,
        {**DEFAULTS, "num_kv_heads": 8, "max_seq_len": 131_072},
        {},
        NAMES,
        windows="all",
        read=read_all_windows(default=4096),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        "model.",
        {**FEATURES, **NO_BIAS, "qkv_bias": True},
        KEYS,
        {**DEFAULTS, "num_kv_heads": 32, "max_seq_len": 32_768},
        {},
        NAMES,
        windows="layers",
        read=windows_of_qwen,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        "model.",
        {**FEATURES, "qk_norm": "head", "ffn_bias": False},
        KEYS | ATTENTION_BIAS,
        {**DEFAULTS, "head_dim": 128, "num_kv_heads": 32, "max_seq_len": 32_768},
        {},
        NAMES | QK_NORM_NAMES,
        windows="layers",
        read=windows_of_qwen,
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        "SmolLM3ForSequenceClassification",
        "model.",
        without(FEATURES, "rotary_layers"),
        KEYS | ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        {**DEFAULTS, "tie_embeddings": True, "num_kv_heads": 4, "max_seq_len": 32_768},
        {},
        NAMES,
        windows="layers",
        rope_theta=2e6,
        read=read_layers_without_positions,
        write=write_layers_without_positions,
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        "Phi3ForSequenceClassification",
        "model.",
        FEATURES | NO_BIAS,
        KEYS,
        {**DEFAULTS, "norm_eps": 1e-5, "max_seq_len": 4096},
        {},
        without(
            NAMES,
            *(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")),
            "blocks.{i}.ffn.gate",
            "blocks.{i}.ffn.up",
        ),
        fused={
            "layers.{i}.self_attn.qkv_proj": (
                "blocks.{i}.attention.query",
                "blocks.{i}.attention.key",
                "blocks.{i}.attention.value",
            ),
            "layers.{i}.mlp.gate_up_proj": ("blocks.{i}.ffn.gate", "blocks.{i}.ffn.up"),
        },
        windows="all",
        partial=("partial_rotary_factor", 1.0),
        scalings=("longrope",),
        read=read_all_windows(default=None),
        fits=whole_heads,
    ),
    Family(
        "olmo",
        "OlmoForCausalLM",
        "OlmoForSequenceClassification",
        "model.",
        {
            **without(FEATURES, "clip_qkv"),
            "norm": "layernorm",
            "norm_weight": False,
            "norm_eps": 1e-5,
            "ffn_bias": False,
        },
        {**without(KEYS, "norm_eps"), **ATTENTION_BIAS, "clip_qkv": "clip_qkv"},
        without(DEFAULTS, "norm_eps"),
        {},
        without(NAMES, "final_norm", "blocks.{i}.attention_norm", "blocks.{i}.ffn_norm"),
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2ForSequenceClassification",
        "model.",
        {**FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn_bias": False},
        KEYS | ATTENTION_BIAS,
        {**DEFAULTS, "norm_eps": 1e-5},
        {},
        NAMES | QK_NORM_NAMES | REORDERED_NAMES,
    ),
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        "Olmo3ForSequenceClassification",
        "model.",
        {**FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn_bias": False},
        KEYS | ATTENTION_BIAS,
        {**DEFAULTS, "norm_eps": 1e-5},
        {},
        NAMES | QK_NORM_NAMES | REORDERED_NAMES,
        windows="layers",
        rope_theta=5e5,
        rope_of_kinds=True,
        read=read_layer_types,
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        None,
        "model.",
        without(FEATURES, "embedding_scale", "residual_multiplier", "attention_scale", "logit_scale"),
        KEYS | ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        DEFAULTS,
        {},
        NAMES,
        read=_read_granite,
        write=_write_granite,
        fits=whole_heads,
    ),
)
