"""Decoders with layer norms, biases and no gates: GPT-2, OPT, GPT-NeoX."""

from __future__ import annotations

from lmlab.models.formats.families.family import PLAIN, Family, Settings
from lmlab.models.formats.families.llama_like import (
    ATTENTION_BIAS,
    KEYS,
    plain_heads,
    without,
)

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

GPT = (
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        "gpt_neox.",
        {
            **without(_GPT_FEATURES, "parallel_residual"),
            "norm_position": "pre",
            "positions": "rotary",
            "ffn_bias": True,
        },
        {
            **without(KEYS, "num_kv_heads", "head_dim"),
            **ATTENTION_BIAS,
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
        fits=plain_heads,
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
        fits=plain_heads,
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
        fits=plain_heads,
    ),
)
