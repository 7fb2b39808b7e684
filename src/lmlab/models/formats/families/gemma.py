"""The Gemma families: norms with an offset, scaled embeddings, capped scores."""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family, Settings
from lmlab.models.formats.families.layer_kinds import read_layer_types
from lmlab.models.formats.families.llama_like import ATTENTION_BIAS, FEATURES, KEYS, NAMES, QK_NORM_NAMES, without

_BOTH_NORMS_NAMES = {
    "blocks.{i}.attention_out_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.ffn_out_norm": "layers.{i}.post_feedforward_layernorm",
}


def _scaled_embedding(config: ModelConfig) -> bool:
    return config.embedding_scale == config.d_model**0.5


def _read_gemma(settings: Settings, data: Settings, problems: list[str]) -> None:
    if isinstance(data.get("d_model"), int) and data["d_model"] > 0:
        data["embedding_scale"] = data["d_model"] ** 0.5
    if settings.get("use_bidirectional_attention"):
        problems.append("use_bidirectional_attention")
    if settings.get("hidden_act") == "gelu" and settings.get("model_type") == "gemma":
        data["activation"] = "gelu_tanh"  # as its first files mean it


def _read_gemma2(settings: Settings, data: Settings, problems: list[str]) -> None:
    _read_gemma(settings, data, problems)
    read_layer_types(settings, data, problems)
    scalar = settings.get("query_pre_attn_scalar", 256)  # here and below: defaults of transformers' Gemma2Config
    if not isinstance(scalar, int | float) or scalar <= 0:
        problems.append(f"query_pre_attn_scalar = {scalar}")
    else:
        data["attention_scale"] = scalar**-0.5
    for ours, theirs, default in (
        ("attention_soft_cap", "attn_logit_softcapping", 50.0),
        ("logit_soft_cap", "final_logit_softcapping", 30.0),
    ):
        if settings.get("model_type") == "gemma2":
            data[ours] = settings.get(theirs, default)
        elif ours == "logit_soft_cap":
            data[ours] = settings.get(theirs)


def _query_scalar(config: ModelConfig) -> int:
    return round((config.attention_scale or config.head_dim**-0.5) ** -2)


def _write_gemma2(config: ModelConfig) -> Settings:
    caps: Settings = {"final_logit_softcapping": config.logit_soft_cap, "attn_logit_softcapping": None}
    caps["attn_logit_softcapping"] = config.attention_soft_cap
    return {"query_pre_attn_scalar": _query_scalar(config), **caps}


def _fits_gemma2(config: ModelConfig) -> bool:
    scale = config.attention_scale or config.head_dim**-0.5
    exact = _query_scalar(config) ** -0.5 == scale  # the key holds a whole number
    return _scaled_embedding(config) and exact and config.d_model % config.num_heads == 0


_GEMMA_FEATURES = {
    **without(FEATURES, "embedding_scale"),
    "norm_offset": True,
    "ffn_bias": False,
}
_GEMMA2_FEATURES = {
    **without(_GEMMA_FEATURES, "attention_scale", "attention_soft_cap", "logit_soft_cap"),
    "norm_position": "both",
}
# Those of transformers' GemmaConfig, which files may leave out.
_GEMMA_DEFAULTS: Settings = {
    "norm_eps": 1e-6,
    "tie_embeddings": True,
    "head_dim": 256,
    "activation": "gelu_tanh",
    "max_seq_len": 8192,
}
_GEMMA2_KEYS = {**KEYS, **ATTENTION_BIAS, "activation": "hidden_activation"}

GEMMA = (
    Family(
        "gemma",
        "GemmaForCausalLM",
        "GemmaForSequenceClassification",
        "model.",
        _GEMMA_FEATURES,
        KEYS | ATTENTION_BIAS,
        {**_GEMMA_DEFAULTS, "num_kv_heads": 16},
        {},
        NAMES,
        begins_windows=True,
        read=_read_gemma,
        fits=lambda config: _scaled_embedding(config) and config.activation != "gelu",
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        "model.",
        {**_GEMMA2_FEATURES, "qk_norm": "none"},
        _GEMMA2_KEYS,
        {**_GEMMA_DEFAULTS, "num_kv_heads": 4},
        {},
        NAMES | _BOTH_NORMS_NAMES,
        windows="layers",
        begins_windows=True,
        read=_read_gemma2,
        write=_write_gemma2,
        fits=_fits_gemma2,
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        "model.",
        {**_GEMMA2_FEATURES, "qk_norm": "head", "attention_soft_cap": None},
        _GEMMA2_KEYS,
        {**_GEMMA_DEFAULTS, "num_kv_heads": 4, "max_seq_len": 131_072},
        {"attn_logit_softcapping": None},
        NAMES | QK_NORM_NAMES | _BOTH_NORMS_NAMES,
        windows="layers",
        rope_theta=1e6,
        rope_of_kinds=True,
        begins_windows=True,
        read=_read_gemma2,
        write=_write_gemma2,
        fits=_fits_gemma2,
    ),
)
