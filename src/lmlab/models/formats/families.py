"""Hugging Face architectures as a table: the features each has, what its configuration calls them, and what it calls
each tensor.
"""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.encoders import ENCODERS
from lmlab.models.formats.family import PLAIN, Family, Settings
from lmlab.models.formats.layer_kinds import (
    read_all_windows,
    read_layer_types,
    read_layers_without_positions,
    read_sparse_layers,
    windows_of_qwen,
    write_layers_without_positions,
    write_sparse_layers,
)

_LLAMA_FEATURES: Settings = {
    **PLAIN,
    "norm": "rmsnorm",
    "norm_bias": False,
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
_LLAMA_DEFAULTS: Settings = {"norm_eps": 1e-6, "tie_embeddings": False, "max_seq_len": 2048}
_NO_BIAS: Settings = {"qkv_bias": False, "attention_output_bias": False, "ffn_bias": False}
_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attention_output_bias": "attention_bias"}
_EXPERT_KEYS = {
    "moe.num_experts": "num_experts",
    "moe.top_k": "num_experts_per_tok",
    "moe.norm_topk_prob": "norm_topk_prob",
}
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
_REORDERED_NAMES = {
    "blocks.{i}.attention_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.post_feedforward_layernorm",
}
_BOTH_NORMS_NAMES = {
    "blocks.{i}.attention_out_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.ffn_out_norm": "layers.{i}.post_feedforward_layernorm",
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
_GPT_FEATURES: Settings = {
    **PLAIN,
    "norm": "layernorm",
    "norm_bias": True,
    "qk_norm": "none",
    "positions": "learned",
    "gated": False,
    "ffn": "dense",
}
_BIASES: Settings = {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}


def _without(table: Settings, *names: str) -> Settings:
    return {key: value for key, value in table.items() if key not in names}


def _whole_heads(config: ModelConfig) -> bool:
    return config.head_dim * config.num_heads == config.d_model


def _plain_heads(config: ModelConfig) -> bool:
    return _whole_heads(config) and config.num_kv_heads == config.num_heads


def _plain_experts(config: ModelConfig) -> bool:
    moe = config.moe
    assert moe is not None
    dropless = moe.router == "token_choice" and moe.capacity_factor is None and moe.bias_update_rate is None
    return dropless and not moe.num_shared_experts and not moe.share_across_layers


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
    scalar = settings.get("query_pre_attn_scalar", 256)
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


_GEMMA_FEATURES = {
    **_without(_LLAMA_FEATURES, "embedding_scale"),
    "norm_offset": True,
    "ffn_bias": False,
}
_GEMMA2_FEATURES = {
    **_without(_GEMMA_FEATURES, "attention_scale", "attention_soft_cap", "logit_soft_cap"),
    "norm_position": "both",
}
_GEMMA_DEFAULTS: Settings = {
    "norm_eps": 1e-6,
    "tie_embeddings": True,
    "head_dim": 256,
    "activation": "gelu_tanh",
    "max_seq_len": 8192,
}
_GEMMA2_KEYS = {**_LLAMA_KEYS, **_ATTENTION_BIAS, "activation": "hidden_activation"}

FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "model.",
        _LLAMA_FEATURES,
        _LLAMA_KEYS | _ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        _LLAMA_DEFAULTS,
        {},
        _LLAMA_NAMES,
        fits=lambda config: config.d_model % config.num_heads == 0,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        "model.",
        _LLAMA_FEATURES | _NO_BIAS,
        _LLAMA_KEYS,
        {**_LLAMA_DEFAULTS, "num_kv_heads": 8, "max_seq_len": 131_072},
        {},
        _LLAMA_NAMES,
        windows="all",
        read=read_all_windows(default=4096),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, **_NO_BIAS, "qkv_bias": True},
        _LLAMA_KEYS,
        {**_LLAMA_DEFAULTS, "num_kv_heads": 32, "max_seq_len": 32_768},
        {},
        _LLAMA_NAMES,
        windows="layers",
        read=windows_of_qwen,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "qk_norm": "head", "ffn_bias": False},
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {**_LLAMA_DEFAULTS, "head_dim": 128, "num_kv_heads": 32, "max_seq_len": 32_768},
        {},
        _LLAMA_NAMES | _QK_NORM_NAMES,
        windows="layers",
        read=windows_of_qwen,
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        "SmolLM3ForSequenceClassification",
        "model.",
        _without(_LLAMA_FEATURES, "rotary_layers"),
        _LLAMA_KEYS | _ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        {**_LLAMA_DEFAULTS, "tie_embeddings": True, "num_kv_heads": 4, "max_seq_len": 32_768},
        {},
        _LLAMA_NAMES,
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
        _LLAMA_FEATURES | _NO_BIAS,
        _LLAMA_KEYS,
        {**_LLAMA_DEFAULTS, "norm_eps": 1e-5, "max_seq_len": 4096},
        {},
        _without(
            _LLAMA_NAMES,
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
        fits=_whole_heads,
    ),
    Family(
        "olmo",
        "OlmoForCausalLM",
        "OlmoForSequenceClassification",
        "model.",
        {
            **_without(_LLAMA_FEATURES, "clip_qkv"),
            "norm": "layernorm",
            "norm_weight": False,
            "norm_eps": 1e-5,
            "ffn_bias": False,
        },
        {**_without(_LLAMA_KEYS, "norm_eps"), **_ATTENTION_BIAS, "clip_qkv": "clip_qkv"},
        _without(_LLAMA_DEFAULTS, "norm_eps"),
        {},
        _without(_LLAMA_NAMES, "final_norm", "blocks.{i}.attention_norm", "blocks.{i}.ffn_norm"),
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn_bias": False},
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {**_LLAMA_DEFAULTS, "norm_eps": 1e-5},
        {},
        _LLAMA_NAMES | _QK_NORM_NAMES | _REORDERED_NAMES,
    ),
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        "Olmo3ForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, "norm_position": "reordered", "qk_norm": "full", "ffn_bias": False},
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {**_LLAMA_DEFAULTS, "norm_eps": 1e-5},
        {},
        _LLAMA_NAMES | _QK_NORM_NAMES | _REORDERED_NAMES,
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
        _without(_LLAMA_FEATURES, "embedding_scale", "residual_multiplier", "attention_scale", "logit_scale"),
        _LLAMA_KEYS | _ATTENTION_BIAS | {"ffn_bias": "mlp_bias"},
        _LLAMA_DEFAULTS,
        {},
        _LLAMA_NAMES,
        read=_read_granite,
        write=_write_granite,
        fits=_whole_heads,
    ),
    Family(
        "gemma",
        "GemmaForCausalLM",
        "GemmaForSequenceClassification",
        "model.",
        _GEMMA_FEATURES,
        _LLAMA_KEYS | _ATTENTION_BIAS,
        {**_GEMMA_DEFAULTS, "num_kv_heads": 16},
        {},
        _LLAMA_NAMES,
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
        _LLAMA_NAMES | _BOTH_NORMS_NAMES,
        windows="layers",
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
        _LLAMA_NAMES | _QK_NORM_NAMES | _BOTH_NORMS_NAMES,
        windows="layers",
        rope_theta=1e6,
        rope_of_kinds=True,
        read=_read_gemma2,
        write=_write_gemma2,
        fits=_fits_gemma2,
    ),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        None,
        "model.",
        {**_without(_LLAMA_FEATURES, "clip_qkv"), "qk_norm": "full", "ffn": "moe", "ffn_bias": False},
        {
            **_without(_LLAMA_KEYS, "d_ff"),
            **_ATTENTION_BIAS,
            **_EXPERT_KEYS,
            "moe.expert_hidden_size": "intermediate_size",
            "clip_qkv": "clip_qkv",
        },
        {
            **_LLAMA_DEFAULTS,
            "norm_eps": 1e-5,
            "max_seq_len": 4096,
            "moe.num_experts": 64,
            "moe.top_k": 8,
            "moe.norm_topk_prob": False,
        },
        {},
        _LLAMA_NAMES | _QK_NORM_NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        fits=lambda config: _plain_experts(config) and _whole_heads(config),
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        "MixtralForSequenceClassification",
        "model.",
        {**_LLAMA_FEATURES, **_NO_BIAS, "ffn": "moe", "moe.norm_topk_prob": True},
        {
            **_without(_LLAMA_KEYS, "d_ff"),
            "moe.num_experts": "num_local_experts",
            "moe.top_k": "num_experts_per_tok",
            "moe.expert_hidden_size": "intermediate_size",
        },
        {
            **_LLAMA_DEFAULTS,
            "norm_eps": 1e-5,
            "num_kv_heads": 8,
            "max_seq_len": 131_072,
            "moe.num_experts": 8,
            "moe.top_k": 2,
        },
        {},
        _LLAMA_NAMES | {"blocks.{i}.ffn.router": "layers.{i}.block_sparse_moe.gate"},
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
        {**_without(_LLAMA_FEATURES, "ffn"), "qk_norm": "head", "ffn_bias": False},
        {**_LLAMA_KEYS, **_ATTENTION_BIAS, **_EXPERT_KEYS, "moe.expert_hidden_size": "moe_intermediate_size"},
        {
            **_LLAMA_DEFAULTS,
            "num_kv_heads": 4,
            "max_seq_len": 32_768,
            "moe.num_experts": 128,
            "moe.top_k": 8,
            "moe.norm_topk_prob": False,
            "moe.expert_hidden_size": 768,
        },
        {},
        _LLAMA_NAMES | _QK_NORM_NAMES | _ROUTER_NAMES,
        other_keys={"num_local_experts": "num_experts"},
        experts=_EXPERTS,
        stacked=_STACKED,
        windows="all",
        read=read_sparse_layers,
        write=write_sparse_layers,
        fits=lambda config: config.moe is not None and "moe" in config.ffn_kinds and _plain_experts(config),
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        "gpt_neox.",
        {
            **_without(_GPT_FEATURES, "parallel_residual"),
            "norm_position": "pre",
            "positions": "rotary",
            "ffn_bias": True,
        },
        {
            **_without(_LLAMA_KEYS, "num_kv_heads", "head_dim"),
            **_ATTENTION_BIAS,
            "norm_eps": "layer_norm_eps",
            "parallel_residual": "use_parallel_residual",
        },
        {
            "norm_eps": 1e-5,
            "tie_embeddings": False,
            "activation": "gelu",
            "qkv_bias": True,
            "attention_output_bias": True,
            "parallel_residual": True,
            "max_seq_len": 2048,
        },
        {},
        {
            "embedding": "embed_in",
            "final_norm": "final_layer_norm",
            "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
            "blocks.{i}.ffn_norm": "layers.{i}.post_attention_layernorm",
            "blocks.{i}.attention.output": "layers.{i}.attention.dense",
            "blocks.{i}.ffn.up": "layers.{i}.mlp.dense_h_to_4h",
            "blocks.{i}.ffn.down": "layers.{i}.mlp.dense_4h_to_h",
        },
        fused={
            "layers.{i}.attention.query_key_value": (
                "blocks.{i}.attention.query",
                "blocks.{i}.attention.key",
                "blocks.{i}.attention.value",
            )
        },
        interleaved=True,
        head="embed_out",
        renamed={"lm_head.": "embed_out."},
        partial=("rotary_pct", 0.25),
        fits=_plain_heads,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "transformer.",
        {**_GPT_FEATURES, **_BIASES, "norm_position": "pre", "position_offset": 0},
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
        {"norm_eps": 1e-5, "tie_embeddings": True, "activation": "gelu_tanh", "max_seq_len": 1024},
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
        {**_BIASES, "activation": "relu", "tie_embeddings": True, "max_seq_len": 2048},
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
    *ENCODERS,
)
